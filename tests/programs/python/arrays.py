"""numpy: linear algebra on several threads, threads of its own, and files in memory."""

import threading

import numpy as np

generator = np.random.default_rng(7)
left, right = generator.random((400, 400)), generator.random((400, 400))
print("trace", f"{np.trace(left @ right):.6f}")
print("solve", bool(np.allclose(left @ np.linalg.solve(left, right), right)))
print("singular", f"{np.linalg.svd(left, compute_uv=False)[0]:.6f}")
print("fft", f"{np.abs(np.fft.rfft(np.arange(100_000.0))[1]):.3f}")

sums = {}


def multiply(number):
    for _ in range(5):
        sums[number] = float((left @ right).sum()) + number


threads = [threading.Thread(target=multiply, args=(n,)) for n in range(6)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print("threads", len(sums), f"{sums[5] - sums[0]:.6f}")

mapped = np.memmap("/tmp/numbers", dtype="int64", mode="w+", shape=(1000, 100))
mapped[:] = np.arange(100_000).reshape(1000, 100)
mapped.flush()
del mapped
print("mapped", int(np.memmap("/tmp/numbers", dtype="int64", mode="r", shape=(1000, 100)).sum()))
print("sorted", bool((np.diff(np.sort(generator.integers(0, 1 << 40, 500_000))) >= 0).all()))
