// Finds and loads the function's handler: CommonJS and ES modules, with Lambda's rules for names.
"use strict";

const fs = require("node:fs");
const { createRequire } = require("node:module");
const path = require("node:path");
const { pathToFileURL } = require("node:url");
const { Fault } = require("./errors.js");

const NOT_FOUND = new Set(["MODULE_NOT_FOUND", "ERR_MODULE_NOT_FOUND", "ENOENT", "ERR_UNSUPPORTED_DIR_IMPORT"]);

// Options of NODE_OPTIONS that can still be followed when the engine runs already.
const SOURCE_MAPS = "--enable-source-maps";
const REQUIRES = new Set(["-r", "--require"]);
const IMPORT = "--import";

// `directory/module.property.function`.
function parseName(name) {
  if (name.includes("..")) throw new Fault("Runtime.MalformedHandlerName", `'${name}' is not a valid handler name. Use absolute paths when specifying root directories in handler names.`);
  const base = path.basename(name);
  const dot = base.indexOf(".");
  if (dot < 0) throw new Fault("Runtime.MalformedHandlerName", "Bad handler");
  const directory = name.slice(0, name.length - base.length);
  return { directory, module: base.slice(0, dot), properties: base.slice(dot + 1).split(".") };
}

function isFile(file) {
  return fs.statSync(file, { throwIfNoEntry: false })?.isFile() === true;
}

// Whether the package that a file belongs to says that its `.js` files are ES modules.
function isModulePackage(directory) {
  for (let at = directory; ; at = path.dirname(at)) {
    const file = path.join(at, "package.json");
    if (isFile(file)) return JSON.parse(fs.readFileSync(file, "utf8")).type === "module";
    if (at === path.dirname(at)) return false;
  }
}

async function loadModule(taskRoot, directory, module) {
  const require = createRequire(path.join(taskRoot, "/"));
  const stem = path.resolve(taskRoot, directory, module);
  const isModule = isModulePackage(path.dirname(stem));
  const load = (file, asModule) => (asModule ? import(pathToFileURL(file).href) : require(file));
  for (const [file, asModule] of [
    [stem, isModule],
    [`${stem}.js`, isModule],
    [`${stem}.mjs`, true],
    [`${stem}.cjs`, false],
  ]) {
    if (isFile(file)) return load(file, asModule);
  }
  // As Node.js finds modules: packages in node_modules and in layers, directories with an index.
  return require(require.resolve(module, { paths: [path.resolve(taskRoot, directory), taskRoot] }));
}

async function loadHandler(taskRoot, name) {
  const { directory, module, properties } = parseName(name);
  let loaded;
  try {
    loaded = await loadModule(taskRoot, directory, module);
  } catch (error) {
    if (error instanceof SyntaxError) throw Fault.from("Runtime.UserCodeSyntaxError", error);
    if (NOT_FOUND.has(error?.code)) throw Fault.from("Runtime.ImportModuleError", error);
    throw error;
  }
  const handler = properties.reduce((value, property) => value?.[property], loaded);
  if (handler === undefined || handler === null) throw new Fault("Runtime.HandlerNotFound", `${name} is undefined or not exported`);
  if (typeof handler !== "function") throw new Fault("Runtime.HandlerNotFound", `${name} is not a function`);
  return handler;
}

// Does what NODE_OPTIONS asks for as far as a running engine can; the rest is named in the log.
async function preloadModules(options, taskRoot) {
  if (!options) return;
  const require = createRequire(path.join(taskRoot, "/"));
  const words = options.trim().split(/\s+/);
  while (words.length > 0) {
    const [option, inline] = splitOnce(words.shift());
    if (option === SOURCE_MAPS) process.setSourceMapsEnabled(true);
    else if (REQUIRES.has(option)) require(inline ?? words.shift());
    else if (option === IMPORT) await importFrom(require, inline ?? words.shift());
    else console.warn(`NODE_OPTIONS: ${option} cannot be followed: the engine has been started before the function is known`);
  }
}

function importFrom(require, name) {
  return import(/^(file|data|node):/.test(name) ? name : pathToFileURL(require.resolve(name)).href);
}

function splitOnce(word) {
  const at = word.indexOf("=");
  return at < 0 ? [word, undefined] : [word.slice(0, at), word.slice(at + 1)];
}

module.exports = { loadHandler, preloadModules };
