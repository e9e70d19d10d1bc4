"""Lambda's quotas, each refused with Lambda's error."""

import pytest

import server as gust
from conftest import call, create, make_zip, raw, refused

MIB = 1024 * 1024


@pytest.mark.parametrize(
    "member, options, constraint",
    [
        ("timeout", {"Timeout": 0}, "greater than or equal to 1"),
        ("timeout", {"Timeout": 901}, "less than or equal to 900"),
        ("memorySize", {"MemorySize": 127}, "greater than or equal to 128"),
        ("memorySize", {"MemorySize": 10_241}, "less than or equal to 10240"),
        ("ephemeralStorage.size", {"EphemeralStorage": {"Size": 511}}, "greater than or equal to 512"),
        ("ephemeralStorage.size", {"EphemeralStorage": {"Size": 10_241}}, "less than or equal to 10240"),
        ("description", {"Description": "d" * 257}, "length less than or equal to 256"),
        ("handler", {"Handler": "h" * 129}, "length less than or equal to 128"),
        ("handler", {"Handler": "a b"}, "regular expression pattern"),
        ("role", {"Role": "arn:aws:iam::1:role/x"}, "regular expression pattern"),
        ("tracingConfig.mode", {"TracingConfig": {"Mode": "Loud"}}, "enum value set"),
        ("environment.variables", {"Environment": {"Variables": {"1A": "x"}}}, "regular expression pattern"),
    ],
)
def test_numbers_and_texts_have_bounds(server, name, member, options, constraint):
    client = server.client(parameter_validation=False)
    with refused("ValidationException", 400, f"at '{member}' failed to satisfy constraint") as seen:
        create(client, name, wait=False, **options)
    assert constraint in seen.message and seen.message.startswith("1 validation error detected: ")


def test_bounds_themselves_are_allowed(client, name):
    create(client, name, wait=False, Timeout=900, MemorySize=10_240, EphemeralStorage={"Size": 10_240})


def test_all_violations_are_told_at_once(client, name):
    with refused("ValidationException", 400, "2 validation errors detected: "):
        create(client, name, wait=False, Timeout=901, Role="nobody")


def test_required_members(server):
    client = server.client(parameter_validation=False)
    with refused("ValidationException", 400, "Value null at 'role' failed to satisfy constraint: Member must not be null"):
        client.create_function(FunctionName="x", Code={"ZipFile": make_zip({"a": "b"})})
    with refused("InvalidParameterValueException", 400, "Runtime and Handler are mandatory"):
        client.create_function(FunctionName="x", Role=gust.ROLE, Code={"ZipFile": make_zip({"a": "b"})})


def test_the_environment_has_4_kib(client, name):
    create(client, name, wait=False, Environment={"Variables": {"KK": "v" * 4094}})
    with refused("InvalidParameterValueException", 400, "exceeded the 4KB limit"):
        create(client, name + "x", wait=False, Environment={"Variables": {"KK": "v" * 4095}})


def test_the_platforms_variables_cannot_be_set(client, name):
    for variable in ("AWS_REGION", "AWS_LAMBDA_FUNCTION_NAME", "_HANDLER", "AWS_ACCESS_KEY_ID"):
        with refused("InvalidParameterValueException", 400, f"Reserved keys used in this request: {variable}"):
            create(client, name, wait=False, Environment={"Variables": {variable: "x"}})


@pytest.mark.parametrize("runtime", ["python2.7", "nodejs8.10", "cobol", ""])
def test_runtimes_that_there_are_not(server, name, runtime):
    with refused("InvalidParameterValueException", 400, f"Value {runtime} at 'runtime' failed to satisfy constraint"):
        create(server.client(parameter_validation=False), name, wait=False, Runtime=runtime)


def test_a_runtime_that_is_not_built_is_told_apart(data_dir):
    (data_dir / "runtimes").mkdir()
    with gust.running(data_dir=data_dir) as server:
        with refused("InvalidParameterValueException", 400, "gust runtime build python3.11"):
            create(server.client(), "hello", wait=False)


def test_synchronous_payloads_have_6_mib(client, name):
    create(client, name, "def handler(event, context):\n    return len(event)\n")
    largest = "x" * (6 * MIB - 2)
    assert call(client, name, largest)["Payload"] == len(largest)
    with refused("RequestEntityTooLargeException", 413, "Request must be smaller than 6291456 bytes"):
        call(client, name, largest + "x")
    # The connection is good for another call.
    assert call(client, name, "abc")["Payload"] == 3


def test_asynchronous_payloads_have_1_mib(client, name):
    create(client, name)
    largest = "x" * (MIB - 2)
    assert call(client, name, largest, InvocationType="Event")["StatusCode"] == 202
    with refused("RequestEntityTooLargeException", 413, "Request must be smaller than 1048576 bytes"):
        call(client, name, largest + "x", InvocationType="Event")


def test_uploads_have_50_mib(client, name):
    with refused("RequestEntityTooLargeException", 413, "Request must be smaller than 70167211 bytes"):
        create(client, name, wait=False, Code={"ZipFile": b"\0" * (51 * MIB)})


def test_code_storage_is_bounded():
    with gust.running("--code-storage", "1") as server:
        client = server.client()
        incompressible = {"app.py": "x = 1", "data": __import__("os").urandom(700_000)}
        create(client, "first", wait=False, Code={"ZipFile": make_zip(incompressible)})
        with refused("CodeStorageExceededException", 400, "Code storage limit exceeded."):
            create(client, "second", wait=False, Code={"ZipFile": make_zip(incompressible)})
        client.delete_function(FunctionName="first")
        create(client, "second", wait=False, Code={"ZipFile": make_zip(incompressible)})


@pytest.mark.parametrize(
    "body, code",
    [
        (b"{", "InvalidRequestContentException"),
        (b"\xff\xfe", "InvalidRequestContentException"),
        (b"[]", "SerializationException"),
        (b'{"FunctionName": 5}', "SerializationException"),
        (b'{"FunctionName": "x", "Timeout": "soon"}', "SerializationException"),
        (b'{"FunctionName": "x", "Role": "%s", "Code": {"ZipFile": "@@"}}' % gust.ROLE.encode(), "SerializationException"),
    ],
)
def test_bodies_that_make_no_sense(server, body, code):
    status, headers, _ = raw(server, "POST", "/2015-03-31/functions", body)
    assert (status, headers["x-amzn-errortype"]) == (400, code)
    assert headers["x-amzn-requestid"]
