"""Shows what becomes of memory between calls: with the tag gust:memory=fresh every call is the first one."""

calls = 0


def handler(event, context):
    global calls
    calls += 1
    return {"call": calls}
