// The Node.js runtime: loads a function, then answers events until the sandbox ends.
//
// It speaks the protocol of docs/runtime-device.md: one read takes an event, one writev gives the answer.
//
//     start -> wait for the function -> import the handler -> wait for an event -> call, answer -> wait for an event ...
//              (base snapshot here)                           (snapshot here)
//
// The wait is a blocking read: between two events nothing of the function runs, as in a frozen sandbox of AWS. What the
// function has left in the event loop goes on with the next event. Errors and log lines have the shapes, types and
// texts of AWS Lambda's Node.js runtimes.
"use strict";

const fs = require("node:fs");
const { Module, builtinModules } = require("node:module");
const v8 = require("node:v8");
const vm = require("node:vm");

const { Device, EVENT, INIT_ERROR, LAST_ERROR } = require("./device.js");
const { Invocation } = require("./invocation.js");
const { loadHandler, preloadModules } = require("./loader.js");
const errors = require("./errors.js");
const log = require("./log.js");
const randomness = require("./randomness.js");
const { installStreaming } = require("./streaming.js");
const { warmUp } = require("./warmup.js");

// Exit codes of AWS's runtime after an error that no one has caught.
const EXIT_UNCAUGHT = 129;
const EXIT_UNHANDLED = 128;
const EXIT_RESTORE_FAILED = 65;

// How much the heap may grow between two full collections, in percent of what is alive: the less memory the function has,
// the less. The engine was started before that was known, so its own bound on the heap is of no help.
const GROWTH_PERCENT_MIN = 20;
const GROWTH_PERCENT_MAX = 300;
const MIB_A_PERCENT = 16;

// What a snapshot keeps, so that no function has to load it: the modules of Node.js that programs can ask for.
const NOT_PRELOADED = new Set(["cluster", "inspector", "inspector/promises", "repl", "sys", "punycode", "trace_events", "wasi"]);

const collectGarbage = exposedCollector();

class Runtime {
  constructor(device) {
    this.device = device;
    this.invocation = null;
    this.handler = null;
    this.traceId = "";
    this.iterate = () => this.next();
    this.onEmptyLoop = () => this.invocation?.loopIsEmpty();
  }

  // Loads the function; the first wait for an event follows.
  async start() {
    const { kind, meta } = this.device.wait();
    if (kind === EVENT) throw new Error("an event came before the function");
    const spec = JSON.parse(meta);
    applyEnvironment(spec.environment);
    Module._initPaths();
    try {
      changeDirectory(spec.task_root);
      await preloadModules(process.env.NODE_OPTIONS, spec.task_root);
      this.handler = await loadHandler(spec.task_root, spec.handler);
    } catch (error) {
      this.failInitialisation(error, 1);
    }
    this.streams = this.handler[installStreaming.MARK] === true;
    process.on("beforeExit", this.onEmptyLoop);
    v8.setFlagsFromString(`--heap-growing-percent=${growthPercent()}`);
    // What the function needed only to load is not carried from one instance to the next, and growth counts from here.
    collectGarbage();
    this.device.announce();
    // A turn of the loop, so that what loading has left there runs before the snapshot and not after each restore.
    setImmediate(this.iterate);
  }

  // Takes an event and calls the handler.
  next() {
    const message = this.device.wait();
    const { event, renewal } = message;
    log.setRequestId(event.requestId);
    if (renewal !== null) this.renew(event.requestId, renewal);
    if (event.traceId !== this.traceId) {
      this.traceId = event.traceId;
      if (event.traceId) process.env._X_AMZN_TRACE_ID = event.traceId;
      else delete process.env._X_AMZN_TRACE_ID;
    }
    this.invocation = new Invocation(this, event);
    this.invocation.run(this.handler, message.body, this.streams);
  }

  // Gives the answer to the event in work, and goes on with the next one once the loop has turned.
  answer(kind, body, handlerNs) {
    this.invocation = null;
    this.device.answer(kind, body, handlerNs);
    setImmediate(this.iterate);
  }

  // Makes this instance different from the others that were restored from the same snapshot.
  renew(requestId, { entropy, changes }) {
    try {
      randomness.reseed(entropy);
      applyEnvironment(JSON.parse(changes));
      process.emit("gust:restore");
    } catch (error) {
      log.error("Restore Error", error);
      this.device.answer(LAST_ERROR, errors.document(error), 0n);
      process.exit(EXIT_RESTORE_FAILED);
    }
  }

  failInitialisation(error, status) {
    log.error(error instanceof errors.Fault ? "Uncaught Exception" : "Init Error", error);
    this.device.answer(INIT_ERROR, errors.document(error), 0n);
    process.exit(status);
  }

  // An error that no one has caught ends the process, after the event in work has been answered with it.
  uncaught(title, error, status) {
    log.error(title, error);
    if (this.handler === null) this.device.answer(INIT_ERROR, errors.document(error), 0n);
    else if (this.invocation !== null) this.device.answer(LAST_ERROR, errors.document(error), this.invocation.spentNs());
    process.exit(status);
  }
}

// The collector, without leaving it where functions would see it: only contexts made meanwhile have it.
function exposedCollector() {
  v8.setFlagsFromString("--expose-gc");
  const collector = vm.runInNewContext("gc");
  v8.setFlagsFromString("--no-expose-gc");
  return collector;
}

function growthPercent() {
  const memoryMib = Number(process.env.AWS_LAMBDA_FUNCTION_MEMORY_SIZE) || 128;
  const percent = Math.round(memoryMib / MIB_A_PERCENT);
  return Math.min(GROWTH_PERCENT_MAX, Math.max(GROWTH_PERCENT_MIN, percent));
}

function applyEnvironment(changes) {
  for (const [name, value] of Object.entries(changes)) process.env[name] = value;
}

function changeDirectory(taskRoot) {
  try {
    process.chdir(taskRoot);
  } catch {
    // A package without files may have no directory; the import that follows says so in Lambda's words.
  }
}

function preload() {
  for (const name of builtinModules) {
    if (!name.startsWith("_") && !NOT_PRELOADED.has(name)) require(name);
  }
  // Made when they are first asked for.
  void [globalThis.fetch, globalThis.crypto, globalThis.Blob, globalThis.WebSocket, new URL("http://a/b?c"), Intl.DateTimeFormat()];
}

async function main() {
  const name = process.env.GUST_DEVICE;
  delete process.env.GUST_DEVICE;
  const runtime = new Runtime(new Device(fs, name));
  process.on("uncaughtException", (error) => runtime.uncaught("Uncaught Exception", error, EXIT_UNCAUGHT));
  process.on("unhandledRejection", (reason, promise) => {
    const error = new errors.UnhandledPromiseRejection(reason, promise);
    runtime.uncaught("Unhandled Promise Rejection", error, EXIT_UNHANDLED);
  });
  log.install();
  randomness.install();
  installStreaming();
  if (!runtime.device.isSocket) {
    // Compiled once for all instances; the collections below would drop what has not run for a while.
    v8.setFlagsFromString("--no-flush-bytecode");
    preload();
    await warmUp((device) => new Runtime(device));
    collectGarbage();
  }
  runtime.device.announce();
  runtime.start();
}

main();
