"""How many instances a function has: provisioned, bounded, and what calls are told that find none."""

import concurrent.futures
import time

import pytest

import server as gust
from conftest import call, create, private, refused

SLOW = "import time\ndef handler(event, context):\n    time.sleep(event)\n    return event\n"


def published(client, name, **options):
    create(client, name, **options)
    return client.publish_version(FunctionName=name)["Version"]


def until_ready(client, **parameters):
    for _ in range(600):
        config = client.get_provisioned_concurrency_config(**parameters)
        if config["Status"] == "READY":
            return config
        assert config["Status"] == "IN_PROGRESS"
        time.sleep(0.05)
    raise AssertionError(config)


def test_provisioned_concurrency(client, server, name):
    version = published(client, name)
    with refused("ProvisionedConcurrencyConfigNotFoundException", 404, "No Provisioned Concurrency Config found"):
        client.get_provisioned_concurrency_config(FunctionName=name, Qualifier=version)
    put = client.put_provisioned_concurrency_config(
        FunctionName=name, Qualifier=version, ProvisionedConcurrentExecutions=2)
    assert put["ResponseMetadata"]["HTTPStatusCode"] == 202
    assert put["RequestedProvisionedConcurrentExecutions"] == 2
    ready = until_ready(client, FunctionName=name, Qualifier=version)
    assert ready["AllocatedProvisionedConcurrentExecutions"] == 2
    assert private(server, "stats")["fleet"]["regular"] >= 2
    # What is provisioned serves the calls of its version: none of them is restored or booted for.
    seen = set()
    for n in range(5):
        assert call(client, name, n, Qualifier=version)["Payload"] == n
        last = private(server, f"functions/{name}?Qualifier={version}")["calls"][-1]
        assert last["class"] == "regular"
        seen.add(last["instance"])
    assert len(seen) <= 2
    listed = client.list_provisioned_concurrency_configs(FunctionName=name)["ProvisionedConcurrencyConfigs"]
    assert [config["FunctionArn"].rsplit(":", 1)[1] for config in listed] == [version]
    client.delete_provisioned_concurrency_config(FunctionName=name, Qualifier=version)
    assert client.list_provisioned_concurrency_configs(FunctionName=name)["ProvisionedConcurrencyConfigs"] == []
    with refused("ProvisionedConcurrencyConfigNotFoundException", 404):
        client.delete_provisioned_concurrency_config(FunctionName=name, Qualifier=version)


def test_provisioned_concurrency_of_an_alias(client, name):
    version = published(client, name)
    client.create_alias(FunctionName=name, Name="live", FunctionVersion=version)
    put = {"FunctionName": name, "ProvisionedConcurrentExecutions": 1}
    client.put_provisioned_concurrency_config(Qualifier="live", **put)
    until_ready(client, FunctionName=name, Qualifier="live")
    with refused("ResourceConflictException", 409, "already Provisioned version"):
        client.put_provisioned_concurrency_config(Qualifier=version, **put)
    client.delete_alias(FunctionName=name, Name="live")
    assert client.list_provisioned_concurrency_configs(FunctionName=name)["ProvisionedConcurrencyConfigs"] == []


def test_what_cannot_be_provisioned(server, client, name):
    version = published(client, name)
    unchecked = server.client(parameter_validation=False)
    put = {"FunctionName": name, "Qualifier": version}
    with refused("ValidationException", 400, "provisionedConcurrentExecutions"):
        unchecked.put_provisioned_concurrency_config(**put, ProvisionedConcurrentExecutions=0)
    with refused("InvalidParameterValueException", 400, "unpublished function versions"):
        client.put_provisioned_concurrency_config(
            FunctionName=name, Qualifier="$LATEST", ProvisionedConcurrentExecutions=1)
    with refused("ResourceNotFoundException", 404):
        client.put_provisioned_concurrency_config(
            FunctionName=name, Qualifier="77", ProvisionedConcurrentExecutions=1)
    with refused("InvalidParameterValueException", 400, "below its minimum value of [100]"):
        client.put_provisioned_concurrency_config(**put, ProvisionedConcurrentExecutions=901)
    client.put_function_concurrency(FunctionName=name, ReservedConcurrentExecutions=1)
    with refused("InvalidParameterValueException", 400, "reservedConcurrentExecution"):
        client.put_provisioned_concurrency_config(**put, ProvisionedConcurrentExecutions=2)


def test_tags_that_mean_something_are_checked(client, name):
    arn = create(client, name, Tags={"gust:instances": "2", "gust:concurrency": "1", "gust:tenant": "a"})["FunctionArn"]
    for tags, message in [
        ({"gust:instances": "0"}, "no number of instances"),
        ({"gust:concurrency": "8"}, "takes one event at a time"),
        ({"gust:concurrency": "many"}, "no number of calls"),
        ({"gust:memmory": "fresh"}, "gust:memmory: there is none of this name"),
    ]:
        with refused("InvalidParameterValueException", 400, message):
            client.tag_resource(Resource=arn, Tags=tags)


def test_calls_wait_for_an_instance_and_no_longer_than_they_may():
    with gust.running("--queue-timeout", "1") as server:
        client = server.client()
        create(client, "slow", SLOW, Timeout=30, Tags={"gust:instances": "1"})
        with concurrent.futures.ThreadPoolExecutor(3) as pool:
            # The second waits for the first's instance; the third for longer than it may.
            first = pool.submit(call, client, "slow", 0.5)
            assert [call(client, "slow", 0)["Payload"], first.result()["Payload"]] == [0, 0.5]
            held = pool.submit(call, client, "slow", 4)
            while private(server, "stats")["fleet"]["running"] == 0:
                time.sleep(0.01)
            with refused("TooManyRequestsException", 429, "No instance came free in time") as seen:
                call(client, "slow", 0)
            assert seen.response["Reason"] == "ConcurrentInvocationLimitExceeded"
            assert int(seen.response["ResponseMetadata"]["HTTPHeaders"]["retry-after"]) >= 1
            assert held.result()["Payload"] == 4


@pytest.mark.parametrize("mode", ["dual", "sync", "async", "dirigent"])
def test_every_mode_answers(mode):
    with gust.running("--mode", mode) as server:
        client = server.client()
        create(client, "echo")
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            assert list(pool.map(lambda n: call(client, "echo", n)["Payload"], range(20))) == list(range(20))
        classes = {shown["class"] for shown in private(server, "functions/echo")["calls"]}
        assert classes <= {"regular", "emergency"} if mode == "dual" else classes == {"regular"}


def test_an_initialisation_that_fails_is_told_in_every_mode():
    for mode in ["dual", "sync"]:
        with gust.running("--mode", mode) as server:
            client = server.client()
            create(client, "broken", "raise ValueError('at init')")
            answer = call(client, "broken")
            assert answer["FunctionError"] == "Unhandled" and "at init" in answer["Payload"]["errorMessage"]
