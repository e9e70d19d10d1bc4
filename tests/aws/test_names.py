"""Names, ARNs and qualifiers, well formed and not."""

import urllib.parse

import pytest

from conftest import call, create, raw, refused
from server import ACCOUNT, REGION

ARN = f"arn:aws:lambda:{REGION}:{ACCOUNT}:function:"


def test_a_function_has_many_names(client, name):
    create(client, name)
    client.publish_version(FunctionName=name)
    client.create_alias(FunctionName=name, Name="live", FunctionVersion="1")
    for text, version in [
        (name, "$LATEST"),
        (f"{name}:$LATEST", "$LATEST"),
        (f"{name}:1", "1"),
        (f"{name}:live", "1"),
        (f"function:{name}", "$LATEST"),
        (f"{ACCOUNT}:function:{name}", "$LATEST"),
        (f"{ACCOUNT}:function:{name}:live", "1"),
        (f"{ARN}{name}", "$LATEST"),
        (f"{ARN}{name}:1", "1"),
    ]:
        assert call(client, text)["ExecutedVersion"] == version, text


@pytest.mark.parametrize(
    "text",
    ["a b", "a.b", "a$b", "arn:aws:s3:::bucket", f"{ARN}f:1:2", ":", "f:", "f:a b", "é"],
)
def test_malformed_names(server, text):
    client = server.client(parameter_validation=False)
    for operation in ("get_function", "invoke", "delete_function"):
        with refused("ValidationException", 400, "failed to satisfy constraint: Member must satisfy regular expression"):
            getattr(client, operation)(FunctionName=text)


@pytest.mark.parametrize("text", ["../../etc/passwd", "a/b", "%00", "..%2f..%2fetc", "x" * 10_000])
def test_hostile_paths(server, text):
    for path in (text, urllib.parse.quote(text, safe="")):
        status, headers, _ = raw(server, "GET", f"/2015-03-31/functions/{path}")
        assert status in (400, 404), (path, status)
        assert headers["x-amzn-errortype"] in ("ValidationException", "UnknownOperationException", "ResourceNotFoundException")


def test_long_names(server, name):
    client = server.client(parameter_validation=False)
    with refused("ValidationException", 400, "length less than or equal to 64"):
        create(client, "x" * 65, wait=False)
    create(client, "x" * 64, wait=False)
    client.delete_function(FunctionName="x" * 64)


def test_qualifiers(server, client, name):
    create(client, name)
    unchecked = server.client(parameter_validation=False)
    for text in ("a b", "$latest", "x" * 129, "a:b", "1.5"):
        with refused("ValidationException", 400, "at 'qualifier'"):
            unchecked.invoke(FunctionName=name, Qualifier=text)
    for text in ("7", "missing", "99999999999999999999"):
        with refused("ResourceNotFoundException", 404, f"Function not found: {ARN}{name}:"):
            client.invoke(FunctionName=name, Qualifier=text)
    with refused("InvalidParameterValueException", 400, "does not match the specified qualifier"):
        client.invoke(FunctionName=f"{name}:1", Qualifier="2")


def test_arns_of_other_places(client, name):
    create(client, name)
    for arn in (f"arn:aws:lambda:eu-west-1:{ACCOUNT}:function:{name}", f"arn:aws:lambda:{REGION}:111111111111:function:{name}"):
        with refused("ResourceNotFoundException", 404, arn):
            client.get_function(FunctionName=arn)


def test_a_new_function_cannot_be_qualified(client):
    with refused("InvalidParameterValueException", 400):
        create(client, "hello:live", wait=False)
