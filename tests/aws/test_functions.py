"""Functions: made, shown, listed, changed, deleted."""

import base64
import hashlib
import urllib.request

import pytest

from conftest import ECHO, create, make_zip, refused, updated
from server import ACCOUNT, REGION, ROLE

ARN = f"arn:aws:lambda:{REGION}:{ACCOUNT}:function:"


def test_a_new_function_is_pending_and_then_active(client, name):
    created = create(client, name, wait=False, Description="d", Timeout=7, MemorySize=256)
    assert created["ResponseMetadata"]["HTTPStatusCode"] == 201
    assert created["State"] == "Pending" and created["StateReasonCode"] == "Creating"
    assert "LastUpdateStatus" not in created
    client.get_waiter("function_active_v2").wait(FunctionName=name, WaiterConfig={"Delay": 0.1})
    client.get_waiter("function_exists").wait(FunctionName=name)
    shown = client.get_function_configuration(FunctionName=name)
    assert shown["FunctionArn"] == ARN + name
    assert (shown["State"], shown["LastUpdateStatus"]) == ("Active", "Successful")
    assert (shown["Timeout"], shown["MemorySize"], shown["Description"]) == (7, 256, "d")
    assert (shown["Runtime"], shown["Handler"], shown["Role"]) == ("python3.11", "app.handler", ROLE)
    assert (shown["Version"], shown["PackageType"]) == ("$LATEST", "Zip")
    assert shown["Architectures"] == ["x86_64"] and shown["EphemeralStorage"] == {"Size": 512}
    assert shown["TracingConfig"] == {"Mode": "PassThrough"}
    assert shown["LoggingConfig"]["LogGroup"] == f"/aws/lambda/{name}"


def test_defaults_are_those_of_lambda(client, name):
    created = create(client, name)
    assert (created["Timeout"], created["MemorySize"], created["Description"]) == (3, 128, "")


def test_the_code_can_be_downloaded(client, name):
    package = make_zip({"app.py": ECHO, "data.txt": "x" * 100_000})
    created = create(client, name, Code={"ZipFile": package}, Tags={"team": "a"})
    digest = base64.b64encode(hashlib.sha256(package).digest()).decode()
    assert (created["CodeSha256"], created["CodeSize"]) == (digest, len(package))
    shown = client.get_function(FunctionName=name)
    assert shown["Tags"] == {"team": "a"}
    with urllib.request.urlopen(shown["Code"]["Location"], timeout=60) as response:
        assert response.read() == package


def test_a_name_is_taken_once(client, name):
    create(client, name)
    with refused("ResourceConflictException", 409, f"Function already exist: {name}"):
        create(client, name, wait=False)


def test_what_does_not_exist_is_not_found(client):
    for operation in ("get_function", "get_function_configuration", "delete_function", "invoke", "publish_version"):
        with refused("ResourceNotFoundException", 404, f"Function not found: {ARN}missing"):
            getattr(client, operation)(FunctionName="missing")


def test_code_is_updated(client, name):
    first = create(client, name)
    code = make_zip({"app.py": "def handler(event, context):\n    return 'second'\n"})
    answer = client.update_function_code(FunctionName=name, ZipFile=code)
    assert answer["LastUpdateStatus"] == "InProgress" and answer["State"] == "Active"
    assert answer["RevisionId"] != first["RevisionId"]
    updated(client, name)
    assert client.invoke(FunctionName=name)["Payload"].read() == b'"second"'


def test_a_dry_run_changes_nothing(client, name):
    first = create(client, name)
    code = make_zip({"app.py": "x = 1\n"})
    answer = client.update_function_code(FunctionName=name, ZipFile=code, DryRun=True)
    assert answer["CodeSha256"] != first["CodeSha256"]
    assert client.get_function_configuration(FunctionName=name)["CodeSha256"] == first["CodeSha256"]


def test_configuration_is_updated(client, name):
    create(client, name, Environment={"Variables": {"AA": "1", "BB": "2"}}, Description="kept")
    answer = client.update_function_configuration(
        FunctionName=name, Timeout=30, MemorySize=512, Environment={"Variables": {"CC": "3"}}
    )
    assert answer["LastUpdateStatus"] == "InProgress"
    updated(client, name)
    shown = client.get_function_configuration(FunctionName=name)
    assert (shown["Timeout"], shown["MemorySize"], shown["Description"]) == (30, 512, "kept")
    assert shown["Environment"] == {"Variables": {"CC": "3"}}
    client.update_function_configuration(FunctionName=name, Environment={"Variables": {}})
    updated(client, name)
    assert "Environment" not in client.get_function_configuration(FunctionName=name)


def test_a_change_during_a_change_is_a_conflict(client, name):
    create(client, name, "import time\ntime.sleep(1)\n" + ECHO)
    client.update_function_configuration(FunctionName=name, MemorySize=256)
    with refused("ResourceConflictException", 409, "An update is in progress for resource: " + ARN + name):
        client.update_function_configuration(FunctionName=name, MemorySize=512)
    updated(client, name)


def test_revisions_are_preconditions(client, name):
    stale = create(client, name, wait=True)["RevisionId"]
    client.update_function_configuration(FunctionName=name, Description="new")
    updated(client, name)
    with refused("PreconditionFailedException", 412, "does not match the latest RevisionId"):
        client.update_function_configuration(FunctionName=name, Timeout=9, RevisionId=stale)
    with refused("PreconditionFailedException", 412):
        client.update_function_code(FunctionName=name, ZipFile=make_zip({"app.py": ECHO}), RevisionId=stale)
    with refused("PreconditionFailedException", 412):
        client.publish_version(FunctionName=name, RevisionId=stale)
    fresh = client.get_function_configuration(FunctionName=name)["RevisionId"]
    client.update_function_configuration(FunctionName=name, Timeout=9, RevisionId=fresh)


def test_functions_are_listed_in_pages(client):
    names = [f"page-{number:02}" for number in range(7)]
    try:
        for one in names:
            create(client, one, wait=False)
        pages = list(client.get_paginator("list_functions").paginate(PaginationConfig={"PageSize": 3}))
        assert len(pages) >= 3 and all(len(page["Functions"]) <= 3 for page in pages)
        found = [function["FunctionName"] for page in pages for function in page["Functions"]]
        assert [one for one in found if one.startswith("page-")] == names
        assert all("State" not in function for page in pages for function in page["Functions"])
    finally:
        for one in names:
            client.delete_function(FunctionName=one)


def test_all_versions_are_listed(client, name):
    create(client, name)
    client.publish_version(FunctionName=name)
    listed = client.get_paginator("list_functions").paginate(FunctionVersion="ALL")
    arns = [f["FunctionArn"] for page in listed for f in page["Functions"] if f["FunctionName"] == name]
    assert arns == [f"{ARN}{name}:$LATEST", f"{ARN}{name}:1"]


def test_foreign_markers_are_refused(client):
    with refused("InvalidParameterValueException", 400):
        client.list_functions(Marker="???")
    with refused("ValidationException", 400):
        client.list_functions(MaxItems=10_001)


def test_deleting_ends_everything_of_a_function(client, name):
    create(client, name)
    client.publish_version(FunctionName=name)
    client.create_alias(FunctionName=name, Name="live", FunctionVersion="1")
    client.delete_function(FunctionName=name)
    with refused("ResourceNotFoundException", 404):
        client.get_function(FunctionName=name)
    create(client, name)
    assert client.list_aliases(FunctionName=name)["Aliases"] == []
    assert client.publish_version(FunctionName=name)["Version"] == "1"


def test_versions_are_deleted_alone(client, name):
    create(client, name)
    client.publish_version(FunctionName=name)
    client.create_alias(FunctionName=name, Name="live", FunctionVersion="1")
    with refused("ResourceConflictException", 409, "live"):
        client.delete_function(FunctionName=name, Qualifier="1")
    with refused("InvalidParameterValueException", 400):
        client.delete_function(FunctionName=name, Qualifier="$LATEST")
    client.delete_alias(FunctionName=name, Name="live")
    client.delete_function(FunctionName=name, Qualifier="1")
    with refused("ResourceNotFoundException", 404, f"{ARN}{name}:1"):
        client.get_function(FunctionName=name, Qualifier="1")
    client.get_function(FunctionName=name)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"VpcConfig": {"SubnetIds": ["subnet-1"], "SecurityGroupIds": ["sg-1"]}}, "VpcConfig"),
        ({"Layers": [ARN.replace("function:", "layer:") + "l:1"]}, "Layers"),
        ({"DeadLetterConfig": {"TargetArn": "arn:aws:sqs:us-east-1:000000000000:q"}}, "DeadLetterConfig"),
        ({"Architectures": ["arm64"]}, "x86_64"),
        ({"PackageType": "Image", "Code": {"ImageUri": "x"}}, "Image"),
        ({"Code": {"S3Bucket": "bucket", "S3Key": "key"}}, "S3"),
        ({"LoggingConfig": {"LogFormat": "JSON"}}, "LogFormat"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(client, name, options, message):
    with refused("InvalidParameterValueException", 400, message):
        create(client, name, wait=False, **options)


def test_empty_settings_ask_for_nothing(client, name):
    create(
        client,
        name,
        VpcConfig={"SubnetIds": [], "SecurityGroupIds": []},
        Layers=[],
        DeadLetterConfig={"TargetArn": ""},
        FileSystemConfigs=[],
        SnapStart={"ApplyOn": "PublishedVersions"},
        TracingConfig={"Mode": "Active"},
    )
    shown = client.get_function_configuration(FunctionName=name)
    assert shown["SnapStart"]["ApplyOn"] == "PublishedVersions"
    assert shown["TracingConfig"]["Mode"] == "Active"
