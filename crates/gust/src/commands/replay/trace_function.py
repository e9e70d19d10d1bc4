"""The function of a replay: takes as long and touches as much memory as its event asks for.

What memory costs is part of the time asked for, but for a fixed amount of work (spin): how much of a time on the clock has been work is
not known where processors are shared. Memory is kept between calls: an instance that is used again has it already. A call that has a
number says so when it has run to its end.
"""

import itertools
import time

PAGE = 4096

memory = bytearray()


def touch(mib):
    """Has this much memory, every page of it written."""
    global memory
    size = mib << 20
    if len(memory) < size:
        memory = bytearray(size)
        memory[::PAGE] = b"\1" * (size // PAGE)


def spin(rounds):
    """A fixed amount of work."""
    value = 1
    for _ in itertools.repeat(None, rounds):
        value = (value * 1103515245 + 12345) & 0x7FFFFFFF
    return value


def handler(event, context):
    began = time.perf_counter_ns()
    wanted = event["ns"]
    touch(event["memory_mib"])
    touched = time.perf_counter_ns() - began
    if event["work"] == "spin":
        spin(event["rounds"])
    elif event["work"] == "wall":
        while time.perf_counter_ns() - began < wanted:
            spin(100)
    elif event["work"] == "wait":
        time.sleep(max(0, wanted - (time.perf_counter_ns() - began)) / 1e9)
    else:
        raise ValueError(f"there is no work {event['work']!r}")
    took = time.perf_counter_ns() - began
    if "number" in event:
        print(f"ran {event['number']}", flush=True)
    return {"ns": took, "touch_ns": touched}
