"""The AWS command line from PyPI, unmodified."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from conftest import ECHO, make_zip
from server import ROLE

AWS = pathlib.Path(sys.executable).parent / "aws"


@pytest.fixture
def aws(server, tmp_path):
    def run(*arguments, code=0):
        environment = {
            **os.environ,
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": server.endpoint,
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "AWS_MAX_ATTEMPTS": "1",
        }
        done = subprocess.run(
            [sys.executable, str(AWS), "lambda", *arguments],
            capture_output=True, text=True, timeout=120, env=environment, cwd=tmp_path, check=False,
        )
        assert done.returncode == code, done.stderr
        return json.loads(done.stdout) if done.stdout.strip() else done.stderr
    return run


def test_a_function_from_beginning_to_end(aws, tmp_path, name):
    (tmp_path / "code.zip").write_bytes(make_zip({"app.py": ECHO}))
    created = aws("create-function", "--function-name", name, "--runtime", "python3.11", "--role", ROLE,
                  "--handler", "app.handler", "--zip-file", "fileb://code.zip", "--tags", "team=a")
    assert created["State"] == "Pending"
    aws("wait", "function-active-v2", "--function-name", name)
    answer = aws("invoke", "--function-name", name, "--payload", '{"a": 1}', "--log-type", "Tail", "out.json")
    assert answer["StatusCode"] == 200 and answer["LogResult"]
    assert json.loads((tmp_path / "out.json").read_text()) == {"a": 1}
    answer = aws("invoke", "--function-name", name, "--invocation-type", "Event", "out.json")
    assert answer["StatusCode"] == 202
    (tmp_path / "code.zip").write_bytes(make_zip({"app.py": ECHO + "\n"}))
    aws("update-function-code", "--function-name", name, "--zip-file", "fileb://code.zip")
    aws("wait", "function-updated-v2", "--function-name", name)
    assert aws("publish-version", "--function-name", name)["Version"] == "1"
    aws("create-alias", "--function-name", name, "--name", "live", "--function-version", "1")
    assert aws("get-alias", "--function-name", name, "--name", "live")["FunctionVersion"] == "1"
    assert name in [function["FunctionName"] for function in aws("list-functions")["Functions"]]
    assert aws("get-function", "--function-name", name)["Tags"] == {"team": "a"}
    assert aws("get-account-settings")["AccountUsage"]["FunctionCount"] >= 1
    aws("put-function-concurrency", "--function-name", name, "--reserved-concurrent-executions", "2")
    assert aws("get-function-concurrency", "--function-name", name) == {"ReservedConcurrentExecutions": 2}
    aws("delete-function", "--function-name", name)
    error = aws("get-function", "--function-name", name, code=255)
    assert "ResourceNotFoundException" in error
