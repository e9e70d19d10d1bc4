"""Published versions and aliases."""

from conftest import call, create, make_zip, refused, updated
from server import ACCOUNT, REGION

ARN = f"arn:aws:lambda:{REGION}:{ACCOUNT}:function:"


def answer(number):
    return make_zip({"app.py": f"def handler(event, context):\n    return [{number}, context.function_version]\n"})


def two_versions(client, name):
    create(client, name, Code={"ZipFile": answer(1)})
    first = client.publish_version(FunctionName=name, Description="first")
    client.update_function_code(FunctionName=name, ZipFile=answer(2))
    updated(client, name)
    return first, client.publish_version(FunctionName=name)


def test_versions_are_numbered_and_kept(client, name):
    first, second = two_versions(client, name)
    assert (first["Version"], second["Version"]) == ("1", "2")
    assert first["FunctionArn"] == f"{ARN}{name}:1" and first["Description"] == "first"
    client.get_waiter("published_version_active").wait(FunctionName=name, Qualifier="1")
    assert call(client, name, Qualifier="1")["Payload"] == [1, "1"]
    assert call(client, f"{name}:2")["Payload"] == [2, "2"]
    latest = call(client, name)
    assert (latest["Payload"], latest["ExecutedVersion"]) == ([2, "$LATEST"], "$LATEST")
    listed = client.list_versions_by_function(FunctionName=name)["Versions"]
    assert [version["Version"] for version in listed] == ["$LATEST", "1", "2"]
    assert listed[0]["FunctionArn"] == f"{ARN}{name}:$LATEST"


def test_nothing_new_is_not_published_again(client, name):
    create(client, name)
    first = client.publish_version(FunctionName=name)
    again = client.publish_version(FunctionName=name, Description="other")
    assert again["Version"] == "1" and again["RevisionId"] == first["RevisionId"]
    client.update_function_configuration(FunctionName=name, Timeout=10)
    updated(client, name)
    assert client.publish_version(FunctionName=name)["Version"] == "2"


def test_a_digest_is_a_precondition(client, name):
    digest = create(client, name)["CodeSha256"]
    with refused("InvalidParameterValueException", 400, "is different from current CodeSHA256"):
        client.publish_version(FunctionName=name, CodeSha256="AAAA")
    assert client.publish_version(FunctionName=name, CodeSha256=digest)["Version"] == "1"


def test_creating_and_updating_can_publish(client, name):
    created = create(client, name, Code={"ZipFile": answer(1)}, Publish=True)
    assert (created["Version"], created["FunctionArn"]) == ("1", f"{ARN}{name}:1")
    changed = client.update_function_code(FunctionName=name, ZipFile=answer(2), Publish=True)
    assert changed["Version"] == "2"
    updated(client, name)
    assert call(client, name, Qualifier="2")["Payload"] == [2, "2"]
    assert call(client, name, Qualifier="1")["Payload"] == [1, "1"]


def test_version_numbers_are_not_used_twice(client, name):
    two_versions(client, name)
    client.delete_function(FunctionName=name, Qualifier="2")
    client.update_function_configuration(FunctionName=name, Timeout=11)
    updated(client, name)
    assert client.publish_version(FunctionName=name)["Version"] == "3"


def test_versions_are_listed_in_pages(client, name):
    create(client, name)
    for timeout in range(10, 15):
        client.update_function_configuration(FunctionName=name, Timeout=timeout)
        updated(client, name)
        client.publish_version(FunctionName=name)
    pages = client.get_paginator("list_versions_by_function").paginate(
        FunctionName=name, PaginationConfig={"PageSize": 2}
    )
    found = [version["Version"] for page in pages for version in page["Versions"]]
    assert found == ["$LATEST", "1", "2", "3", "4", "5"]


def test_aliases(client, name):
    two_versions(client, name)
    made = client.create_alias(FunctionName=name, Name="live", FunctionVersion="1", Description="d")
    assert made["ResponseMetadata"]["HTTPStatusCode"] == 201
    assert made["AliasArn"] == f"{ARN}{name}:live"
    shown = client.get_alias(FunctionName=name, Name="live")
    assert (shown["FunctionVersion"], shown["Description"]) == ("1", "d")
    response = call(client, name, Qualifier="live")
    assert (response["Payload"], response["ExecutedVersion"]) == ([1, "1"], "1")
    configuration = client.get_function_configuration(FunctionName=f"{name}:live")
    assert (configuration["Version"], configuration["FunctionArn"]) == ("1", f"{ARN}{name}:live")
    changed = client.update_alias(FunctionName=name, Name="live", FunctionVersion="2")
    assert changed["Description"] == "d" and changed["RevisionId"] != shown["RevisionId"]
    assert call(client, f"{ARN}{name}:live")["ExecutedVersion"] == "2"
    client.create_alias(FunctionName=name, Name="test", FunctionVersion="$LATEST")
    listed = client.list_aliases(FunctionName=name)["Aliases"]
    assert [alias["Name"] for alias in listed] == ["live", "test"]
    of_two = client.list_aliases(FunctionName=name, FunctionVersion="2")["Aliases"]
    assert [alias["Name"] for alias in of_two] == ["live"]
    client.delete_alias(FunctionName=name, Name="test")
    client.delete_alias(FunctionName=name, Name="test")
    with refused("ResourceNotFoundException", 404, f"Cannot find alias arn: {ARN}{name}:test"):
        client.get_alias(FunctionName=name, Name="test")


def test_weighted_aliases(client, name):
    two_versions(client, name)
    weights = {"AdditionalVersionWeights": {"2": 0.5}}
    made = client.create_alias(FunctionName=name, Name="both", FunctionVersion="1", RoutingConfig=weights)
    assert made["RoutingConfig"] == weights
    executed = {call(client, name, Qualifier="both")["ExecutedVersion"] for _ in range(60)}
    # The chance that sixty draws of a half agree is one in 2^59.
    assert executed == {"1", "2"}
    plain = client.update_alias(FunctionName=name, Name="both", RoutingConfig={"AdditionalVersionWeights": {}})
    assert "RoutingConfig" not in plain


def test_bad_aliases_are_refused(client, name):
    two_versions(client, name)
    make = lambda **options: client.create_alias(**{"FunctionName": name, "Name": "a1", "FunctionVersion": "1", **options})
    with refused("ResourceNotFoundException", 404, f"{ARN}{name}:9"):
        make(FunctionVersion="9")
    with refused("ValidationException", 400):
        make(Name="12")
    with refused("ValidationException", 400):
        make(Name="a b")
    with refused("ValidationException", 400):
        make(FunctionVersion="one")
    for routing, version in [({"2": 1.5}, "1"), ({"1": 0.5}, "1"), ({"2": 0.5}, "$LATEST"), ({"1": 0.1, "2": 0.1}, "1")]:
        with refused("InvalidParameterValueException", 400):
            make(FunctionVersion=version, RoutingConfig={"AdditionalVersionWeights": routing})
    stale = make()["RevisionId"]
    client.update_alias(FunctionName=name, Name="a1", Description="new")
    with refused("PreconditionFailedException", 412):
        client.update_alias(FunctionName=name, Name="a1", Description="newer", RevisionId=stale)
    with refused("ResourceConflictException", 409, "Alias already exist"):
        make()
    with refused("ResourceNotFoundException", 404):
        client.update_alias(FunctionName=name, Name="missing", Description="x")
