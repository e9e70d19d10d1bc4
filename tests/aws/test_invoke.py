"""Calls of functions that do as they should."""

import base64
import concurrent.futures
import json
import re
from textwrap import dedent as strip

import server as gust
from conftest import call, create, make_zip, private, raw, refused, updated

UUID = r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"


def test_events_reach_the_handler_as_they_are(client, name):
    create(client, name)
    for event in (None, True, 0, 1.5, "é \U0001f600", [], {"a": {"b": [1, None]}}):
        response = call(client, name, event)
        assert response["Payload"] == event
        assert (response["StatusCode"], response.get("FunctionError")) == (200, None)
        assert response["ExecutedVersion"] == "$LATEST"
        assert re.fullmatch(UUID, response["ResponseMetadata"]["RequestId"])


def test_the_context(client, name):
    source = """
        import os
        def handler(event, context):
            return {
                "name": context.function_name, "version": context.function_version,
                "arn": context.invoked_function_arn, "memory": context.memory_limit_in_mb,
                "id": context.aws_request_id, "group": context.log_group_name,
                "left": context.get_remaining_time_in_millis(),
                "client": context.client_context and context.client_context.custom,
                "trace": os.environ.get("_X_AMZN_TRACE_ID"),
            }
    """
    create(client, name, strip(source), MemorySize=256, Timeout=5)
    context = base64.b64encode(json.dumps({"custom": {"k": "v"}}).encode()).decode()
    response = call(client, name, ClientContext=context)
    seen = response["Payload"]
    arn = f"arn:aws:lambda:{gust.REGION}:{gust.ACCOUNT}:function:{name}"
    assert (seen["name"], seen["version"], seen["arn"]) == (name, "$LATEST", arn)
    assert int(seen["memory"]) == 256 and seen["group"] == f"/aws/lambda/{name}"
    assert seen["id"] == response["ResponseMetadata"]["RequestId"]
    assert 0 < seen["left"] <= 5000 and seen["client"] == {"k": "v"}
    assert call(client, f"{name}:$LATEST")["Payload"]["arn"] == arn + ":$LATEST"


def test_the_environment(client, name):
    source = """
        import os
        def handler(event, context):
            return {key: os.environ.get(key) for key in event}
    """
    create(client, name, strip(source), Environment={"Variables": {"MINE": "é", "TZ": "Europe/Berlin"}})
    expected = {
        "MINE": "é", "TZ": "Europe/Berlin", "AWS_LAMBDA_FUNCTION_NAME": name, "AWS_LAMBDA_FUNCTION_VERSION": "$LATEST",
        "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": "128", "AWS_REGION": gust.REGION, "AWS_DEFAULT_REGION": gust.REGION,
        "AWS_EXECUTION_ENV": "AWS_Lambda_python3.11", "LAMBDA_TASK_ROOT": "/var/task", "LAMBDA_RUNTIME_DIR": "/var/runtime",
        "_HANDLER": "app.handler", "AWS_LAMBDA_LOG_GROUP_NAME": f"/aws/lambda/{name}",
    }
    assert call(client, name, list(expected))["Payload"] == expected


def test_log_tails(client, name):
    source = """
        import sys
        def handler(event, context):
            print("to standard output")
            print("x" * 10000 if event else "short", file=sys.stderr)
    """
    create(client, name, strip(source))
    response = call(client, name, 0, LogType="Tail")
    log = base64.b64decode(response["LogResult"]).decode()
    request_id = response["ResponseMetadata"]["RequestId"]
    number = r"\d+\.\d\d ms"
    assert re.fullmatch(
        rf"START RequestId: {request_id} Version: \$LATEST\nto standard output\nshort\nEND RequestId: {request_id}\n"
        rf"REPORT RequestId: {request_id}\tDuration: {number}\tBilled Duration: \d+ ms\tMemory Size: 128 MB\t"
        rf"Max Memory Used: \d+ MB\t((Init Duration: {number}\t)|(Restore Duration: {number}\tBilled Restore "
        rf"Duration: \d+ ms\t))?\n",
        log,
    ), log
    long = base64.b64decode(call(client, name, 1, LogType="Tail")["LogResult"])
    assert len(long) == 4096 and long.endswith(b"\t\n")
    assert "LogResult" not in call(client, name, 1)


def test_dry_runs_call_nothing(client, name):
    create(client, name, "def handler(event, context):\n    raise Exception\n")
    assert call(client, name, InvocationType="DryRun")["StatusCode"] == 204
    with refused("ResourceNotFoundException", 404):
        call(client, name, Qualifier="9", InvocationType="DryRun")


def test_bad_calls_are_refused(server, client, name):
    create(client, name)
    with refused("InvalidRequestContentException", 400, "Could not parse request body into json"):
        client.invoke(FunctionName=name, Payload=b"{no json")
    with refused("InvalidRequestContentException", 400):
        client.invoke(FunctionName=name, Payload=b'{"a": 1} trailing')
    with refused("InvalidRequestContentException", 400, "Client context"):
        client.invoke(FunctionName=name, ClientContext="no base64!")
    with refused("InvalidRequestContentException", 400, "Client context"):
        client.invoke(FunctionName=name, ClientContext=base64.b64encode(b'"' + b"x" * 4000 + b'"').decode())
    unchecked = server.client(parameter_validation=False)
    with refused("ValidationException", 400, "invocationType"):
        unchecked.invoke(FunctionName=name, InvocationType="Later")
    # No payload at all is an empty object.
    assert client.invoke(FunctionName=name)["Payload"].read() == b"{}"


def test_many_callers_get_their_own_answers(client, name):
    create(client, name)
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda n: call(client, name, n)["Payload"], range(200)))
    assert answers == list(range(200))


def test_memory_is_reused_or_fresh(client, name):
    source = """
        count = 0
        def handler(event, context):
            global count
            count += 1
            return count
    """
    arn = create(client, name, strip(source))["FunctionArn"]
    # A call that comes before the instance of the last one is ready again may meet another one.
    assert any(call(client, name)["Payload"] >= 3 for _ in range(50))
    client.tag_resource(Resource=arn, Tags={"gust:memory": "fresh"})
    for _ in range(600):
        if [call(client, name)["Payload"] for _ in range(3)] == [1, 1, 1]:
            break
    else:
        raise AssertionError("memory is still reused")


def test_an_old_version_serves_while_a_change_is_deployed(client, name):
    create(client, name)
    slow = "import time\ntime.sleep(2)\ndef handler(event, context):\n    return 'new'\n"
    client.update_function_code(FunctionName=name, ZipFile=make_zip({"app.py": slow}))
    assert call(client, name, "old")["Payload"] == "old"
    updated(client, name)
    assert call(client, name, "old")["Payload"] == "new"


def test_a_pending_function_cannot_be_called_yet(client, name):
    create(client, name, "import time\ntime.sleep(2)\ndef handler(event, context):\n    pass\n", wait=False)
    with refused("ResourceConflictException", 409, "currently in the following state: Pending"):
        call(client, name)
    client.get_waiter("function_active_v2").wait(FunctionName=name, WaiterConfig={"Delay": 0.1})
    call(client, name)


def test_calls_are_described(server, client, name):
    create(client, name)
    call(client, name)
    described = private(server, f"functions/{name}")
    assert described["configuration"]["FunctionName"] == name
    last = described["calls"][-1]
    assert last["start"] in ("warm", "armed", "restored", "booted") and last["total_ns"] > 0 and not last["error"]
    headers = {"x-gust-timings": "1"}
    _, answer, _ = raw(server, "POST", f"/2015-03-31/functions/{name}/invocations", b"{}", headers)
    timings = json.loads(answer["x-gust-timings"])
    assert timings["handler_ns"] >= 0 and timings["fetch_ns"] >= 0 and timings["scheduling_ns"] > 0


def test_evicted_instances_start_again(server, client, name):
    create(client, name)
    starts = []
    # An instance that was being armed when the others were ended may serve the next call.
    for _ in range(20):
        call(client, name)
        private(server, f"functions/{name}/evict", "POST")
        call(client, name)
        starts.append(private(server, f"functions/{name}")["calls"][-1]["start"])
        if starts[-1] in ("restored", "booted"):
            return
    raise AssertionError(starts)
