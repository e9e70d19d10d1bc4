// An HTTP server, fetch against it, streams, files, timers, compression and encryption.
"use strict";
const http = require("node:http");
const fs = require("node:fs/promises");
const { createReadStream, createWriteStream } = require("node:fs");
const { pipeline } = require("node:stream/promises");
const zlib = require("node:zlib");
const crypto = require("node:crypto");
const dns = require("node:dns/promises");
const { setTimeout: wait } = require("node:timers/promises");

const server = http.createServer(async (request, response) => {
  const parts = [];
  for await (const part of request) parts.push(part);
  const body = Buffer.concat(parts);
  response.setHeader("x-bytes", body.length);
  response.end(crypto.createHash("sha256").update(body).digest("hex"));
});

async function main() {
  await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
  const address = `http://127.0.0.1:${server.address().port}/`;
  for (const bytes of [0, 10, 100_000, 3_000_000]) {
    const body = Buffer.alloc(bytes, "gust");
    const answer = await fetch(address, { method: "POST", body });
    const hash = crypto.createHash("sha256").update(body).digest("hex");
    console.log("fetch", bytes, answer.status, answer.headers.get("x-bytes"), (await answer.text()) === hash);
  }
  const many = await Promise.all(Array.from({ length: 50 }, (_, n) => fetch(address, { method: "POST", body: `${n}` }).then((answer) => answer.status)));
  console.log("together", many.length, new Set(many));
  await fs.writeFile("/tmp/plain", "line\n".repeat(200_000));
  await pipeline(createReadStream("/tmp/plain"), zlib.createGzip(), createWriteStream("/tmp/packed"));
  await pipeline(createReadStream("/tmp/packed"), zlib.createGunzip(), createWriteStream("/tmp/again"));
  console.log("files", (await fs.stat("/tmp/again")).size, (await fs.readFile("/tmp/again")).equals(await fs.readFile("/tmp/plain")));
  console.log("name", (await dns.lookup("localhost", { family: 4 })).address);
  const { privateKey, publicKey } = crypto.generateKeyPairSync("ec", { namedCurve: "P-256" });
  console.log("signed", crypto.verify("sha256", Buffer.from("text"), publicKey, crypto.sign("sha256", Buffer.from("text"), privateKey)));
  await wait(5);
  try {
    await fetch("http://127.0.0.1:9/");
  } catch (error) {
    console.log("refused", error.cause.code);
  }
  try {
    require("node:child_process").execFileSync("/bin/true");
    console.log("second process made");
  } catch (error) {
    console.log("second process", error.code);
  }
  server.closeAllConnections();
  server.close();
}

process.on("exit", (code) => console.log("exit", code));
main();
