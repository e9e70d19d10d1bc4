"""Threads: locks, conditions, queues, thread-local data, a pool, and many of them one after the other."""

import queue
import threading
from concurrent.futures import ThreadPoolExecutor

total, lock = 0, threading.Lock()
local = threading.local()


def add(times):
    global total
    local.mine = 0
    for _ in range(times):
        with lock:
            total += 1
        local.mine += 1
    assert local.mine == times


threads = [threading.Thread(target=add, args=(2000,)) for _ in range(16)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print("added", total)

work, done = queue.Queue(maxsize=4), queue.Queue()


def worker():
    while (item := work.get()) is not None:
        done.put(item * item)


workers = [threading.Thread(target=worker) for _ in range(4)]
for thread in workers:
    thread.start()
for number in range(200):
    work.put(number)
for _ in workers:
    work.put(None)
for thread in workers:
    thread.join()
print("squares", sum(done.get() for _ in range(200)))

# Each thread has a stack of 8 MiB that is taken away when it ends.
for _ in range(60):
    bunch = [threading.Thread(target=lambda: bytearray(100_000)) for _ in range(12)]
    for thread in bunch:
        thread.start()
    for thread in bunch:
        thread.join()
print("alive", threading.active_count())

with ThreadPoolExecutor(8) as pool:
    print("pool", sum(pool.map(lambda n: sum(range(n)), range(300))))

barrier, seen = threading.Barrier(5), []


def meet(number):
    for _ in range(10):
        barrier.wait(30)
    seen.append(number)


bunch = [threading.Thread(target=meet, args=(n,)) for n in range(5)]
for thread in bunch:
    thread.start()
for thread in bunch:
    thread.join()
print("met", sorted(seen))
