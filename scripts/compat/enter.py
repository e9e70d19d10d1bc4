"""Enters a world natively: `enter.py JSON`, in fresh namespaces. The world is read-only, as an image is in a sandbox."""

import json
import os
import subprocess
import sys

ROOT = "/mnt"
DEVICES = {"null": 3, "zero": 5, "full": 7, "random": 8, "urandom": 9}


def mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True)


def main() -> None:
    what = json.loads(sys.argv[1])
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    mount("--bind", what["world"], ROOT)
    mount("-o", "remount,bind,ro", ROOT)
    mount("-t", "proc", "proc", f"{ROOT}/proc")
    mount("-t", "tmpfs", "-o", f"mode=1777,size={what['tmp_mib']}m", "tmp", f"{ROOT}/tmp")
    mount("-t", "tmpfs", "-o", "mode=755", "dev", f"{ROOT}/dev")
    os.umask(0)
    for name, minor in DEVICES.items():
        os.mknod(f"{ROOT}/dev/{name}", 0o20666, os.makedev(1, minor))
    os.mkdir(f"{ROOT}/dev/shm")
    mount("-t", "tmpfs", "-o", "mode=1777", "shm", f"{ROOT}/dev/shm")
    os.symlink("/proc/self/fd", f"{ROOT}/dev/fd")
    os.umask(0o022)
    os.chroot(ROOT)
    os.chdir(what["directory"])
    os.setgroups([])
    os.setgid(what["user"])
    os.setuid(what["user"])
    os.execve(what["arguments"][0], what["arguments"], what["environment"])


main()
