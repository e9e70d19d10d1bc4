"""The least that a function can do."""


def handler(event, context):
    return {"message": f"hello, {event['n']}"}
