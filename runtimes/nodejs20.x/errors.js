// Errors as Lambda's Node.js runtimes tell them: in the answer, and in the log.
"use strict";

const { types } = require("node:util");

// An error of the function that the runtime itself has found.
class Fault extends Error {
  constructor(name, message) {
    super(message);
    Object.defineProperty(this, "name", { value: name, configurable: true, writable: true });
    // The runtime's own frames say nothing of the function.
    this.stack = `${name}: ${message}`;
  }

  // Keeps the trace of the error that it was found by.
  static from(name, error) {
    const fault = new Fault(name, String(error));
    if (typeof error?.stack === "string") fault.stack = `${name}: ${error.stack}`;
    return fault;
  }
}

class UnhandledPromiseRejection extends Fault {
  constructor(reason, promise) {
    super("Runtime.UnhandledPromiseRejection", String(reason));
    if (typeof reason?.stack === "string") this.stack = `${this.name}: ${reason.stack}`;
    this.reason = reason;
    this.promise = promise;
  }
}

function isError(value) {
  return types.isNativeError(value) || (typeof value === "object" && value !== null && "name" in value && "message" in value && "stack" in value);
}

const BROKEN = "callback called with Error argument, but there was a problem while retrieving one or more of its message, name, and stack";

// The error document of an answer.
function document(error) {
  try {
    if (isError(error)) {
      const trace = typeof error.stack === "string" ? error.stack.split("\n") : [];
      return JSON.stringify({ errorType: String(error.name), errorMessage: String(error.message), trace });
    }
    return JSON.stringify({ errorType: typeof error, errorMessage: String(error), trace: [] });
  } catch {
    return JSON.stringify({ errorType: "handled", errorMessage: BROKEN, trace: [] });
  }
}

// An error as one JSON object for the log, with what the function has put into it.
function describe(error) {
  try {
    if (!isError(error)) return JSON.stringify({ errorType: typeof error, errorMessage: String(error), stack: [] });
    const known = { errorType: error.name, errorMessage: error.message, code: error.code, ...error };
    if (typeof error.stack === "string") known.stack = error.stack.split("\n");
    return JSON.stringify(known, withErrors);
  } catch {
    return JSON.stringify({ errorType: "handled", errorMessage: BROKEN, stack: [] });
  }
}

// Errors inside others have no properties that JSON would show.
function withErrors(_key, value) {
  if (!types.isNativeError(value)) return value;
  return { errorType: value.name, errorMessage: value.message, code: value.code, ...value, stack: value.stack?.split?.("\n") };
}

// A handler's result as JSON.
function serialise(result) {
  try {
    return JSON.stringify(result === undefined ? null : result) ?? "null";
  } catch {
    throw new Error("Unable to stringify response body");
  }
}

module.exports = { Fault, UnhandledPromiseRejection, describe, document, serialise };
