"""Real servers of remote storage for tests, on this machine, that write down what is fetched from them."""

import http.client
import json
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple
from urllib.parse import parse_qs, urlsplit

KEYS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}


class Fetch(NamedTuple):
    """A read of a part of a file: its name and the first byte."""

    name: str
    start: int


@dataclass
class Storage:
    """`url` shows the files of a local folder, as they were when `put` was last called."""

    url: str
    put: Callable[[Path], None]
    fetches: list[Fetch] = field(default_factory=list)
    delay_s: float = 0.0  # before what is fetched is sent

    def of_shards(self) -> list[Fetch]:
        return [fetch for fetch in self.fetches if fetch.name.endswith(".tar")]


@contextmanager
def serving(handler: type[BaseHTTPRequestHandler]) -> Iterator[int]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def hdfs() -> Iterator[Storage]:
    """The REST interface of Hadoop's file system, as far as reading goes: needs no package but requests."""
    storage = Storage("", lambda folder: shown.__setitem__(slice(None), [folder]))
    shown: list[Path] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            asked = urlsplit(self.path)
            query = {key.lower(): values[0] for key, values in parse_qs(asked.query).items()}
            path = shown[0] / asked.path.removeprefix("/webhdfs/v1/data").lstrip("/")
            if not path.exists():
                failure = {"exception": "FileNotFoundException", "message": f"File does not exist: {path.name}"}
                self.answer(404, json.dumps({"RemoteException": failure}).encode())
            elif query["op"] == "LISTSTATUS":
                entries = [facts(entry) for entry in sorted(path.iterdir())]
                self.answer(200, json.dumps({"FileStatuses": {"FileStatus": entries}}).encode())
            elif query["op"] == "GETFILESTATUS":
                self.answer(200, json.dumps({"FileStatus": facts(path)}).encode())
            else:
                start = int(query["offset"])
                storage.fetches.append(Fetch(path.name, start))
                time.sleep(storage.delay_s)
                self.answer(200, path.read_bytes()[start : start + int(query["length"])])

        def answer(self, status: int, content: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *words: object) -> None:
            pass

    def facts(path: Path) -> dict[str, object]:
        stat = path.stat()
        kind = "DIRECTORY" if path.is_dir() else "FILE"
        return {
            "pathSuffix": path.name,
            "type": kind,
            "length": stat.st_size,
            "modificationTime": stat.st_mtime_ns // 10**6,
        }

    with serving(Handler) as port:
        storage.url = f"webhdfs://127.0.0.1:{port}/data"
        yield storage


@contextmanager
def s3() -> Iterator[Storage]:
    """An S3 server behind a proxy that counts; AWS_ENDPOINT_URL_S3 has to lead to it, as it does inside."""
    import boto3
    import s3fs
    from moto.server import ThreadedMotoServer

    moto = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    moto.start()
    backend = moto.get_host_and_port()
    storage = Storage("s3://bucket/data", lambda folder: None)

    class Proxy(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def forward(self) -> None:
            content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            part = re.match(r"bytes=(\d+)-", self.headers.get("Range", ""))
            if self.command == "GET" and part:
                storage.fetches.append(Fetch(urlsplit(self.path).path.rsplit("/", 1)[-1], int(part[1])))
            connection = http.client.HTTPConnection(*backend, timeout=30)
            connection.request(self.command, self.path, content, dict(self.headers))
            answer = connection.getresponse()
            body = answer.read()
            self.send_response(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in ("transfer-encoding", "connection", "date", "server"):
                    self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)
            connection.close()

        do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = forward  # noqa: N815

        def log_message(self, *words: object) -> None:
            pass

    client = boto3.client("s3", endpoint_url=f"http://{backend[0]}:{backend[1]}", **_credentials())

    def put(folder: Path) -> None:
        for entry in client.list_objects_v2(Bucket="bucket").get("Contents", []):
            client.delete_object(Bucket="bucket", Key=entry["Key"])
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                key = f"data/{path.relative_to(folder)}"
                client.put_object(Bucket="bucket", Key=key, Body=path.read_bytes())

    before = {name: os.environ.get(name) for name in (*KEYS, "AWS_ENDPOINT_URL_S3")}
    try:
        with serving(Proxy) as port:
            os.environ.update(KEYS, AWS_ENDPOINT_URL_S3=f"http://127.0.0.1:{port}")
            client.create_bucket(Bucket="bucket")
            storage.put = put
            yield storage
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            os.environ.update({name: value} if value is not None else {})
        s3fs.S3FileSystem.clear_instance_cache()  # it keeps to the address that it began with
        client.close()
        moto.stop()


def _credentials() -> dict[str, str]:
    return {"aws_access_key_id": "test", "aws_secret_access_key": "test", "region_name": "us-east-1"}
