"""Encrypts with AES-128 in counter mode, in Python alone (FIPS 197; NIST SP 800-38A, 6.5)."""

import hashlib


def _tables():
    exp, log, x = [0] * 512, [0] * 256, 1
    for i in range(255):
        exp[i], log[x] = x, i
        x ^= (x << 1) ^ (0x11B if x & 0x80 else 0)
        x &= 0xFF
    for i in range(255, 512):
        exp[i] = exp[i - 255]
    box = []
    for value in range(256):
        inverse = exp[255 - log[value]] if value else 0
        out = 0x63
        for shift in range(5):
            out ^= ((inverse << shift) | (inverse >> (8 - shift))) & 0xFF
        box.append(out)
    return box


BOX = _tables()
DOUBLE = [((x << 1) ^ (0x1B if x & 0x80 else 0)) & 0xFF for x in range(256)]


def expand(key):
    words, constant = [list(key[i : i + 4]) for i in range(0, 16, 4)], 1
    for i in range(4, 44):
        word = list(words[-1])
        if i % 4 == 0:
            word = [BOX[b] for b in word[1:] + word[:1]]
            word[0] ^= constant
            constant = DOUBLE[constant]
        words.append([a ^ b for a, b in zip(word, words[i - 4])])
    return [sum(words[i : i + 4], []) for i in range(0, 44, 4)]


def encrypt(block, keys):
    state = [a ^ b for a, b in zip(block, keys[0])]
    for turn, key in enumerate(keys[1:], 1):
        state = [BOX[state[(i + 4 * (i % 4)) % 16]] for i in range(16)]
        if turn < 10:
            mixed = []
            for column in range(0, 16, 4):
                a = state[column : column + 4]
                whole = a[0] ^ a[1] ^ a[2] ^ a[3]
                mixed += [a[i] ^ whole ^ DOUBLE[a[i] ^ a[(i + 1) % 4]] for i in range(4)]
            state = mixed
        state = [a ^ b for a, b in zip(state, key)]
    return bytes(state)


def counter_mode(text, key, nonce):
    keys, out = expand(key), bytearray()
    for start in range(0, len(text), 16):
        stream = encrypt(nonce + (start // 16).to_bytes(8, "big"), keys)
        out += bytes(a ^ b for a, b in zip(text[start : start + 16], stream))
    return bytes(out)


def handler(event, context):
    # The example of FIPS 197, appendix B.
    block = bytes.fromhex("3243f6a8885a308d313198a2e0370734")
    example = encrypt(block, expand(bytes.fromhex("2b7e151628aed2a6abf7158809cf4f3c")))
    assert example.hex() == "3925841d02dc09fbdc118597196a0b32", example.hex()
    text = (b"%d " % event["n"]) * 64
    sealed = counter_mode(text, bytes(range(16)), bytes(8))
    assert counter_mode(sealed, bytes(range(16)), bytes(8)) == text
    return {"sha256": hashlib.sha256(sealed).hexdigest()}
