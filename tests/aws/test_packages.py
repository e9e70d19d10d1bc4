"""Code packages that must not get in, and odd ones that may."""

import io
import stat
import struct
import zipfile
import zlib

import pytest

from conftest import ECHO, call, create, make_zip, refused, updated

UNZIP = "Could not unzip uploaded file"


def archive(*entries):
    """A package of (name, content, mode) entries."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content, mode in entries:
            info = zipfile.ZipInfo(name)
            info.create_system = 3
            info.compress_type = zipfile.ZIP_DEFLATED
            info.external_attr = mode << 16
            file.writestr(info, content)
    return buffer.getvalue()


FILE = stat.S_IFREG | 0o644
LINK = stat.S_IFLNK | 0o777
APP = ("app.py", ECHO, FILE)


def bomb():
    """300 MiB of zeros in 300 KiB."""
    return archive(APP, ("zeros", b"\0" * (300 << 20), FILE))


def lying_bomb():
    """The same, with a directory that says 10 bytes."""
    data = b"\0" * (300 << 20)
    packed = zlib.compressobj(9, zlib.DEFLATED, -15)
    packed = packed.compress(data) + packed.flush()
    crc = zlib.crc32(data)
    name = b"zeros"
    local = struct.pack("<IHHHHHIIIHH", 0x04034B50, 20, 0, 8, 0, 33, crc, len(packed), 10, len(name), 0) + name
    central = struct.pack("<IHHHHHHIIIHHHHHII", 0x02014B50, 0x314, 20, 0, 8, 0, 33, crc, len(packed), 10,
                          len(name), 0, 0, 0, 0, FILE << 16, 0) + name
    offset = len(local) + len(packed)
    end = struct.pack("<IHHHHIIH", 0x06054B50, 0, 0, 1, 1, len(central), offset, 0)
    return local + packed + central + end


@pytest.mark.parametrize(
    "package, message",
    [
        (b"this is no zip", UNZIP),
        (b"PK\x03\x04", UNZIP),
        (b"PK\x05\x06" + b"\0" * 18, "Uploaded file must be a non-empty zip"),
        (make_zip({"app.py": ECHO})[:-30], UNZIP),
        (archive(APP, ("../outside.py", "x", FILE)), "../outside.py"),
        (archive(APP, ("a/../../outside.py", "x", FILE)), "outside.py"),
        (archive(APP, ("/etc/passwd", "x", FILE)), "/etc/passwd"),
        (archive(APP, ("link", "/etc/passwd", LINK)), "link"),
        (archive(APP, ("deep/link", "../../outside", LINK)), "deep/link"),
        (archive(APP, ("fifo", "", stat.S_IFIFO | 0o644)), "fifo"),
        (archive(APP, APP), "app.py"),
    ],
    ids=["text", "cut header", "empty", "cut end", "dots", "inner dots", "absolute", "link out", "link up", "fifo", "twice"],
)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_bad_packages_are_refused(client, name, package, message):
    with refused("InvalidParameterValueException", 400, message):
        create(client, name, wait=False, Code={"ZipFile": package})
    with refused("ResourceNotFoundException", 404):
        client.get_function(FunctionName=name)


def test_no_package(client, name):
    with refused("InvalidParameterValueException", 400, "non-empty zip"):
        create(client, name, wait=False, Code={"ZipFile": b""})
    with refused("InvalidParameterValueException", 400, "Please provide a source for function code"):
        create(client, name, wait=False, Code={})


@pytest.mark.parametrize("package", [bomb, lying_bomb])
def test_bombs_cost_no_more_than_the_limit(client, name, package):
    with refused("InvalidParameterValueException", 400) as seen:
        create(client, name, wait=False, Code={"ZipFile": package()})
    assert "Unzipped size must be smaller than 262144000 bytes" in seen.message or UNZIP in seen.message


def test_a_bad_package_leaves_the_function_alone(client, name):
    before = create(client, name)
    with refused("InvalidParameterValueException", 400):
        client.update_function_code(FunctionName=name, ZipFile=b"no zip")
    after = client.get_function_configuration(FunctionName=name)
    assert after["RevisionId"] == before["RevisionId"] or after["State"] == "Active"
    assert after["CodeSha256"] == before["CodeSha256"]
    assert call(client, name, 5)["Payload"] == 5


def test_links_inside_a_package_work(client, name):
    package = archive(("real.py", ECHO, FILE), ("app.py", "real.py", LINK), ("lib/up.py", "../real.py", LINK))
    create(client, name, Code={"ZipFile": package})
    assert call(client, name, 7)["Payload"] == 7


def test_the_same_package_serves_two_functions(client, name):
    package = make_zip({"app.py": ECHO})
    create(client, name, Code={"ZipFile": package})
    create(client, name + "-b", Code={"ZipFile": package})
    client.delete_function(FunctionName=name)
    assert call(client, name + "-b", 8)["Payload"] == 8
    client.update_function_code(FunctionName=name + "-b", ZipFile=make_zip({"app.py": ECHO + "\n"}))
    updated(client, name + "-b")
    assert call(client, name + "-b", 9)["Payload"] == 9
    client.delete_function(FunctionName=name + "-b")


def test_packages_that_nothing_needs_are_removed(server, client, name):
    stored = lambda: {file.name for kind in ("code", "code-images-1") for file in (server.data_dir / "blobs" / kind).iterdir()}
    before = stored()
    create(client, name, Code={"ZipFile": make_zip({"app.py": ECHO, "mine": name})})
    with_one = stored()
    assert len(with_one) == len(before) + 1
    with refused("ResourceConflictException", 409):
        create(client, name, wait=False, Code={"ZipFile": make_zip({"app.py": ECHO, "other": name})})
    client.update_function_code(FunctionName=name, ZipFile=make_zip({"app.py": ECHO, "dry": name}), DryRun=True)
    assert stored() == with_one
    client.update_function_code(FunctionName=name, ZipFile=make_zip({"app.py": ECHO, "next": name}))
    updated(client, name)
    assert len(stored()) == len(with_one) and stored() != with_one
    client.delete_function(FunctionName=name)
    assert stored() == before
