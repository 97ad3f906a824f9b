"""Which cloud a machine belongs to, its type and the notice of its end: from files and servers as they are there."""

import contextlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from toolkit.system.clouds import Cloud, cloud, detect_cloud, instance_type, is_preempted


def written(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


AZURE = "7783-7084-3265-9085-8269-3286-77\n"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"sys_vendor": "Amazon EC2\n", "product_name": "g5.xlarge\n"}, Cloud("aws", "g5.xlarge")),
        ({"sys_vendor": "Google\n", "product_name": "Google Compute Engine\n"}, Cloud("gcp")),
        ({"sys_vendor": "Microsoft Corporation\n", "chassis_asset_tag": AZURE}, Cloud("azure")),
        ({"sys_vendor": "Microsoft Corporation\n", "chassis_asset_tag": "none of theirs\n"}, Cloud("none")),
        ({"sys_vendor": "LENOVO\n", "product_name": "20XW\n"}, Cloud("none")),
        ({}, Cloud("none")),
    ],
)
def test_the_provider_is_read_from_the_firmware_when_it_is_named(tmp_path: Path, files, expected: Cloud):
    assert detect_cloud(written(tmp_path, files)) == expected


@pytest.mark.parametrize(
    ("choice", "expected"), [("aws", "aws g5.xlarge"), ("auto", "aws g5.xlarge"), ("gcp", "gcp"), ("none", "none")]
)
def test_the_users_word_stands_when_the_firmware_says_otherwise(tmp_path: Path, choice: str, expected: str):
    written(tmp_path, {"sys_vendor": "Amazon EC2", "product_name": "g5.xlarge"})
    assert str(cloud(choice, tmp_path)) == expected


@contextlib.contextmanager
def serving(service: type[BaseHTTPRequestHandler], monkeypatch) -> Iterator[None]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), service)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("TOOLKIT_METADATA_URL", f"http://127.0.0.1:{server.server_port}")
    yield
    server.shutdown()
    server.server_close()


@pytest.fixture
def metadata(monkeypatch) -> Iterator[None]:
    """A service that answers as both providers do, each path only with its own header."""
    answers = {
        (
            "/computeMetadata/v1/instance/machine-type",
            "Metadata-Flavor",
            "Google",
        ): "projects/7/machineTypes/a2-highgpu-8g",
        ("/metadata/instance/compute/vmSize", "Metadata", "true"): "Standard_ND96asr_v4",
    }

    class Service(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = self.path.split("?")[0]
            found = [text for (at, name, value), text in answers.items() if at == path and self.headers[name] == value]
            self.send_response(200 if found else 403)
            self.end_headers()
            self.wfile.write("".join(found).encode())

        def log_message(self, *words: object) -> None:
            """Quiet."""

    instance_type.cache_clear()
    with serving(Service, monkeypatch):
        yield
    instance_type.cache_clear()


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"product_name": "Google Compute Engine\n"}, Cloud("gcp", "a2-highgpu-8g")),
        ({"chassis_asset_tag": AZURE}, Cloud("azure", "Standard_ND96asr_v4")),
        ({}, Cloud("none")),
    ],
)
def test_the_machine_type_is_asked_for_when_the_firmware_does_not_tell_it(tmp_path: Path, metadata, files, expected):
    assert cloud("auto", written(tmp_path, files)) == expected


def test_the_provider_alone_is_recorded_when_its_service_does_not_answer(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("TOOLKIT_METADATA_URL", "http://127.0.0.1:9")
    instance_type.cache_clear()
    assert cloud("gcp", written(tmp_path, {"product_name": "Google Compute Engine\n"})) == Cloud("gcp")
    instance_type.cache_clear()


@pytest.fixture
def scale_set(monkeypatch) -> Iterator[dict[str, str]]:
    """Azure's service, with answers by path."""
    answers: dict[str, str] = {}

    class Service(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer = answers.get(self.path.split("?")[0])
            self.send_response(404 if answer is None else 200)
            self.end_headers()
            self.wfile.write((answer or "").encode())

        def log_message(self, *words: object) -> None:
            """Quiet."""

    with serving(Service, monkeypatch):
        yield answers


@pytest.mark.parametrize(
    ("resources", "event", "expected"),
    [
        (["vm_10"], "Preempt", False),  # another machine, whose name begins like ours
        (["vm_10", "vm_1"], "Preempt", True),
        (["vm_1"], "Reboot", False),
    ],
)
def test_azures_notice_is_followed_when_it_names_this_machine(scale_set, resources: list[str], event: str, expected):
    events = [{"EventType": event, "Resources": resources}, {"EventType": "Preempt", "Resources": ["vm_2"]}]
    scale_set.update({"/metadata/scheduledevents": json.dumps({"Events": events})})
    assert not is_preempted("azure")  # the service does not know our name yet
    scale_set.update({"/metadata/instance/compute/name": "vm_1"})
    assert is_preempted("azure") is expected


@pytest.mark.parametrize("answer", ["Preempt", '["Preempt"]', '{"Events": [{"EventType": "Preempt"}]}'])
def test_azures_notice_is_passed_over_when_it_is_not_what_it_should_be(scale_set, answer: str):
    scale_set.update({"/metadata/scheduledevents": answer, "/metadata/instance/compute/name": "Preempt"})
    assert not is_preempted("azure")
