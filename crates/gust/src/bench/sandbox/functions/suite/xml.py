"""Builds a document, reads it back and asks it."""

import hashlib
from xml.etree import ElementTree


def handler(event, context):
    root = ElementTree.Element("orders", n=str(event["n"]))
    for n in range(150):
        order = ElementTree.SubElement(root, "order", id=str(n), kind=f"kind-{n % 6}")
        ElementTree.SubElement(order, "price").text = f"{n * 1.25:.2f}"
        ElementTree.SubElement(order, "note").text = f"<{n} & {event['n']}>"
    text = ElementTree.tostring(root)
    read = ElementTree.fromstring(text)
    total = sum(float(order.find("price").text) for order in read.iterfind("order[@kind='kind-3']"))
    return {"total": round(total, 2), "sha256": hashlib.sha256(text).hexdigest()}
