"""Functions in Go on provided.al2023, built with AWS's own library."""

import base64
import os
import pathlib
import re
import shutil
import subprocess

import pytest

from conftest import call, create, needs
from test_provided import package

HERE = pathlib.Path(__file__).parent


def build(source, program):
    """A static program, as a user of the example builds it."""
    if shutil.which("go") is None:
        pytest.skip("SKIPPED: no go to build functions in Go with")
    environment = {**os.environ, "CGO_ENABLED": "0", "GOFLAGS": "-mod=readonly", "GOTOOLCHAIN": "local"}
    command = ["go", "build", "-tags", "lambda.norpc", "-o", program, "."]
    built = subprocess.run(command, cwd=source, env=environment, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    return program


@pytest.fixture(scope="module")
def hello(tmp_path_factory):
    return build(HERE.parent.parent / "examples" / "hello-go", tmp_path_factory.mktemp("go") / "bootstrap")


@pytest.fixture(scope="module")
def kinds(client, tmp_path_factory):
    needs("provided.al2023")
    program = build(HERE / "go", tmp_path_factory.mktemp("go") / "bootstrap")
    name = "go-kinds"
    create(client, name, Runtime="provided.al2023", Handler="bootstrap", Code={"ZipFile": package(program)}, Timeout=5)
    yield name
    client.delete_function(FunctionName=name)


def test_the_example(client, name, hello):
    needs("provided.al2023")
    create(client, name, Runtime="provided.al2023", Handler="bootstrap", Code={"ZipFile": package(hello)}, Timeout=7)
    for who in ["you", "me"]:
        response = call(client, name, {"name": who}, LogType="Tail")
        answer = response["Payload"]
        assert answer["message"] == f"hello, {who}", response
        assert answer["request_id"] == response["ResponseMetadata"]["RequestId"]
        assert 0 < answer["left_ms"] <= 7000
        assert f"saying hello to {who}\n" in base64.b64decode(response["LogResult"]).decode()
    response = call(client, name, {"name": "nobody"})
    assert response["FunctionError"] == "Unhandled"
    assert response["Payload"] == {"errorMessage": "nobody is here", "errorType": "errorString"}


def test_goroutines_share_the_processor(client, kinds):
    for _ in range(2):
        answer = call(client, kinds, {"do": "goroutines"})["Payload"]
        assert answer == {"sum": sum(n * n for n in range(1000)), "served": 50, "preempted": True}


def test_the_deadline_is_in_the_context(client, kinds):
    assert call(client, kinds, {"do": "deadline"})["Payload"] == "context deadline exceeded"


@pytest.mark.parametrize(
    "kind, error_type, message",
    [
        ("error", "wrapError", "^outer: inner$"),
        ("panic", "string", "^all is lost$"),
        ("nil", "errorString", "nil pointer dereference"),
        ("exit", "Runtime.ExitError", "exit status 7$"),
        ("deadlock", "Sandbox.Timedout|Runtime.ExitError", "Task timed out|exit status 2"),
    ],
)
def test_ways_to_fail(client, kinds, kind, error_type, message):
    response = call(client, kinds, {"do": kind})
    assert response["FunctionError"] == "Unhandled", response
    assert re.fullmatch(error_type, response["Payload"]["errorType"]), response["Payload"]
    assert re.search(message, response["Payload"]["errorMessage"]), response["Payload"]
    assert call(client, kinds, {"do": "fine"})["Payload"] == "fine", "the next call works"


def test_restored_instances_draw_other_numbers(server, client, kinds):
    from conftest import private

    answers = []
    for _ in range(20):
        private(server, f"functions/{kinds}/evict", "POST")
        answers.append(call(client, kinds, {"do": "random"})["Payload"])
    for source in answers[0]:
        assert len({answer[source] for answer in answers}) == len(answers), f"{source} came twice"
