// Parses, sorts and hashes a document, as the Python function of the same name does.
const { createHash } = require("node:crypto");

function sorted(value) {
  if (Array.isArray(value)) return value.map(sorted);
  if (value === null || typeof value !== "object") return value;
  return Object.fromEntries(Object.keys(value).sort().map((key) => [key, sorted(value[key])]));
}

exports.handler = async (event) => {
  const text = JSON.stringify(sorted(event));
  return { sha256: createHash("sha256").update(text).digest("hex"), bytes: text.length };
};
