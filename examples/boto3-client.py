"""An AWS Lambda client as anyone would write it. With AWS_ENDPOINT_URL set it talks to Gust, without to AWS."""

import io
import json
import zipfile

import boto3

SOURCE = """
def handler(event, context):
    print("words:", event["text"].split())
    return {"words": len(event["text"].split()), "in_time": context.get_remaining_time_in_millis() > 0}
"""

client = boto3.client("lambda")

package = io.BytesIO()
with zipfile.ZipFile(package, "w") as archive:
    archive.writestr("app.py", SOURCE)

client.create_function(
    FunctionName="word-count",
    Runtime="python3.11",
    Role="arn:aws:iam::000000000000:role/any",
    Handler="app.handler",
    Code={"ZipFile": package.getvalue()},
)
client.get_waiter("function_active_v2").wait(FunctionName="word-count", WaiterConfig={"Delay": 1})

answer = client.invoke(FunctionName="word-count", Payload=json.dumps({"text": "one two three"}))
print("word-count answered", json.load(answer["Payload"]))
print("functions:", [function["FunctionName"] for function in client.list_functions()["Functions"]])
client.delete_function(FunctionName="word-count")
