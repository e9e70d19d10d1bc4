"""Functions that do as they should not. Each call gets a stated error, and the next one works."""

import base64
import json
import re
from textwrap import dedent

import pytest

from conftest import call, create, private, updated

MIXED = dedent("""
    import os, sys, time, ctypes
    def handler(event, context):
        kind = event["do"]
        if kind == "answer":
            return "fine"
        if kind == "raise":
            raise ValueError("not good")
        if kind == "exit":
            os._exit(3)
        if kind == "sys.exit":
            sys.exit(4)
        if kind == "segfault":
            ctypes.string_at(0)
        if kind == "spin":
            while True:
                pass
        if kind == "sleep":
            time.sleep(60)
        if kind == "allocate":
            hoard = []
            while True:
                hoard.append(bytearray(1 << 20))
        if kind == "log":
            line = "x" * 65535 + "\\n"
            for _ in range(1 << 14):
                sys.stdout.write(line)
            return "logged"
        if kind == "fork":
            try:
                return "forked" if os.fork() else os._exit(0)
            except OSError as error:
                return f"refused {error.errno}"
        if kind == "files":
            opened = []
            try:
                for _ in range(100_000):
                    opened.append(open("/dev/null"))
            except OSError as error:
                return f"refused {error.errno}"
            finally:
                for file in opened:
                    file.close()
            return "all opened"
        if kind == "large":
            return "x" * (7 << 20)
        if kind == "unserialisable":
            return object()
""")


@pytest.fixture(scope="module")
def mixed(client):
    name = "mixed-behaviour"
    create(client, name, MIXED, Timeout=3, MemorySize=128)
    yield name
    client.delete_function(FunctionName=name)


def fails(client, name, kind, error_type, message):
    response = call(client, name, {"do": kind}, LogType="Tail")
    assert response["StatusCode"] == 200 and response["FunctionError"] == "Unhandled", response
    document = response["Payload"]
    assert document["errorType"] == error_type, document
    request_id = response["ResponseMetadata"]["RequestId"]
    assert re.search(message.replace("ID", request_id), document["errorMessage"]), document
    assert call(client, name, {"do": "answer"})["Payload"] == "fine", "the next call works"
    return document, base64.b64decode(response["LogResult"]).decode()


def test_a_handler_that_raises(client, mixed):
    document, log = fails(client, mixed, "raise", "ValueError", "^not good$")
    assert any("handler" in line for line in document["stackTrace"])
    assert "[ERROR] ValueError: not good" in log and "Traceback" in log


def test_a_handler_that_answers_what_is_no_json(client, mixed):
    fails(client, mixed, "unserialisable", "Runtime.MarshalError", "not JSON serializable")


def test_a_handler_that_exits(client, mixed):
    _, log = fails(client, mixed, "exit", "Runtime.ExitError", "^RequestId: ID Error: Runtime exited with error: exit status 3$")
    assert "Status: error\tError Type: Runtime.ExitError" in log
    fails(client, mixed, "sys.exit", "Runtime.ExitError", "^RequestId: ID Error: Runtime exited with error: exit status 4$")


def test_a_handler_that_dies_of_a_signal(client, mixed):
    fails(client, mixed, "segfault", "Runtime.ExitError", "signal: segmentation fault")


@pytest.mark.parametrize("kind", ["spin", "sleep"])
def test_a_handler_that_takes_too_long(client, mixed, kind):
    _, log = fails(client, mixed, kind, "Sandbox.Timedout", r"^RequestId: ID Error: Task timed out after 3\.00 seconds$")
    assert "Task timed out after 3.00 seconds\n" in log and "\tStatus: timeout\n" in log


def test_a_handler_that_allocates_without_end(client, mixed):
    response = call(client, mixed, {"do": "allocate"})
    assert response["FunctionError"] == "Unhandled"
    # Python may see the bound before the platform does.
    assert response["Payload"]["errorType"] in ("Runtime.OutOfMemory", "Runtime.ExitError", "MemoryError")
    assert call(client, mixed, {"do": "answer"})["Payload"] == "fine"


def test_a_handler_that_writes_a_gigabyte_of_log(server, client, mixed):
    client.update_function_configuration(FunctionName=mixed, Timeout=60)
    updated(client, mixed)
    response = call(client, mixed, {"do": "log"}, LogType="Tail")
    assert response["Payload"] == "logged", response
    log = base64.b64decode(response["LogResult"]).decode()
    assert re.search(r"\d+ bytes of output were dropped", log), log[-500:]
    kept = sum(file.stat().st_size for file in (server.data_dir / "logs" / mixed).iterdir())
    assert kept <= 40 << 20
    client.update_function_configuration(FunctionName=mixed, Timeout=3)
    updated(client, mixed)


def test_a_handler_that_forks(client, mixed):
    response = call(client, mixed, {"do": "fork"})
    assert response["Payload"] == "forked" or str(response["Payload"]).startswith("refused"), response


def test_a_handler_that_opens_100000_files(client, mixed):
    assert call(client, mixed, {"do": "files"})["Payload"] == "refused 24"


def test_a_handler_that_answers_7_mib(client, mixed):
    fails(client, mixed, "large", "Function.ResponseSizeTooLarge",
          r"^Response payload size exceeded maximum allowed payload size \(6291556 bytes\)\.$")


@pytest.mark.parametrize(
    "source, handler, error_type, message",
    [
        ("x = 1\n", "app.missing", "Runtime.HandlerNotFound", "Handler 'missing' missing on module 'app'"),
        ("x = 1\n", "nowhere.handler", "Runtime.ImportModuleError", "Unable to import module 'nowhere'"),
        ("import no_such_module\n", "app.handler", "Runtime.ImportModuleError", "No module named 'no_such_module'"),
        ("def handler(:\n", "app.handler", "Runtime.UserCodeSyntaxError", "Syntax error in module 'app'"),
        ("x = 1\n", "nodot", "Runtime.MalformedHandlerName", "Bad handler 'nodot'"),
        ("raise RuntimeError('at import')\n", "app.handler", "RuntimeError", "at import"),
        ("import os\nos._exit(5)\n", "app.handler", "Runtime.ExitError", "exit status 5"),
    ],
)
def test_a_function_that_does_not_initialise(client, name, source, handler, error_type, message):
    create(client, name, source, Handler=handler)
    for _ in range(2):
        response = call(client, name)
        assert response["FunctionError"] == "Unhandled"
        assert response["Payload"]["errorType"] == error_type, response["Payload"]
        assert message in response["Payload"]["errorMessage"]


def test_broken_code_can_be_mended(client, name):
    from conftest import ECHO, make_zip

    create(client, name, "import no_such_module\n")
    assert call(client, name)["FunctionError"] == "Unhandled"
    client.update_function_code(FunctionName=name, ZipFile=make_zip({"app.py": ECHO}))
    updated(client, name)
    assert call(client, name, 6)["Payload"] == 6


def test_logs_show_what_happened(server, client, mixed):
    import urllib.request

    request_id = call(client, mixed, {"do": "raise"})["ResponseMetadata"]["RequestId"]
    with urllib.request.urlopen(f"{server.endpoint}/_gust/v1/functions/{mixed}/logs?tail=20", timeout=60) as response:
        lines = [json.loads(line) for line in response.read().splitlines()]
    messages = [line["message"] for line in lines]
    assert f"START RequestId: {request_id} Version: $LATEST" in messages
    assert any(message.startswith(f"REPORT RequestId: {request_id}\t") for message in messages)
    assert private(server, "stats")["functions"] >= 1
