// What functions bring along: AWS's SDK and Express, both talking to servers in the same sandbox.
import http from "node:http";
import { GetObjectCommand, PutObjectCommand, S3Client } from "@aws-sdk/client-s3";
import express from "express";
import { v4 } from "uuid";

const objects = new Map();

// As much of S3 as the client below asks for.
const store = http.createServer((request, response) => {
  const [path] = request.url.split("?");
  const chunks = [];
  request.on("data", (chunk) => chunks.push(chunk));
  request.on("end", () => {
    if (request.method === "PUT") objects.set(path, Buffer.concat(chunks));
    response.statusCode = objects.has(path) ? 200 : 404;
    response.end(request.method === "GET" ? objects.get(path) : undefined);
  });
});
await new Promise((listening) => store.listen(0, "127.0.0.1", listening));
const client = new S3Client({
  endpoint: `http://127.0.0.1:${store.address().port}`,
  forcePathStyle: true,
  requestChecksumCalculation: "WHEN_REQUIRED",
});

const app = express();
app.get("/hello/:who", (request, response) => response.json({ hello: request.params.who }));
const web = await new Promise((listening) => {
  const server = app.listen(0, "127.0.0.1", () => listening(server));
});

export const handler = async ({ text }) => {
  await client.send(new PutObjectCommand({ Bucket: "bucket", Key: "key", Body: text }));
  const stored = await client.send(new GetObjectCommand({ Bucket: "bucket", Key: "key" }));
  const page = await fetch(`http://127.0.0.1:${web.address().port}/hello/you`);
  return { stored: await stored.Body.transformToString(), page: await page.json(), id: v4() };
};
