"""Concurrency, tags, asynchronous settings, the account, and what tools ask in passing."""

import itertools
import threading

import pytest

from conftest import call, create, raw, refused, updated
from server import ACCOUNT, REGION

ARN = f"arn:aws:lambda:{REGION}:{ACCOUNT}:function:"


def test_reserved_concurrency(client, name):
    create(client, name)
    assert "ReservedConcurrentExecutions" not in client.get_function_concurrency(FunctionName=name)
    before = client.get_account_settings()["AccountLimit"]
    client.put_function_concurrency(FunctionName=name, ReservedConcurrentExecutions=5)
    assert client.get_function_concurrency(FunctionName=name)["ReservedConcurrentExecutions"] == 5
    assert client.get_function(FunctionName=name)["Concurrency"] == {"ReservedConcurrentExecutions": 5}
    after = client.get_account_settings()["AccountLimit"]
    assert after["UnreservedConcurrentExecutions"] == before["UnreservedConcurrentExecutions"] - 5
    with refused("InvalidParameterValueException", 400, "below its minimum value of [100]"):
        client.put_function_concurrency(FunctionName=name, ReservedConcurrentExecutions=901)
    client.delete_function_concurrency(FunctionName=name)
    assert client.get_account_settings()["AccountLimit"] == before


def test_zero_reserved_stops_a_function(client, name):
    create(client, name)
    client.put_function_concurrency(FunctionName=name, ReservedConcurrentExecutions=0)
    with refused("TooManyRequestsException", 429, "Rate Exceeded.") as seen:
        call(client, name)
    assert seen.response["Reason"] == "ReservedFunctionConcurrentInvocationLimitExceeded"
    assert seen.response["ResponseMetadata"]["HTTPHeaders"]["retry-after"]
    client.delete_function_concurrency(FunctionName=name)
    assert call(client, name, 1)["Payload"] == 1


def test_tags(client, name):
    arn = create(client, name, Tags={"a": "1", "b": "2"})["FunctionArn"]
    assert client.list_tags(Resource=arn)["Tags"] == {"a": "1", "b": "2"}
    client.tag_resource(Resource=arn, Tags={"b": "3", "c d": "é"})
    client.untag_resource(Resource=arn, TagKeys=["a", "missing"])
    assert client.list_tags(Resource=arn)["Tags"] == {"b": "3", "c d": "é"}
    with refused("ResourceNotFoundException", 404):
        client.list_tags(Resource=ARN + "missing")
    with refused("InvalidParameterValueException", 400):
        client.tag_resource(Resource=arn, Tags={f"k{n}": "v" for n in range(51)})
    with refused("InvalidParameterValueException", 400):
        client.tag_resource(Resource=arn, Tags={"aws:x": "v"})
    with refused("InvalidParameterValueException", 400):
        client.list_tags(Resource=arn + ":1")


def test_the_memory_tag_is_checked(client, name):
    arn = create(client, name, Tags={"gust:memory": "fresh"})["FunctionArn"]
    with refused("InvalidParameterValueException", 400, "gust:memory"):
        client.tag_resource(Resource=arn, Tags={"gust:memory": "sometimes"})
    with refused("InvalidParameterValueException", 400, "gust:memory"):
        create(client, name + "x", wait=False, Tags={"gust:memory": ""})


def test_settings_of_asynchronous_events(client, name):
    create(client, name)
    with refused("ResourceNotFoundException", 404):
        client.get_function_event_invoke_config(FunctionName=name)
    put = client.put_function_event_invoke_config(FunctionName=name, MaximumRetryAttempts=1)
    assert (put["MaximumRetryAttempts"], put["FunctionArn"]) == (1, f"{ARN}{name}:$LATEST")
    assert "MaximumEventAgeInSeconds" not in put and put["LastModified"].year >= 2024
    both = client.update_function_event_invoke_config(FunctionName=name, MaximumEventAgeInSeconds=60)
    assert (both["MaximumRetryAttempts"], both["MaximumEventAgeInSeconds"]) == (1, 60)
    reset = client.put_function_event_invoke_config(FunctionName=name, MaximumEventAgeInSeconds=61)
    assert "MaximumRetryAttempts" not in reset
    listed = client.list_function_event_invoke_configs(FunctionName=name)["FunctionEventInvokeConfigs"]
    assert len(listed) == 1
    with refused("ValidationException", 400):
        client.put_function_event_invoke_config(FunctionName=name, MaximumRetryAttempts=3)
    with refused("InvalidParameterValueException", 400, "Destinations"):
        destination = {"OnFailure": {"Destination": "arn:aws:sqs:us-east-1:000000000000:q"}}
        client.put_function_event_invoke_config(FunctionName=name, DestinationConfig=destination)
    client.delete_function_event_invoke_config(FunctionName=name)
    with refused("ResourceNotFoundException", 404):
        client.delete_function_event_invoke_config(FunctionName=name)


def test_the_account(client, name):
    before = client.get_account_settings()
    created = create(client, name)
    after = client.get_account_settings()
    limit = after["AccountLimit"]
    assert (limit["CodeSizeZipped"], limit["CodeSizeUnzipped"]) == (52_428_800, 262_144_000)
    assert (limit["ConcurrentExecutions"], limit["TotalCodeSize"]) == (1000, 80_530_636_800)
    assert after["AccountUsage"]["FunctionCount"] == before["AccountUsage"]["FunctionCount"] + 1
    added = after["AccountUsage"]["TotalCodeSize"] - before["AccountUsage"]["TotalCodeSize"]
    assert added == created["CodeSize"]


def test_what_tools_ask_in_passing(client, name):
    create(client, name)
    assert client.get_function_code_signing_config(FunctionName=name)["FunctionName"] == name
    assert client.get_runtime_management_config(FunctionName=name)["UpdateRuntimeOn"] == "Manual"
    assert client.get_function_recursion_config(FunctionName=name)["RecursiveLoop"] == "Allow"
    assert client.list_event_source_mappings(FunctionName=name)["EventSourceMappings"] == []
    assert client.list_function_url_configs(FunctionName=name)["FunctionUrlConfigs"] == []
    assert client.list_provisioned_concurrency_configs(FunctionName=name)["ProvisionedConcurrencyConfigs"] == []
    assert client.list_layers()["Layers"] == []
    with refused("ResourceNotFoundException", 404):
        client.get_policy(FunctionName=name)


@pytest.mark.parametrize(
    "operation, parameters",
    [
        ("add_permission", {"FunctionName": "f", "StatementId": "s", "Action": "lambda:*", "Principal": "p"}),
        ("create_function_url_config", {"FunctionName": "f", "AuthType": "NONE"}),
        ("create_event_source_mapping", {"FunctionName": "f"}),
        ("publish_layer_version", {"LayerName": "l", "Content": {"ZipFile": b"x"}}),
        ("invoke_with_response_stream", {"FunctionName": "f"}),
    ],
)
def test_operations_that_are_not_served_are_refused_by_name(client, operation, parameters):
    camel = client.meta.method_to_api_mapping[operation]
    with refused("NotImplementedException", 501, f"The operation {camel} is not supported"):
        getattr(client, operation)(**parameters)


def test_every_operation_of_the_model_is_known(client, server):
    """Each operation of botocore's model is served, or refused by its name: none is unknown."""
    model = client.meta.service_model
    for operation in model.operation_names:
        http = model.operation_model(operation).http
        path = http["requestUri"]
        for part in [part.split("}")[0] for part in path.split("{")[1:]]:
            path = path.replace("{%s}" % part, "missing")
        status, headers, body = raw(server, http["method"], path, b"{}")
        kind = headers["x-amzn-errortype"]
        assert kind != "UnknownOperationException", (operation, http, status, body)
        if kind == "NotImplementedException":
            assert operation.encode() in body, (operation, body)


def test_what_is_no_operation(server):
    for method, path, status in [("GET", "/", 404), ("PATCH", "/2015-03-31/functions", 405), ("GET", "/x/y", 404)]:
        answer = raw(server, method, path)
        assert answer[0] == status and answer[1]["x-amzn-errortype"] == "UnknownOperationException"
        assert answer[1]["x-amzn-requestid"]


def test_calls_go_on_while_a_function_is_changed(client, name):
    """What a call was placed for may be replaced before it gets there: it runs on what is there instead."""
    create(client, name)
    stop, counts, errors = threading.Event(), [], []

    def caller():
        try:
            for count in itertools.count():
                if stop.is_set():
                    return counts.append(count)
                assert call(client, name, count)["Payload"] == count
        except Exception as error:
            errors.append(error)

    callers = [threading.Thread(target=caller) for _ in range(3)]
    for thread in callers:
        thread.start()
    try:
        for number in range(8):
            variables = {"Variables": {"NUMBER": str(number)}}
            client.update_function_configuration(FunctionName=name, Environment=variables)
            updated(client, name)
    finally:
        stop.set()
        for thread in callers:
            thread.join()
    assert not errors
    assert min(counts) > 8
