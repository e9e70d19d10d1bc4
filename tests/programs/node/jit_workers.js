// The compilers of V8 at work: hot loops, deoptimisation, regular expressions, WebAssembly; worker threads that share memory.
"use strict";
const { Worker, isMainThread, workerData, parentPort } = require("node:worker_threads");

function primes(limit) {
  const sieve = new Uint8Array(limit);
  let count = 0;
  for (let n = 2; n < limit; n++) {
    if (sieve[n]) continue;
    count++;
    for (let m = n * n; m < limit; m += n) sieve[m] = 1;
  }
  return count;
}

if (!isMainThread) {
  const shared = new Int32Array(workerData.shared);
  for (let n = 0; n < 5000; n++) Atomics.add(shared, 0, 1);
  Atomics.notify(shared, 0);
  parentPort.postMessage({ number: workerData.number, primes: primes(100_000 + workerData.number) });
} else {
  const shared = new SharedArrayBuffer(8);
  const workers = Array.from({ length: 6 }, (_, number) => new Promise((resolve, reject) => {
    new Worker(__filename, { workerData: { shared, number } }).on("message", resolve).on("error", reject);
  }));
  let mixed = 0;
  const shapes = [{ a: 1 }, { b: 2, a: 3 }, { c: 1, d: 2, a: 5 }, "text", 7n];
  for (let n = 0; n < 2_000_000; n++) {
    const shape = shapes[n % (n > 1_500_000 ? 5 : 2)];
    mixed += typeof shape === "object" ? shape.a : String(shape).length;
  }
  console.log("mixed", mixed);
  console.log("primes", primes(2_000_000));
  console.log("text", "abc123def456".repeat(10_000).match(/[a-z]+(\d)\d*/g).length);
  const add = new Uint8Array([0, 97, 115, 109, 1, 0, 0, 0, 1, 7, 1, 96, 2, 127, 127, 1, 127, 3, 2, 1, 0, 7, 7, 1, 3, 97, 100, 100, 0, 0, 10, 9, 1, 7, 0, 32, 0, 32, 1, 106, 11]);
  WebAssembly.instantiate(add).then(({ instance }) => {
    let sum = 0;
    for (let n = 0; n < 1_000_000; n++) sum = instance.exports.add(sum, n);
    console.log("wasm", sum);
    return Promise.all(workers);
  }).then((answers) => {
    console.log("workers", JSON.stringify(answers), Atomics.load(new Int32Array(shared), 0));
    const kept = [];
    for (let n = 0; n < 300; n++) kept[n % 20] = new Array(50_000).fill(n);
    console.log("collected", kept.length, process.memoryUsage().heapUsed > 0);
  });
}
