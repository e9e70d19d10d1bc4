// Handlers that stream their response. The platform takes responses whole, so what is written is kept until the end;
// the caller sees the same bytes.
"use strict";

const { Writable } = require("node:stream");

const MARK = Symbol.for("aws.lambda.runtime.handler.streaming");

// Between the JSON object of status and headers and the body that follows it.
const PRELUDE_END = Buffer.alloc(8);

class ResponseStream extends Writable {
  constructor() {
    super({ decodeStrings: true });
    this.chunks = [];
    this.contentType = undefined;
  }

  _write(chunk, _encoding, callback) {
    this.chunks.push(chunk);
    callback();
  }

  setContentType(contentType) {
    this.contentType = contentType;
  }

  body() {
    return Buffer.concat(this.chunks);
  }
}

class HttpResponseStream {
  static from(stream, metadata) {
    stream.setContentType("application/vnd.awslambda.http-integration-response");
    stream.write(JSON.stringify(metadata));
    stream.write(PRELUDE_END);
    return stream;
  }
}

// Offers AWS's global object.
function installStreaming() {
  globalThis.awslambda = {
    ...globalThis.awslambda,
    streamifyResponse: (handler, options) => Object.assign(handler, { [MARK]: true, ...options }),
    HttpResponseStream,
  };
}
installStreaming.MARK = MARK;

module.exports = { ResponseStream, installStreaming };
