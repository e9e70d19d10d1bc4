"""Calls a handler in this very process, and takes the time of its calls; as host.py, for what is warm."""

import json
import sys
from time import perf_counter_ns as now

sys.path.insert(0, sys.argv[1])
from app import handler

rounds = int(sys.argv[2])
events = [sys.stdin.readline(), sys.stdin.readline()]
answers = [json.loads(json.dumps(handler(json.loads(event), None))) for event in events]
warm = []
for n in range(rounds):
    began = now()
    answer = json.dumps(handler(json.loads(events[n % 2]), None))
    warm.append(now() - began)
    assert json.loads(answer) == answers[n % 2]
print(json.dumps({"samples": {"warm": warm}, "answers": answers}))
