"""Fixtures: one server for most tests, functions that are gone afterwards."""

import io
import itertools
import json
import os
import pathlib
import tempfile
import urllib.error
import urllib.request
import zipfile

import botocore.exceptions
import pytest

import server as gust

NUMBERS = itertools.count(1)


def pytest_configure(config):
    config.addinivalue_line("markers", "runs: calls functions, so it needs built runtimes")


def pytest_collection_modifyitems(items):
    """Without runtime images no function can be made: the tests that need one say loudly that they are skipped."""
    runtimes = pathlib.Path(gust.RUNTIMES or "/nonexistent")
    if (runtimes / "python3.11.img").is_file():
        return
    reason = f"SKIPPED: no runtime image python3.11.img in GUST_TEST_RUNTIMES={gust.RUNTIMES}"
    assert "CI" not in os.environ, reason
    for item in items:
        item.add_marker(pytest.mark.skip(reason=reason))


def pytest_terminal_summary(terminalreporter):
    """Which wall was tested is no detail."""
    for isolation in sorted(gust.ISOLATIONS_USED):
        terminalreporter.write_line(f"ISOLATION USED: {isolation}", bold=True)


@pytest.fixture(scope="session")
def server():
    with gust.running("--retry-wait-ms", "200") as running:
        yield running


@pytest.fixture
def data_dir():
    """A data directory for several servers, one after the other. Not beneath pytest's, which is for its owner alone."""
    with tempfile.TemporaryDirectory(prefix="gust-test-") as dir:
        yield pathlib.Path(dir)


@pytest.fixture(scope="session")
def client(server):
    return server.client()


@pytest.fixture
def name(client):
    """A function name that nobody uses; the function is deleted afterwards, if there is one."""
    name = f"test-{next(NUMBERS)}"
    yield name
    try:
        client.delete_function(FunctionName=name)
    except client.exceptions.ResourceNotFoundException:
        pass


def needs(runtime):
    """Skips loudly where a runtime is not built."""
    if not (pathlib.Path(gust.RUNTIMES) / f"{runtime}.img").is_file():
        assert "CI" not in os.environ, f"there is no runtime {runtime} in {gust.RUNTIMES}"
        pytest.skip(f"SKIPPED: no runtime image {runtime}.img in {gust.RUNTIMES}")


def make_zip(files):
    """A package of texts by name."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, text in files.items():
            archive.writestr(path, text)
    return buffer.getvalue()


ECHO = "def handler(event, context):\n    return event\n"


def create(client, name, source=ECHO, wait=True, **options):
    """Makes a Python function and waits until it is active."""
    parameters = {
        "FunctionName": name,
        "Runtime": "python3.11",
        "Role": gust.ROLE,
        "Handler": "app.handler",
        "Code": {"ZipFile": make_zip({"app.py": source})},
        **options,
    }
    created = client.create_function(**parameters)
    if wait:
        client.get_waiter("function_active_v2").wait(FunctionName=name, WaiterConfig={"Delay": 0.1, "MaxAttempts": 600})
    return created


def updated(client, name):
    client.get_waiter("function_updated_v2").wait(FunctionName=name, WaiterConfig={"Delay": 0.1, "MaxAttempts": 600})


def call(client, name, payload=None, **options):
    """Calls a function; answers the whole response with its payload decoded."""
    response = client.invoke(FunctionName=name, Payload=json.dumps(payload), **options)
    text = response["Payload"].read()
    response["Payload"] = json.loads(text) if text else None
    return response


class Refused:
    """What `refused` saw."""

    code = status = message = response = None


class refused:
    """Expects a call to be refused with this code, and keeps the error."""

    def __init__(self, code, status=None, message=None):
        self.code, self.status, self.message = code, status, message
        self.seen = Refused()

    def __enter__(self):
        return self.seen

    def __exit__(self, kind, error, _traceback):
        assert error is not None, f"the call was not refused with {self.code}"
        if not isinstance(error, botocore.exceptions.ClientError):
            return False
        self.seen.response = error.response
        self.seen.code = error.response["Error"]["Code"]
        self.seen.message = error.response["Error"]["Message"]
        self.seen.status = error.response["ResponseMetadata"]["HTTPStatusCode"]
        assert self.seen.code == self.code, error
        assert self.status in (None, self.seen.status), error.response
        assert self.message is None or self.message in self.seen.message, error
        assert error.response["ResponseMetadata"].get("RequestId"), "every answer has a request id"
        return True


def private(server, path, method="GET"):
    """A request to the server's own API."""
    request = urllib.request.Request(f"{server.endpoint}/_gust/v1/{path}", method=method)
    with urllib.request.urlopen(request, timeout=60) as response:
        text = response.read()
    return json.loads(text) if text else None


def raw(server, method, path, body=b"", headers=None):
    """A request without any SDK: status, headers, body."""
    request = urllib.request.Request(server.endpoint + path, body or None, headers or {}, method=method)
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.status, response.headers, response.read()
    except urllib.error.HTTPError as error:
        return error.code, error.headers, error.read()
