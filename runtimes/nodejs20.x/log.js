// The console as Lambda has it: `time<TAB>request id<TAB>LEVEL<TAB>message`, each line in one write.
"use strict";

const fs = require("node:fs");
const { format } = require("node:util");
const errors = require("./errors.js");

const STDOUT = 1;

const LEVELS = ["TRACE", "DEBUG", "INFO", "WARN", "ERROR", "FATAL"];
const METHODS = { trace: "TRACE", debug: "DEBUG", log: "INFO", info: "INFO", warn: "WARN", error: "ERROR", fatal: "FATAL" };

// Kept, because a function may replace it in the module.
let { writeSync } = fs;

// Of the event in work; AWS writes this word while there is none.
let requestId = "undefined";

function setRequestId(id) {
  requestId = id;
}

// Gives what is written to another function of the same form; answers the one before.
function redirect(writer) {
  const before = writeSync;
  writeSync = writer;
  return before;
}

// Writes all of a text. A log that is full waits for its reader.
function write(text) {
  let rest = Buffer.from(text, "utf8");
  while (rest.length > 0) {
    try {
      rest = rest.subarray(writeSync(STDOUT, rest));
    } catch (error) {
      if (error.code !== "EAGAIN" && error.code !== "EINTR") return;
    }
  }
}

function line(level, message) {
  write(`${new Date().toISOString()}\t${requestId}\t${level}\t${message}\n`);
}

// Tells of an error with everything that it carries.
function error(title, value) {
  line("ERROR", `${title} \t${errors.describe(value)}`);
}

// Replaces the console's methods. Levels below AWS_LAMBDA_LOG_LEVEL are left out, as the function's environment says
// when it comes.
function install() {
  for (const [method, level] of Object.entries(METHODS)) {
    const rank = LEVELS.indexOf(level);
    console[method] = (...values) => {
      if (rank >= LEVELS.indexOf(process.env.AWS_LAMBDA_LOG_LEVEL?.toUpperCase())) line(level, format(...values));
    };
  }
}

module.exports = { error, install, redirect, setRequestId };
