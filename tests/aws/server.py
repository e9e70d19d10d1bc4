"""Starts the real `gust` program for tests: own data directory, own port, stopped at the end."""

import contextlib
import os
import pathlib
import re
import shutil
import signal
import subprocess
import tempfile
import threading

import boto3
from botocore.config import Config

GUST = os.environ.get("GUST_BIN", "gust")
RUNTIMES = os.environ.get("GUST_TEST_RUNTIMES")
ISOLATION = os.environ.get("GUST_TEST_ISOLATION", "auto")
REGION = "us-east-1"
ACCOUNT = "000000000000"
ROLE = f"arn:aws:iam::{ACCOUNT}:role/test"
MICRO_VM = "KVM micro-VM"
ISOLATIONS_USED = set()
START_TIMEOUT_S = 30
STOP_TIMEOUT_S = 60


class Server:
    """One running server."""

    def __init__(self, *arguments, data_dir=None, environment=None):
        self.arguments = arguments
        self.environment = environment or {}
        self.own_dir = data_dir is None
        self.data_dir = pathlib.Path(data_dir or tempfile.mkdtemp(prefix="gust-test-"))
        self.process = None
        self.endpoint = None
        self.isolation = None
        self.errors = []

    def start(self, *further):
        # Where functions run as processes, their users must be able to pass through.
        self.data_dir.chmod(0o711)
        runtimes = self.data_dir / "runtimes"
        if RUNTIMES and not runtimes.exists():
            runtimes.symlink_to(RUNTIMES)
        command = [GUST, "up", "--listen", "127.0.0.1:0", "--data-dir", str(self.data_dir)]
        self.process = subprocess.Popen(
            [*command, *self.arguments, *further],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "GUST_CONFIG": "/dev/null", "GUST_ISOLATION": ISOLATION, **self.environment},
        )
        # Read to its end, so that a chatty server never waits for us; shown when a test fails.
        threading.Thread(target=self.errors.extend, args=(self.process.stderr,), daemon=True).start()
        watchdog = threading.Timer(START_TIMEOUT_S, self.process.kill)
        watchdog.start()
        said = ""
        for line in self.process.stdout:
            said += line
            if not line.strip():
                break
        watchdog.cancel()
        endpoint, isolation = re.search(r"http://\S+", said), re.search(r"^ *isolation +(.+)$", said, re.MULTILINE)
        assert endpoint and isolation, f"the server did not start: {said!r} {''.join(self.errors)}"
        self.endpoint, self.isolation = endpoint.group(), isolation.group(1)
        ISOLATIONS_USED.add(self.isolation)
        wanted = MICRO_VM if ISOLATION == "kvm" or (ISOLATION == "auto" and os.path.exists("/dev/kvm")) else "process"
        assert wanted in self.isolation, f"functions should run in {wanted}, but the server says {self.isolation}"
        return self

    def upgrade(self):
        """Starts a server that takes over from this one, and answers how this one ended."""
        before, endpoint = self.process, self.endpoint
        try:
            self.start("--take-over")
            assert self.endpoint == endpoint
            return before.wait(STOP_TIMEOUT_S)
        finally:
            if before.poll() is None:
                before.kill()
            before.wait()
            before.stdout.close()

    @property
    def has_snapshots(self):
        return MICRO_VM in self.isolation

    def stop(self, number=signal.SIGTERM):
        """Ends the server with a signal and answers its exit code."""
        if self.process is None:
            return None
        if self.process.poll() is None:
            self.process.send_signal(number)
        code = self.process.wait(STOP_TIMEOUT_S)
        self.process.stdout.close()
        self.process = None
        return code

    def close(self):
        self.stop()
        if self.own_dir:
            shutil.rmtree(self.data_dir, ignore_errors=True)

    def client(self, key="test", secret="test", token=None, region=REGION, **config):
        """An unmodified boto3 client of this server."""
        config.setdefault("retries", {"max_attempts": 0})
        config.setdefault("read_timeout", 120)
        return boto3.client(
            "lambda",
            endpoint_url=self.endpoint,
            region_name=region,
            aws_access_key_id=key,
            aws_secret_access_key=secret,
            aws_session_token=token,
            config=Config(**config),
        )


@contextlib.contextmanager
def running(*arguments, **options):
    """A server for the length of a block."""
    server = Server(*arguments, **options)
    try:
        yield server.start()
    finally:
        server.close()
