"""Asynchronous calls: accepted, retried, given up, and never lost."""

import signal
import time
from textwrap import dedent

import server as gust
from conftest import call, create, private, refused

# Tells of each delivery in its log, which is where a test can see it; a function has no other way out.
TELL = dedent("""
    def handler(event, context):
        print("delivery", event["n"], context.aws_request_id)
        if event.get("fail"):
            raise Exception("on purpose")
""")


def deliveries(server, name):
    import json
    import urllib.request

    url = f"{server.endpoint}/_gust/v1/functions/{name}/logs?tail=1000"
    with urllib.request.urlopen(url, timeout=60) as response:
        lines = [json.loads(line)["message"] for line in response.read().splitlines()]
    return [line.split()[1:] for line in lines if line.startswith("delivery ")]


def wait_for(condition, timeout_s=60):
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        value = condition()
        if value:
            return value
        time.sleep(0.05)
    raise AssertionError("it did not happen in time")


def send(client, name, **event):
    response = call(client, name, event, InvocationType="Event")
    assert response["StatusCode"] == 202 and response["Payload"] is None
    assert "ExecutedVersion" not in response
    return response["ResponseMetadata"]["RequestId"]


def test_events_are_delivered(server, client, name):
    create(client, name, TELL)
    ids = {str(n): send(client, name, n=n) for n in range(5)}
    seen = wait_for(lambda: (found := deliveries(server, name)) and len(found) >= 5 and found)
    assert dict(seen) == ids
    wait_for(lambda: private(server, "stats")["events_waiting"] == 0)


def test_failed_events_are_tried_three_times(server, client, name):
    create(client, name, TELL)
    request_id = send(client, name, n=1, fail=True)
    seen = wait_for(lambda: (found := deliveries(server, name)) and len(found) >= 3 and found)
    assert seen == [["1", request_id]] * 3
    wait_for(lambda: private(server, "stats")["events_waiting"] == 0)
    assert len(deliveries(server, name)) == 3


def test_retries_can_be_fewer(server, client, name):
    create(client, name, TELL)
    client.put_function_event_invoke_config(FunctionName=name, MaximumRetryAttempts=0)
    send(client, name, n=1, fail=True)
    wait_for(lambda: len(deliveries(server, name)) == 1)
    wait_for(lambda: private(server, "stats")["events_waiting"] == 0)
    assert len(deliveries(server, name)) == 1


def test_throttled_events_wait(server, client, name):
    create(client, name, TELL)
    client.put_function_concurrency(FunctionName=name, ReservedConcurrentExecutions=0)
    send(client, name, n=1)
    wait_for(lambda: private(server, "stats")["events_waiting"] == 1)
    client.delete_function_concurrency(FunctionName=name)
    wait_for(lambda: deliveries(server, name) and private(server, "stats")["events_waiting"] == 0)


def test_the_old_form_works(client, name):
    create(client, name, TELL)
    assert client.invoke_async(FunctionName=name, InvokeArgs=b'{"n": 1}')["Status"] == 202


def test_what_cannot_be_delivered_is_not_accepted(client, name):
    create(client, name, TELL)
    with refused("ResourceNotFoundException", 404):
        call(client, name, {}, InvocationType="Event", Qualifier="3")
    with refused("InvalidRequestContentException", 400):
        client.invoke(FunctionName=name, Payload=b"{", InvocationType="Event")


def test_accepted_events_survive_kill_9(data_dir):
    server = gust.Server(data_dir=data_dir).start()
    try:
        client = server.client()
        create(client, "keeper", TELL)
        # Accepted, but not yet deliverable: so that none is delivered before the end.
        client.put_function_concurrency(FunctionName="keeper", ReservedConcurrentExecutions=0)
        ids = {str(n): send(client, "keeper", n=n) for n in range(20)}
        assert server.stop(signal.SIGKILL) == -signal.SIGKILL
        server.start()
        client = server.client()
        assert private(server, "stats")["events_waiting"] == 20
        client.delete_function_concurrency(FunctionName="keeper")
        seen = wait_for(lambda: (found := deliveries(server, "keeper")) and len(found) >= 20 and found)
        assert dict(seen) == ids
    finally:
        server.stop(signal.SIGKILL)
