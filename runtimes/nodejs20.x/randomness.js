// What must not come twice in two instances of one snapshot.
//
// OpenSSL renews its generators by itself, because the platform gives each instance another process id. What holds
// random bytes in advance does not: the generator behind Math.random, which the engine seeds once for each context and
// has no way of seeding again, and the stores of crypto.randomUUID and crypto.randomInt. The first is replaced here,
// the others are used up before they are used again.
"use strict";

const crypto = require("node:crypto");
const { syncBuiltinESMExports } = require("node:module");

// Of Node.js's lib/internal/crypto/random.js: ids that are made of one piece of random bytes, and numbers.
const UUIDS_STORED = 128;
const INTEGERS_STORED = 1024;

const SEED_BYTES = 16;

// xoshiro128** 1.1 by Blackman and Vigna: 128 bits of state, period 2^128 - 1. Its state must not be all zero.
const state = new Uint32Array(4);

function next() {
  const product = Math.imul(state[1], 5);
  const result = Math.imul((product << 7) | (product >>> 25), 9);
  const shifted = state[1] << 9;
  state[2] ^= state[0];
  state[3] ^= state[1];
  state[1] ^= state[2];
  state[0] ^= state[3];
  state[2] ^= shifted;
  state[3] = (state[3] << 11) | (state[3] >>> 21);
  return result;
}

function seed(bytes) {
  for (let at = 0; at < 4; at += 1) state[at] = bytes.readUInt32LE(4 * at);
  if (state.every((word) => word === 0)) state[0] = 1;
}

// 53 random bits, as a number of [0, 1).
const generator = {
  random() {
    return ((next() >>> 5) * 67108864 + (next() >>> 6)) / 9007199254740992;
  },
};

// A function that uses up the store behind another before it is first called after a restore.
class Store {
  constructor(draw, count) {
    this.draw = draw;
    this.count = count;
    this.isUsed = false;
    this.isStale = false;
  }

  // Before each use.
  use() {
    this.isUsed = true;
    if (!this.isStale) return;
    this.isStale = false;
    // So many draws reach the end of the store, wherever they begin; there it is filled anew.
    for (let left = this.count; left > 0; left -= 1) this.draw();
  }

  // Has been restored from a snapshot.
  restored() {
    this.isStale = this.isUsed;
  }
}

const { randomUUID, randomInt } = crypto;
const uuids = new Store(() => randomUUID(), UUIDS_STORED);
// Even numbers of values are drawn without a second try.
const integers = new Store(() => randomInt(2), INTEGERS_STORED);

function replace(object, name, replacement, like) {
  const { value, ...rest } = Object.getOwnPropertyDescriptor(object, name);
  Object.defineProperty(replacement, "name", { value: name, configurable: true });
  Object.defineProperty(replacement, "length", { value: (like ?? value).length, configurable: true });
  Object.defineProperty(object, name, { ...rest, value: replacement });
}

function install() {
  seed(crypto.randomBytes(SEED_BYTES));
  replace(Math, "random", generator.random);
  replace(crypto, "randomUUID", (options) => {
    uuids.use();
    return randomUUID(options);
  });
  replace(crypto, "randomInt", (min, max, callback) => {
    integers.use();
    return randomInt(min, max, callback);
  });
  const web = globalThis.Crypto.prototype;
  const webRandomUUID = web.randomUUID;
  replace(web, "randomUUID", {
    randomUUID() {
      uuids.use();
      return Reflect.apply(webRandomUUID, this, []);
    },
  }.randomUUID);
  // For those who import the functions by name.
  syncBuiltinESMExports();
}

// Makes this instance another than its siblings (entropy: at least 16 bytes that no other has).
function reseed(entropy) {
  seed(entropy);
  uuids.restored();
  integers.restored();
}

module.exports = { install, reseed };
