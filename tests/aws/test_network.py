"""The way out of functions, by the server's egress policy and the functions' tags; against real servers of this machine."""

import contextlib
import hashlib
import http.server
import re
import subprocess
import sys
import threading

import pytest

import server as gust
from conftest import call, create, refused

pytestmark = [
    pytest.mark.runs,
    pytest.mark.skipif(gust.ISOLATION == "process", reason="guest processes have no way out"),
]

CODE = """
import errno, http.client, os, socket, urllib.request

KEPT = {}

def tried(address):
    try:
        socket.create_connection(tuple(address), timeout=20).close()
        return "connected"
    except OSError as error:
        return errno.errorcode[error.errno]

def fetch(url):
    return urllib.request.urlopen(url, timeout=20).read().decode()

def kept(port):
    if port not in KEPT:
        KEPT[port] = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    KEPT[port].request("GET", "/kept")
    return KEPT[port].getresponse().read().decode()

def handler(event, context):
    return [globals()[name](argument) for name, argument in event]
"""


class Answers(http.server.BaseHTTPRequestHandler):
    """Answers with the path and the number of its connection."""

    protocol_version = "HTTP/1.1"

    def setup(self):
        super().setup()
        self.server.connections += 1
        self.number = self.server.connections

    def do_GET(self):
        body = f"{self.path} {self.number}".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def web():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    server.connections = 0
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture(scope="module")
def site():
    with web() as port:
        yield port


@pytest.fixture(scope="module")
def open_server(site):
    """A server whose functions may reach the site and no one else."""
    with gust.running("--egress", f"host:{site},192.0.2.0/24:80", "--armed", "0") as running:
        yield running


@pytest.mark.parametrize("memory", ["reuse", "fresh"])
def test_a_function_reaches_what_it_may(open_server, site, memory):
    client, name = open_server.client(), f"reaches-{memory}"
    create(client, name, CODE, Tags={"gust:memory": memory})
    url = f"http://127.0.0.1:{site}/x"
    api = int(open_server.endpoint.rsplit(":", 1)[1])
    for _ in range(4):
        answers = call(client, name, [["fetch", url], ["tried", ["127.0.0.1", api]], ["tried", ["10.0.0.1", 80]]])
        assert answers["Payload"][0].startswith("/x "), answers
        assert answers["Payload"][1:] == ["ECONNREFUSED", "EACCES"]


def test_a_connection_is_kept_between_calls_with_memory(open_server, site):
    client = open_server.client()
    create(client, "keeps", CODE, Tags={"gust:memory": "reuse"})
    seen = [call(client, "keeps", [["kept", site]])["Payload"][0] for _ in range(8)]
    # Instances that are learned from are given up after a call or two; the one that stays keeps its connection.
    assert any(one == next for one, next in zip(seen, seen[1:])), seen
    create(client, "forgets", CODE, Tags={"gust:memory": "fresh"})
    seen = [call(client, "forgets", [["kept", site]])["Payload"][0] for _ in range(5)]
    assert len(set(seen)) == 5, seen


def test_connections_of_the_initialisation_are_reset_in_every_instance(open_server, site):
    code = f"""
import errno, socket
OPENED = socket.create_connection(("127.0.0.1", {site}))

def handler(event, context):
    try:
        OPENED.sendall(b"GET / HTTP/1.1\\r\\n\\r\\n")
        return "answered" if OPENED.recv(1) else "ended"
    except OSError as error:
        return errno.errorcode[error.errno]
"""
    client = open_server.client()
    create(client, "opened", code)
    if open_server.has_snapshots:
        assert call(client, "opened", {})["Payload"] == "ECONNRESET"


def test_tags_narrow_the_policy_and_never_widen_it(open_server, site):
    client = open_server.client()
    create(client, "tagged", CODE, Tags={"gust:egress": "none"})
    attempts = [["tried", ["127.0.0.1", site]], ["tried", ["10.0.0.1", 80]]]
    assert call(client, "tagged", attempts)["Payload"] == ["ECONNREFUSED", "ENETUNREACH"]
    arn = client.get_function(FunctionName="tagged")["Configuration"]["FunctionArn"]
    client.tag_resource(Resource=arn, Tags={"gust:egress": f"host:{site} 10.0.0.0/8"})
    # Until the change is deployed, the function is what it was.
    seen = (call(client, "tagged", attempts)["Payload"] for _ in range(500))
    assert ["connected", "EACCES"] in seen
    with refused("InvalidParameterValueException", 400, "is no rule"):
        client.tag_resource(Resource=arn, Tags={"gust:egress": "everywhere"})


def test_what_is_private_is_refused_by_default(server, client, name):
    create(client, name, CODE)
    addresses = ["10.0.0.1", "192.168.0.1", "169.254.169.254", "172.16.0.1"]
    answers = call(client, name, [["tried", [address, 80]] for address in addresses])["Payload"]
    assert answers == ["EACCES"] * len(addresses)


S3 = """
import boto3, hashlib
from botocore.config import Config

def handler(event, context):
    s3 = boto3.client("s3", endpoint_url=event["endpoint"], region_name="us-east-1",
                      aws_access_key_id="a", aws_secret_access_key="b",
                      config=Config(s3={"addressing_style": "path"}))
    s3.create_bucket(Bucket="bucket")
    data = bytes(n * 7 & 255 for n in range(1 << 16)) * 80 + context.aws_request_id.encode()
    s3.put_object(Bucket="bucket", Key="key", Body=data)
    got = s3.get_object(Bucket="bucket", Key="key")["Body"].read()
    return [got == data, len(got), hashlib.sha256(got).hexdigest()]
"""


def test_boto3_talks_to_an_object_store():
    pytest.importorskip("moto", reason="SKIPPED: moto is not installed")
    store = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        said = ""
        while not (found := re.search(r"http://127\.0\.0\.1:(\d+)", said)):
            line = store.stderr.readline()
            assert line, said
            said += line
        threading.Thread(target=store.stderr.read, daemon=True).start()
        with gust.running("--egress", f"host:{found[1]}") as running:
            client = running.client()
            create(client, "stores", S3, MemorySize=512, Timeout=60)
            for _ in range(2):
                same, length, digest = call(client, "stores", {"endpoint": found[0]})["Payload"]
                assert same and length == 80 * 65536 + 36
            # What lies there is what the function sent, seen without it.
            import boto3

            outside = boto3.client(
                "s3",
                endpoint_url=found[0],
                region_name="us-east-1",
                aws_access_key_id="a",
                aws_secret_access_key="b",
            )
            body = outside.get_object(Bucket="bucket", Key="key")["Body"].read()
            assert hashlib.sha256(body).hexdigest() == digest
    finally:
        store.kill()
        store.wait()


def test_the_policy_is_checked_before_the_server_starts():
    command = [gust.GUST, "up", "--listen", "127.0.0.1:0", "--egress", "everywhere"]
    tried = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert tried.returncode == 1 and '"everywhere" is no rule' in tried.stderr, tried.stderr
