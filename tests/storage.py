"""Real servers of remote storage for tests, on this machine, that write down what is fetched from them."""

import http.client
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs, quote, unquote, urlsplit

KEYS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}


FORBIDDEN = object()


class Fetch(NamedTuple):
    """A read of a part of a file: its name and the first byte."""

    name: str
    start: int


class Request(NamedTuple):
    """What a store is asked: the method, the unquoted path with its query, headers in lower case, and the content."""

    method: str
    path: str
    headers: Mapping[str, str]
    content: bytes

    @property
    def key(self) -> str:
        """The object's name; of Google's uploads it is in the query, or in the content before the object's own."""
        path = urlsplit(self.path).path
        if path.startswith("/upload/"):
            name = parse_qs(urlsplit(self.path).query).get("name")
            described = re.search(rb'"name": *("(?:[^"\\]|\\.)*")', self.content[:4096])
            return name[0] if name else json.loads(described[1]) if described else path
        return path.partition("/o/")[2] or path

    @property
    def writes(self) -> bool:
        return self.method in ("PUT", "POST", "DELETE")


@dataclass
class Storage:
    """`url` shows the files of a local folder, as they were when `put` was last called.

    `gate`: whether a request may reach the server; else the connection is cut, or it is FORBIDDEN. `after`: called once
    one is answered.
    """

    url: str
    put: Callable[[Path], None]
    fetches: list[Fetch] = field(default_factory=list)
    delay_s: float = 0.0  # before what is fetched is sent
    written: list[str] = field(default_factory=list)  # names of objects
    gate: Callable[[Request], object] = lambda _: True
    after: Callable[[Request], object] = lambda _: None

    def of_shards(self) -> list[Fetch]:
        return [fetch for fetch in self.fetches if fetch.name.endswith(".tar")]


class Server(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], ConnectionError):  # a reader that was killed, or has enough, hangs up
            super().handle_error(request, client_address)


@contextmanager
def serving(handler: type[BaseHTTPRequestHandler]) -> Iterator[int]:
    server = Server(("127.0.0.1", 0), handler)
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
def counted(backend: tuple[str, int], storage: Storage) -> Iterator[int]:
    """The port of a proxy in front of a server, which writes down what parts of files are fetched."""

    class Proxy(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def forward(self) -> None:
            content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            headers = {name.lower(): value for name, value in self.headers.items()}
            request = Request(self.command, unquote(self.path), headers, content)
            passes = storage.gate(request)
            if passes is FORBIDDEN:
                self.send_response(403)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            if not passes:
                self.close_connection = True
                self.connection.shutdown(socket.SHUT_RDWR)
                return
            part = re.match(r"bytes=(\d+)-", self.headers.get("Range", self.headers.get("x-ms-range", "")))
            if self.command == "GET" and part:
                storage.fetches.append(Fetch(unquote(urlsplit(self.path).path).rsplit("/", 1)[-1], int(part[1])))
            connection = http.client.HTTPConnection(*backend, timeout=30)
            connection.request(self.command, self.path, content, dict(self.headers))
            answer = connection.getresponse()
            body = answer.read()
            self.send_response(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in ("transfer-encoding", "connection", "date", "server", "keep-alive"):
                    self.send_header(name, value)
            if "Content-Length" not in answer.headers and self.command != "HEAD":
                self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
            connection.close()
            storage.written.extend([request.key] * (request.method in ("PUT", "POST")))
            storage.after(request)

        do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = forward  # noqa: N815

        def log_message(self, *words: object) -> None:
            pass

    with serving(Proxy) as port:
        yield port


@contextmanager
def environment(**values: str) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            os.environ.update({name: value} if value is not None else {})


@contextmanager
def process(*words: str, port: int) -> Iterator[tuple[str, int]]:
    """A server of its own, once it answers."""
    server = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    address = ("127.0.0.1", port)
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                socket.create_connection(address, timeout=1).close()
                break
            except OSError:
                if server.poll() is not None or time.monotonic() > deadline:
                    raise
                time.sleep(0.05)
        yield address
    finally:
        server.kill()
        server.wait()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return taken.getsockname()[1]


def files_in(folder: Path) -> dict[str, bytes]:
    """The content of every file, by the name it gets in a bucket."""
    return {f"data/{path.relative_to(folder)}": path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@contextmanager
def s3() -> Iterator[Storage]:
    """An S3 server behind a proxy that counts; AWS_ENDPOINT_URL_S3 has to lead to it, as it does inside."""
    import boto3
    import s3fs
    from moto.server import ThreadedMotoServer

    moto = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    moto.start()
    backend = moto.get_host_and_port()
    client = boto3.client("s3", endpoint_url=f"http://{backend[0]}:{backend[1]}", **_credentials())

    def put(folder: Path) -> None:
        for entry in client.list_objects_v2(Bucket="bucket").get("Contents", []):
            client.delete_object(Bucket="bucket", Key=entry["Key"])
        for name, content in files_in(folder).items():
            client.put_object(Bucket="bucket", Key=name, Body=content)

    storage = Storage("s3://bucket/data", put)
    try:
        with (
            counted(backend, storage) as port,
            environment(**KEYS, AWS_ENDPOINT_URL_S3=f"http://127.0.0.1:{port}"),
        ):
            client.create_bucket(Bucket="bucket")
            yield storage
    finally:
        s3fs.S3FileSystem.clear_instance_cache()  # it keeps to the address that it began with
        client.close()
        moto.stop()


def _credentials() -> dict[str, str]:
    return {"aws_access_key_id": "test", "aws_secret_access_key": "test", "region_name": "us-east-1"}


@contextmanager
def gs() -> Iterator[Storage]:
    """Google's emulator behind a proxy that counts."""
    port = free_port()
    words = ["start", "--port", str(port), "--host", "127.0.0.1", "--in-memory", "--default-bucket", "bucket"]

    def put(folder: Path) -> None:
        for name, content in files_in(folder).items():
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
            path = f"/upload/storage/v1/b/bucket/o?uploadType=media&name={quote(name, safe='')}"
            connection.request("POST", path, content, {"Content-Type": "application/x-tar"})
            assert connection.getresponse().status == 200
            connection.close()

    storage = Storage("gs://bucket/data", put)
    with (
        process(sys.executable, "-m", "gcp_storage_emulator", *words, port=port) as backend,
        counted(backend, storage) as front,
        # what gcsfs does for hierarchical buckets goes around the emulator: it would wait for the network
        environment(STORAGE_EMULATOR_HOST=f"http://127.0.0.1:{front}", GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT="false"),
    ):
        import gcsfs

        yield storage
        gcsfs.GCSFileSystem.clear_instance_cache()


AZURITE = os.environ.get("AZURITE") or shutil.which("azurite")
AZURITE_KEY = "dGVzdA=="  # any; Azurite takes it from AZURITE_ACCOUNTS


@contextmanager
def az() -> Iterator[Storage]:
    """Azurite behind a proxy that counts; it needs node, so a test asks first whether there is an AZURITE."""
    import adlfs
    from azure.storage.blob import ContainerClient

    assert AZURITE is not None
    port = free_port()
    flags = ["--blobPort", str(port), "--inMemoryPersistence", "--skipApiVersionCheck", "--disableTelemetry"]

    def connection(port: int) -> str:
        return f"AccountName=test;AccountKey={AZURITE_KEY};BlobEndpoint=http://127.0.0.1:{port}/test"

    def put(folder: Path) -> None:
        with ContainerClient.from_connection_string(connection(port), "bucket") as container:
            if not container.exists():
                container.create_container()
            for name, content in files_in(folder).items():
                container.upload_blob(name, content, overwrite=True)

    storage = Storage("az://bucket/data", put)
    with (
        environment(AZURITE_ACCOUNTS=f"test:{AZURITE_KEY}"),
        process(str(Path(AZURITE).with_name("azurite-blob")), *flags, port=port) as backend,
        counted(backend, storage) as front,
        environment(AZURE_STORAGE_CONNECTION_STRING=connection(front)),
    ):
        yield storage
        adlfs.AzureBlobFileSystem.clear_instance_cache()
