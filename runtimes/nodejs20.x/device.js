// The other end: messages in, answers out (docs/runtime-device.md).
"use strict";

const EVENT = 2;
const RESPONSE = 1;
const ERROR = 2;
const INIT_ERROR = 3;
const READY = 4;
const LAST_ERROR = 5;
const AFTER_RESTORE = 1;

const HEADER_BYTES = 16;

// Room for one message without an allocation; longer ones get a buffer of their own.
const BUFFER_BYTES = 64 << 10;

// Fields of an event before the last, without and with those of a restore.
const FIELDS = 4;
const RENEWAL_FIELDS = 2;

class Device {
  constructor(fs, name) {
    // Kept, because a function may replace them in the module.
    this.readSync = fs.readSync;
    this.writevSync = fs.writevSync;
    this.writeSync = fs.writeSync;
    this.isSocket = name.startsWith("fd:");
    this.fd = this.isSocket ? Number(name.slice(3)) : fs.openSync(name, fs.constants.O_RDWR | fs.constants.O_CLOEXEC);
    this.buffer = Buffer.allocUnsafeSlow(BUFFER_BYTES);
    this.header = Buffer.alloc(HEADER_BYTES);
  }

  // Takes the next message. Its body lives until the next wait.
  wait() {
    let buffer = this.buffer;
    let got = this.read(buffer, 0, BUFFER_BYTES);
    if (got === 0) process.exit(0);
    got = this.readOn(buffer, got, HEADER_BYTES);
    const kind = buffer.readUInt32LE(0);
    const bodyAt = HEADER_BYTES + buffer.readUInt32LE(4);
    const end = bodyAt + buffer.readUInt32LE(8);
    const flags = buffer.readUInt32LE(12);
    if (end > BUFFER_BYTES) {
      buffer = Buffer.allocUnsafeSlow(end);
      this.buffer.copy(buffer, 0, 0, got);
    }
    this.readOn(buffer, got, end);
    const meta = buffer.utf8Slice(HEADER_BYTES, bodyAt);
    const message = { kind, meta, event: null, renewal: null, body: buffer.subarray(bodyAt, end) };
    if (kind === EVENT) parseEvent(message, (flags & AFTER_RESTORE) !== 0);
    return message;
  }

  read(buffer, at, end) {
    for (;;) {
      try {
        return this.readSync(this.fd, buffer, at, end - at, null);
      } catch (error) {
        if (error.code !== "EINTR" && error.code !== "EAGAIN") throw error;
      }
    }
  }

  // Reads until `end` bytes are there. The end of the stream is the end of the runtime.
  readOn(buffer, got, end) {
    while (got < end) {
      const more = this.read(buffer, got, Math.min(end, buffer.length));
      if (more === 0) process.exit(0);
      got += more;
    }
    return got;
  }

  // Gives an answer, in one write where the other end takes it whole.
  answer(kind, body, handlerNs) {
    const bytes = Buffer.isBuffer(body) ? body : Buffer.from(body, "utf8");
    const header = this.header;
    header.writeUInt32LE(kind, 0);
    header.writeUInt32LE(bytes.length, 4);
    header.writeBigUInt64LE(handlerNs, 8);
    let sent = this.writevSync(this.fd, [header, bytes]);
    const total = HEADER_BYTES + bytes.length;
    if (sent === total) return;
    const whole = Buffer.concat([header, bytes]);
    while (sent < total) sent += this.writeSync(this.fd, whole, sent, total - sent);
  }

  // Tells a socket's other end, which cannot see a read, that the next wait has begun.
  announce() {
    if (this.isSocket) this.answer(READY, "", 0n);
  }
}

function parseEvent(message, restored) {
  const fields = [];
  let at = 0;
  for (let left = restored ? FIELDS + RENEWAL_FIELDS : FIELDS; left > 0; left -= 1) {
    const end = message.meta.indexOf("\n", at);
    fields.push(message.meta.slice(at, end));
    at = end + 1;
  }
  const [requestId, deadline, functionArn, traceId, entropy, changes] = fields;
  const clientContext = message.meta.slice(at);
  message.event = { requestId, deadlineMs: Number(deadline), functionArn, traceId, clientContext };
  if (restored) message.renewal = { entropy: Buffer.from(entropy, "hex"), changes };
}

module.exports = { Device, EVENT, RESPONSE, ERROR, INIT_ERROR, LAST_ERROR };
