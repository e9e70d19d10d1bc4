"""The smallest function: says hello to whoever the event names."""


def handler(event, context):
    name = event.get("name", "world")
    print(f"saying hello to {name}")
    return {"message": f"hello, {name}", "request_id": context.aws_request_id}
