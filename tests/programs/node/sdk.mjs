// The AWS SDK for JavaScript v3 against a small S3 in the same process: signed requests, bodies, metadata, errors.
import http from "node:http";
import { S3Client, PutObjectCommand, GetObjectCommand, HeadObjectCommand, DeleteObjectCommand } from "@aws-sdk/client-s3";

const objects = new Map();
const server = http.createServer(async (request, response) => {
  const parts = [];
  for await (const part of request) parts.push(part);
  if (!/^AWS4-HMAC-SHA256 Credential=key\//.test(request.headers.authorization ?? "")) {
    response.writeHead(403).end();
    return;
  }
  const key = new URL(request.url, "http://s3").pathname;
  if (request.method === "PUT") {
    objects.set(key, { body: Buffer.concat(parts), kind: request.headers["content-type"], mark: request.headers["x-amz-meta-mark"] });
    response.writeHead(200, { etag: '"1"' }).end();
  } else if (request.method === "DELETE") {
    objects.delete(key);
    response.writeHead(204).end();
  } else if (objects.has(key)) {
    const { body, kind, mark } = objects.get(key);
    response.writeHead(200, { "content-type": kind, "content-length": body.length, "x-amz-meta-mark": mark });
    response.end(request.method === "HEAD" ? undefined : body);
  } else {
    response.writeHead(404, { "content-type": "application/xml" });
    response.end("<Error><Code>NoSuchKey</Code><Message>none</Message></Error>");
  }
});
await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));

const s3 = new S3Client({
  region: "us-east-1",
  endpoint: `http://127.0.0.1:${server.address().port}`,
  forcePathStyle: true,
  credentials: { accessKeyId: "key", secretAccessKey: "secret" },
});
const where = { Bucket: "bucket", Key: "some/object" };
const body = Buffer.alloc(500_000, "sandbox");
console.log((await s3.send(new PutObjectCommand({ ...where, Body: body, ContentType: "text/plain", Metadata: { mark: "7" } }))).ETag);
const got = await s3.send(new GetObjectCommand(where));
console.log(got.ContentType, got.Metadata, Buffer.from(await got.Body.transformToByteArray()).equals(body));
console.log((await s3.send(new HeadObjectCommand(where))).ContentLength);
const many = await Promise.all(Array.from({ length: 40 }, (_, n) => s3.send(new PutObjectCommand({ ...where, Key: `many/${n}`, Body: `${n}` }))));
console.log(many.length, objects.size);
await s3.send(new DeleteObjectCommand(where));
await s3.send(new GetObjectCommand(where)).catch((error) => console.log(error.name));
s3.destroy();
server.closeAllConnections();
server.close();
