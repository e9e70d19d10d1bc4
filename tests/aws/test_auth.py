"""Signatures: those of unmodified clients, and those that must not get in."""

import datetime
import urllib.request

import botocore.auth
import botocore.awsrequest
import botocore.credentials
import pytest

import server as gust
from conftest import create, raw, refused

KEY, SECRET = "AKIDEXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"


@pytest.fixture(scope="module")
def closed():
    with gust.running("--require-auth", "--access-keys", f"{KEY}:{SECRET},OTHER:other:secret") as server:
        yield server


def test_a_configured_key_opens(closed):
    for key, secret in [(KEY, SECRET), ("OTHER", "other:secret")]:
        client = closed.client(key, secret)
        assert client.list_functions()["Functions"] == []
        # Paths with escapes, queries and bodies are signed in their canonical form.
        arn = f"arn:aws:lambda:{gust.REGION}:{gust.ACCOUNT}:function:missing"
        with refused("ResourceNotFoundException", 404):
            client.get_function(FunctionName=arn, Qualifier="$LATEST")
        with refused("ResourceNotFoundException", 404):
            client.invoke(FunctionName=arn + ":$LATEST", Payload=b'{"a": "\xc3\xa9 +&=/"}')
        with refused("ResourceNotFoundException", 404):
            client.untag_resource(Resource=arn, TagKeys=["a b", "c/d", "e+f", "g=h"])


def test_what_must_not_get_in(closed):
    with refused("InvalidSignatureException", 403, "does not match the signature you provided"):
        closed.client(KEY, "wrong").list_functions()
    with refused("UnrecognizedClientException", 403, "security token included in the request is invalid"):
        closed.client("UNKNOWN", SECRET).list_functions()
    with refused("UnrecognizedClientException", 403):
        closed.client(KEY, SECRET, token="token").list_functions()
    status, headers, _ = raw(closed, "GET", "/2015-03-31/functions")
    assert (status, headers["x-amzn-errortype"]) == (403, "MissingAuthenticationTokenException")
    status, headers, _ = raw(closed, "GET", "/2015-03-31/functions", headers={"Authorization": "AWS4-HMAC-SHA256 x"})
    assert (status, headers["x-amzn-errortype"]) == (403, "IncompleteSignatureException")


def test_the_private_api_is_behind_the_same_door(closed):
    for path in ("stats", "functions/x", "functions/x/logs"):
        assert raw(closed, "GET", f"/_gust/v1/{path}")[0] == 403
    assert raw(closed, "GET", "/_gust/v1/health")[0] == 200


def signed(server, method="GET", path="/2015-03-31/functions", body=b"", age_s=0, service="lambda", monkeypatch=None):
    request = botocore.awsrequest.AWSRequest(method=method, url=server.endpoint + path, data=body)
    signer = botocore.auth.SigV4Auth(botocore.credentials.Credentials(KEY, SECRET), service, gust.REGION)
    when = datetime.datetime.now(datetime.timezone.utc) - datetime.timedelta(seconds=age_s)
    monkeypatch.setattr(botocore.auth, "get_current_datetime", lambda *_, **__: when.replace(tzinfo=None), raising=False)
    signer.add_auth(request)
    return {name: value for name, value in request.headers.items()}


def test_old_and_altered_requests(closed, monkeypatch):
    path = "/2015-03-31/functions"
    assert raw(closed, "GET", path, headers=signed(closed, monkeypatch=monkeypatch))[0] == 200
    for options, text in [
        ({"age_s": 400}, b"Signature expired"),
        ({"age_s": -400}, b"Signature not yet current"),
        ({"service": "s3"}, b"Credential should be scoped to correct service: 'lambda'"),
    ]:
        status, headers, body = raw(closed, "GET", path, headers=signed(closed, monkeypatch=monkeypatch, **options))
        assert (status, headers["x-amzn-errortype"]) == (403, "InvalidSignatureException"), body
        assert text in body
    headers = signed(closed, "PUT", "/2017-10-31/functions/f/concurrency", b'{"x": 1}', monkeypatch=monkeypatch)
    status, answer, _ = raw(closed, "PUT", "/2017-10-31/functions/f/concurrency", b'{"x": 2}', headers)
    assert (status, answer["x-amzn-errortype"]) == (403, "InvalidSignatureException")


def test_presigned_requests(closed):
    client = closed.client(KEY, SECRET)
    url = client.generate_presigned_url("list_functions", ExpiresIn=60)
    with urllib.request.urlopen(url, timeout=60) as response:
        assert response.status == 200
    assert raw(closed, "GET", url.removeprefix(closed.endpoint) + "0")[0] == 403


def test_links_to_code_need_no_signature_and_cannot_be_guessed(closed):
    client = closed.client(KEY, SECRET)
    create(client, "linked", wait=False)
    link = client.get_function(FunctionName="linked")["Code"]["Location"]
    with urllib.request.urlopen(link, timeout=60) as response:
        assert response.read(2) == b"PK"
    path = link.removeprefix(closed.endpoint)
    for bad in (path[:-1] + ("0" if path[-1] != "0" else "1"), path.split("?")[0], path.replace("Expires=1", "Expires=2")):
        assert raw(closed, "GET", bad)[0] == 403
    client.delete_function(FunctionName="linked")


def test_an_open_server_takes_any_key_from_here(server):
    assert server.client("anything", "anything", token="token", region="eu-west-1").list_functions()
    assert raw(server, "GET", "/2015-03-31/functions")[0] == 200


def test_web_pages_of_other_sites_are_kept_out(server):
    for headers in ({"Origin": "https://evil.example"}, {"Host": "evil.example:4566"}, {"Sec-Fetch-Site": "cross-site"}):
        status, answer, _ = raw(server, "GET", "/2015-03-31/functions", headers=headers)
        assert (status, answer["x-amzn-errortype"]) == (403, "AccessDeniedException"), headers
