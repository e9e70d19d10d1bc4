// Runs what lies between an event and its answer before the base snapshot is taken, on a device that leads nowhere. What
// is compiled, allocated and looked up for the first time here is in every snapshot then, and in no call.
"use strict";

const crypto = require("node:crypto");
const { Device, EVENT } = require("./device.js");
const log = require("./log.js");

// Enough for the engine to have compiled what is used, not so much that it would begin to optimise.
const ROUNDS = 12;

const HEADER_BYTES = 16;
const EVENT_BODY = { key: "value", list: [1, 2.5, null, true], nested: { text: "\u00fc", empty: {} } };

// What handlers do first. Nothing here may use the stores of random bytes.
const HANDLERS = [
  async (event, context) => {
    console.log("event %s", JSON.stringify(event), event, [1, "a"], new Map([[1, new Date(0)]]), undefined);
    console.error("error", new TypeError("not meant"));
    const digest = crypto.createHash("sha256").update("text").update(Buffer.from([1])).digest("hex");
    crypto.createHmac("sha256", "key").update("text").digest("base64");
    return { statusCode: 200, headers: { "content-type": "text/plain" }, body: digest, id: context.awsRequestId, left: context.getRemainingTimeInMillis() };
  },
  (_event, context, callback) => {
    context.callbackWaitsForEmptyEventLoop = false;
    callback(null, { now: new Date().toISOString(), number: Math.floor(Math.random() * 10), environment: process.env.TZ });
  },
  async () => {
    throw new RangeError("not meant");
  },
  (event) => event.missing.property,
];

function message(body) {
  const meta = Buffer.from(`00000000-0000-0000-0000-000000000000\n${Date.now()}\narn\n\n`);
  const header = Buffer.alloc(HEADER_BYTES);
  header.writeUInt32LE(EVENT, 0);
  header.writeUInt32LE(meta.length, 4);
  header.writeUInt32LE(body.length, 8);
  return Buffer.concat([header, meta, body]);
}

// Calls the handlers above on a runtime that `makeRuntime` makes of a device, one after the other.
async function warmUp(makeRuntime) {
  const whole = message(Buffer.from(JSON.stringify(EVENT_BODY)));
  let answered = null;
  const files = {
    constants: { O_RDWR: 0, O_CLOEXEC: 0 },
    openSync: () => -1,
    readSync: (_fd, buffer) => whole.copy(buffer),
    writevSync: (_fd, parts) => parts.reduce((bytes, part) => bytes + part.length, 0),
    writeSync: (_fd, bytes) => bytes.length,
  };
  const runtime = makeRuntime(new Device(files, "warm-up"));
  runtime.iterate = () => answered();
  const writer = log.redirect((_fd, bytes) => bytes.length);
  try {
    for (let round = 0; round < ROUNDS; round += 1) {
      for (const handler of HANDLERS) {
        runtime.handler = handler;
        await new Promise((resolve) => {
          answered = resolve;
          runtime.next();
        });
      }
    }
  } finally {
    log.redirect(writer);
    log.setRequestId("undefined");
  }
  warmUpLibraries();
}

function warmUpLibraries() {
  new Intl.DateTimeFormat("en-US", { timeZone: "UTC" }).format(new Date(0));
  new Date(0).toLocaleString();
  JSON.parse(JSON.stringify({ a: "x".repeat(100), b: [[1]] }));
  new URL("https://example.com/path?name=value").searchParams.get("name");
  new TextDecoder().decode(new TextEncoder().encode("text"));
  structuredClone({ a: 1 });
  Buffer.from("dGV4dA==", "base64").toString("latin1");
}

module.exports = { warmUp };
