// One event: the context that its handler gets, and the one answer that becomes of it.
//
//     running ── promise settles, done, succeed, fail, callback with an error, throw ──> answered
//        └────── callback with a result ──> waits for an empty event loop, unless the context says otherwise ──> answered
//
// A handler that leaves the event loop empty without an answer answers null.
"use strict";

const { RESPONSE, ERROR } = require("./device.js");
const errors = require("./errors.js");
const log = require("./log.js");
const { ResponseStream } = require("./streaming.js");

// Event and context.
const ARGUMENTS_WITHOUT_CALLBACK = 2;

const now = process.hrtime.bigint;

class Invocation {
  constructor(runtime, event) {
    this.runtime = runtime;
    this.event = event;
    this.isAnswered = false;
    this.waitsForEmptyLoop = true;
    // What is answered when the event loop is empty.
    this.resultWhenEmpty = null;
    this.startedNs = now();
  }

  spentNs() {
    return now() - this.startedNs;
  }

  // Calls the handler.
  run(handler, body, streams) {
    const callback = (error, result) => this.callback(error, result);
    try {
      const event = JSON.parse(body.utf8Slice(0, body.length));
      const context = this.context();
      this.startedNs = now();
      if (streams) this.stream(handler, event, context);
      else this.settle(handler(event, context, callback), handler.length <= ARGUMENTS_WITHOUT_CALLBACK);
    } catch (error) {
      this.fail(error);
    }
  }

  settle(result, takesNoCallback) {
    if (typeof result?.then === "function") {
      result.then(
        (value) => this.done(null, value),
        (error) => this.fail(error),
      );
    } else if (takesNoCallback && result !== undefined) {
      // AWS answers null here. A function that can answer in no other way means its result.
      this.resultWhenEmpty = result;
    }
  }

  stream(handler, event, context) {
    const stream = new ResponseStream();
    stream.once("finish", () => this.answer(RESPONSE, stream.body()));
    stream.once("error", (error) => this.fail(error));
    const result = handler(event, stream, context);
    if (typeof result?.then !== "function") return this.fail(new errors.Fault("Runtime.StreamingHandlerNotAsync", "Streaming does not support non-async handlers."));
    // A handler that returns without ending its stream has said all that it has to say.
    result.then(
      () => stream.writableEnded || stream.end(),
      (error) => this.fail(error),
    );
  }

  context() {
    const invocation = this;
    const { event } = this;
    const context = {
      get callbackWaitsForEmptyEventLoop() {
        return invocation.waitsForEmptyLoop;
      },
      set callbackWaitsForEmptyEventLoop(value) {
        invocation.waitsForEmptyLoop = value;
      },
      succeed: (result) => this.done(null, result),
      fail: (error) => this.fail(error),
      done: (error, result) => this.done(error, result),
      functionVersion: process.env.AWS_LAMBDA_FUNCTION_VERSION,
      functionName: process.env.AWS_LAMBDA_FUNCTION_NAME,
      memoryLimitInMB: process.env.AWS_LAMBDA_FUNCTION_MEMORY_SIZE,
      logGroupName: process.env.AWS_LAMBDA_LOG_GROUP_NAME,
      logStreamName: process.env.AWS_LAMBDA_LOG_STREAM_NAME,
      clientContext: event.clientContext ? JSON.parse(event.clientContext) : undefined,
      identity: undefined,
      invokedFunctionArn: event.functionArn,
      awsRequestId: event.requestId,
      getRemainingTimeInMillis: () => event.deadlineMs - Date.now(),
    };
    return context;
  }

  callback(error, result) {
    if (this.isAnswered) return this.tooLate();
    if (error !== undefined && error !== null) return this.fail(error);
    if (!this.waitsForEmptyLoop) return this.done(null, result);
    this.resultWhenEmpty = result;
  }

  // The event loop is empty: nothing that is left could change the answer.
  loopIsEmpty() {
    this.done(null, this.resultWhenEmpty);
  }

  done(error, result) {
    if (error !== undefined && error !== null) return this.fail(error);
    if (this.isAnswered) return this.tooLate();
    let body;
    try {
      body = errors.serialise(result);
    } catch (failure) {
      return this.fail(failure);
    }
    this.answer(RESPONSE, body);
  }

  fail(error) {
    if (this.isAnswered) return this.tooLate();
    const known = error === undefined || error === null ? "handled" : error;
    log.error("Invoke Error", known);
    this.answer(ERROR, errors.document(known));
  }

  answer(kind, body) {
    if (this.isAnswered) return;
    const spentNs = this.spentNs();
    this.isAnswered = true;
    this.runtime.answer(kind, body, spentNs);
  }

  tooLate() {
    console.error("Invocation has already been reported as done. Cannot call complete more than once per invocation.");
  }
}

module.exports = { Invocation };
