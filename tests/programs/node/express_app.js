// An express application with middleware, parameters, JSON, errors and streaming, and its client.
"use strict";
const express = require("express");

const app = express();
app.use(express.json({ limit: "1mb" }));
app.use((request, response, next) => {
  response.set("x-path", request.path);
  next();
});
app.get("/items/:id", (request, response) => response.json({ id: request.params.id, query: request.query }));
app.post("/items", (request, response) => response.status(201).json({ count: request.body.items.length }));
app.get("/stream", async (_request, response) => {
  for (let n = 0; n < 50; n++) response.write(`part ${n}\n`);
  response.end();
});
app.get("/fails", () => {
  throw new Error("on purpose");
});
app.use((error, _request, response, _next) => response.status(500).send(error.message));

const server = app.listen(0, "127.0.0.1", async () => {
  const base = `http://127.0.0.1:${server.address().port}`;
  const show = async (name, answer) => console.log(name, answer.status, answer.headers.get("x-path"), (await answer.text()).slice(0, 60));
  await show("get", await fetch(`${base}/items/7?a=1&b=two`));
  const items = Array.from({ length: 1000 }, (_, n) => ({ n }));
  await show("post", await fetch(`${base}/items`, { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify({ items }) }));
  await show("bad json", await fetch(`${base}/items`, { method: "POST", headers: { "content-type": "application/json" }, body: "{" }));
  await show("stream", await fetch(`${base}/stream`));
  await show("error", await fetch(`${base}/fails`));
  await show("none", await fetch(`${base}/none`));
  const statuses = await Promise.all(items.slice(0, 100).map(({ n }) => fetch(`${base}/items/${n}`).then((answer) => answer.status)));
  console.log("together", statuses.every((status) => status === 200));
  server.closeAllConnections();
  server.close();
});
