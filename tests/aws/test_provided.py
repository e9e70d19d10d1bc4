"""Functions that bring their own runtime: any program that speaks the Lambda Runtime API."""

import base64
import io
import os
import pathlib
import shutil
import stat
import subprocess
import zipfile

import pytest

from conftest import call, create, needs

HERE = pathlib.Path(__file__).parent
EXAMPLE = HERE.parent.parent / "examples" / "rust-hello"


def package(program):
    """A package of one program, under the name that AWS asks for."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        info = zipfile.ZipInfo("bootstrap")
        info.compress_type = zipfile.ZIP_DEFLATED
        info.external_attr = (stat.S_IFREG | 0o755) << 16
        archive.writestr(info, pathlib.Path(program).read_bytes())
    return buffer.getvalue()


@pytest.fixture(scope="module")
def rust_hello():
    """The example in Rust, built as its user would."""
    if shutil.which("cargo") is None:
        pytest.skip("SKIPPED: no cargo to build examples/rust-hello with")
    target = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", "/tmp/gust-target")) / "rust-hello"
    built = subprocess.run(
        ["cargo", "build", "--release", "--locked", "--target-dir", target, "--manifest-path", EXAMPLE / "Cargo.toml"],
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stderr
    return target / "release" / "rust-hello"


@pytest.fixture(scope="module")
def echo(tmp_path_factory):
    """A static program without any library."""
    program = tmp_path_factory.mktemp("echo") / "bootstrap"
    built = subprocess.run(
        ["cc", "-O1", "-D_GNU_SOURCE", "-static", "-o", program, HERE / "bootstrap.c"], capture_output=True, text=True
    )
    assert built.returncode == 0, built.stderr
    return program


def test_a_function_in_rust(client, name, rust_hello):
    needs("provided.al2023")
    create(client, name, Runtime="provided.al2023", Handler="bootstrap", Code={"ZipFile": package(rust_hello)})
    for who in ["you", "me"]:
        response = call(client, name, {"name": who}, LogType="Tail")
        assert response["Payload"]["message"] == f"hello, {who}", response
        assert response["Payload"]["request_id"] == response["ResponseMetadata"]["RequestId"]
        assert f"saying hello to {who}\n" in base64.b64decode(response["LogResult"]).decode()
    response = call(client, name, {"name": "nobody"})
    assert response["FunctionError"] == "Unhandled" and "nobody is here" in response["Payload"]["errorMessage"], response
    assert call(client, name)["Payload"]["message"] == "hello, world", "the next call works"


@pytest.mark.parametrize("runtime", ["provided.al2", "provided.al2023"])
def test_a_static_bootstrap(client, name, echo, runtime):
    needs(runtime)
    create(client, name, Runtime=runtime, Handler="ignored", Code={"ZipFile": package(echo)})
    for event in [1, {"a": ["b", None]}, "x" * 100_000]:
        assert call(client, name, event)["Payload"] == event


def test_a_package_without_a_bootstrap(client, name):
    needs("provided.al2023")
    create(client, name, Runtime="provided.al2023", Handler="bootstrap")
    response = call(client, name)
    assert response["FunctionError"] == "Unhandled", response
    assert response["Payload"]["errorType"] == "Runtime.InvalidEntrypoint", response["Payload"]
