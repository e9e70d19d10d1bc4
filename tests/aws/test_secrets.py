"""What a snapshot holds: nothing of an invocation, nothing of a caller."""

import base64
import hashlib
import json
import secrets

import pytest

import server as gust
from conftest import call, create, private

SOURCE = """
import hashlib, os

KEPT = []

def handler(event, context):
    answer = hashlib.sha256(event["secret"].encode()).hexdigest()
    KEPT.append((event["secret"], answer, context.client_context.custom["token"]))
    open("/tmp/kept", "w").write(event["secret"])
    print("the event said", event["secret"])
    return {"answer": answer, "times": len(KEPT)}
"""


def found_in(directory, canaries):
    """Names of the canaries that are in a file of a directory, and the bytes that were looked through."""
    found, looked_through = set(), 0
    for file in directory.rglob("*"):
        if not file.is_file():
            continue
        content = file.read_bytes()
        looked_through += len(content)
        found |= {name for name, canary in canaries.items() if canary.encode() in content}
    return found, looked_through


@pytest.mark.parametrize("memory", ["reuse", "fresh"])
def test_a_snapshot_has_no_event_no_answer_and_no_credential(data_dir, memory):
    event, token, key = (secrets.token_hex(20) for _ in range(3))
    canaries = {
        "event": event,
        "answer": hashlib.sha256(event.encode()).hexdigest(),
        "client context": token,
        "caller's secret key": key,
        "configuration": "canary-" + secrets.token_hex(20),
    }
    with gust.running(data_dir=data_dir) as server:
        if not server.has_snapshots:
            pytest.skip("SKIPPED: without micro-VMs there are no snapshots")
        client = server.client(secret=key, token=key)
        environment = {"Variables": {"CONFIGURED": canaries["configuration"]}}
        create(client, "holder", SOURCE, Environment=environment, Tags={"gust:memory": memory})
        context = base64.b64encode(json.dumps({"custom": {"token": token}}).encode()).decode()
        # Cold and warm, with layouts that are learned from the runs and written again on the runtime's base.
        for start in range(8):
            if start % 2 == 0:
                private(server, "functions/holder/evict", "POST")
            answered = call(client, "holder", {"secret": event}, ClientContext=context)
            assert answered["Payload"]["answer"] == canaries["answer"]
    # The server has ended, so that all it had to write is written.
    found, looked_through = found_in(data_dir / "node" / "snapshots", canaries)
    assert looked_through > 10 << 20, "there are no snapshots to look through"
    # That the configuration is found shows that the search finds things; it is part of what is initialised.
    assert found == {"configuration"}
