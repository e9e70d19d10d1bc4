"""Compresses text and expands it again."""

import bz2
import hashlib
import lzma
import zlib

TEXT = b" ".join(b"%d squared is %d," % (n, n * n) for n in range(300))


def handler(event, context):
    text = TEXT + str(event["n"]).encode()
    sizes = {}
    for module in (zlib, bz2, lzma):
        packed = module.compress(text)
        assert module.decompress(packed) == text
        sizes[module.__name__] = len(packed)
    return {"sizes": sizes, "sha256": hashlib.sha256(text).hexdigest()}
