"""Takes the lines of an access log apart."""

import collections
import re

LINE = re.compile(
    r'(?P<host>[\d.]+) - (?P<user>\S+) \[(?P<when>[^\]]+)\] "(?P<verb>[A-Z]+) (?P<path>[^ ?]+)(?:\?(?P<query>[^ ]*))? HTTP/[\d.]+" '
    r"(?P<status>\d{3}) (?P<bytes>\d+)"
)
WORD = re.compile(r"\b([a-z]{3,})=(\d+)\b")


def handler(event, context):
    paths, total, words = collections.Counter(), 0, 0
    for n in range(300):
        line = (
            f'10.0.{n % 7}.{n} - user{n} [01/Jan/2026:00:00:{n % 60:02}] "GET /item/{n % 13}?page={n}&size={event["n"]} HTTP/1.1" '
            f"{200 if n % 5 else 404} {n * 37}"
        )
        found = LINE.match(line)
        paths[found["path"], found["status"]] += 1
        total += int(found["bytes"])
        words += len(WORD.findall(found["query"]))
    return {"total": total, "words": words, "paths": len(paths), "n": event["n"]}
