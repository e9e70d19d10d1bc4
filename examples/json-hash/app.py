"""The handler of the cold start benches: parses, sorts and hashes a document."""

import hashlib
import json


def handler(event, context):
    text = json.dumps(event, sort_keys=True)
    return {"sha256": hashlib.sha256(text.encode()).hexdigest(), "bytes": len(text)}
