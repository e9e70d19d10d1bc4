"""Runs a component under wasmtime, and takes the time of its calls.

    host.py COMPONENT ROUNDS < EVENTS

Two events come on lines. Written is one line of JSON: nanoseconds of each sample, and the answers to both events. Cold is a new
store, instance and call; the component is compiled once before, and its memory is mapped copy-on-write, which is
wasmtime's default.
"""

import json
import sys
from time import perf_counter_ns as now

from wasmtime import Config, Engine, Store, WasiConfig
from wasmtime.component import Component, Linker

path, rounds = sys.argv[1], int(sys.argv[2])
events = [sys.stdin.readline(), sys.stdin.readline()]

config = Config()
config.wasm_component_model = True
engine = Engine(config)
began = now()
component = Component.from_file(engine, path)
compiled = now() - began
linker = Linker(engine)
linker.add_wasip2()
answers = [None, None]


def check(n, answer):
    answer = json.loads(answer)
    if answers[n % 2] is None:
        answers[n % 2] = answer
    assert answers[n % 2] == answer, f"answered {answer}, and before {answers[n % 2]}"


def instance():
    store = Store(engine)
    store.set_wasi(WasiConfig())
    return store, linker.instantiate(store, component)


instantiated, cold = [], []
for n in range(rounds):
    began = now()
    store, made = instance()
    ready = now()
    answer = made.get_func(store, "call")(store, events[n % 2])
    cold.append(now() - began)
    instantiated.append(ready - began)
    check(n, answer)
    del store, made

store, made = instance()
call, nothing = made.get_func(store, "call"), made.get_func(store, "nothing")
check(0, call(store, events[0]))
warm, empty = [], []
for n in range(rounds):
    began = now()
    answer = call(store, events[n % 2])
    warm.append(now() - began)
    check(n, answer)
for n in range(rounds):
    began = now()
    nothing(store)
    empty.append(now() - began)
samples = {"compiled": [compiled], "instantiated": instantiated, "cold": cold, "warm": warm, "empty": empty}
print(json.dumps({"samples": samples, "answers": answers}))
