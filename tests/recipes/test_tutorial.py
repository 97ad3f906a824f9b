"""A new user's path: every command and every piece of code of the tutorial, each as its own process, offline.

Folder of images -> scan -> train -> report -> evaluate -> predict -> export -> plain timm, ONNX, a server.
"""

import csv
import json
import os
import re
import shlex
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from tests.conftest import PATIENCE_S, ROOT
from tests.documents import blocks, commands, exception

COMMANDS = [line for page, line in commands() if page == "tutorial.md" and not exception(line)]
MAKE_PHOTOS, SERVE = (code for page, code in blocks("python") if page == "tutorial.md")
(COSTS,) = (text for page, text in blocks("csv") if page == "tutorial.md")
pytestmark = pytest.mark.slow
OFFLINE = {
    **{name: value for name, value in os.environ.items() if not re.search("OFFLINE|WANDB|_proxy", name, re.IGNORECASE)},
    "PYTHONPATH": os.pathsep.join([str(ROOT / "tests/offline"), os.environ.get("PYTHONPATH", "")]).strip(os.pathsep),
}
REACH = """
import socket, sys, urllib.request
for address in ("http://192.0.2.1", "http://example.com", f"http://127.0.0.1:{sys.argv[1]}"):
    try:
        urllib.request.urlopen(address, timeout=5)
    except OSError as error:
        print(error)
"""
LOAD = """
import json, sys, timm, torch
config = json.load(open("model/config.json"))
model = timm.create_model("{arch}", num_classes=2, checkpoint_path="model/model.safetensors").eval()
assert "toolkit" not in sys.modules
print(model(torch.zeros(1, 3, 64, 64)).shape)
"""


def do(*words: str, folder: Path) -> str:
    """Run a program in the user's folder, without a network; returns what it printed."""
    done = subprocess.run(
        words, cwd=folder, env=OFFLINE, capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    assert done.returncode == 0, f"{shlex.join(words)}\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The user's folder, in which all of it was done."""
    folder = tmp_path_factory.mktemp("home")
    (folder / "recipes").symlink_to(ROOT / "recipes")
    (folder / "make_photos.py").write_text(MAKE_PHOTOS)
    (folder / "costs.csv").write_text(COSTS)
    do(sys.executable, "make_photos.py", folder=folder)
    programs = {name: str(Path(sys.executable).with_name(name)) for name in ("accelerate", "python", "toolkit")}
    for command in COMMANDS:
        first, *rest = shlex.split(command)
        if rest[0] == "report":
            (folder / "runs/photos/report.html").unlink()  # so that it is this command that wrote it
        do(programs[first], *rest, folder=folder)
    return folder


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def test_only_this_machine_is_reached_when_a_program_runs_offline(tmp_path: Path):
    """The control of all that follows."""
    numbered, named, here = do(sys.executable, "-c", REACH, str(free_port()), folder=tmp_path).splitlines()
    assert "no network to reach 192.0.2.1" in numbered
    assert "no network to reach example.com" in named
    assert "Connection refused" in here


def test_each_command_for_ones_own_run_stands_in_the_tutorial():
    words = [shlex.split(line) for line in COMMANDS]
    scripts = {word for line in words for word in line if word.startswith("recipes/")}
    assert scripts == {"recipes/multiscale.py", "recipes/single_scale.py"}
    tools = {line[1] for line in words if line[0] == "toolkit"}
    assert tools == {"scan", "report", "evaluate", "compare", "predict", "export"}


def test_the_model_is_good_and_its_report_tells_so_when_it_was_trained(home: Path):
    top1 = json.loads((home / "runs/photos/summary.json").read_text())["test"]["64px"]["top1"]
    assert top1 > 80
    page = (home / "runs/photos/report.html").read_text()
    assert f"{top1:.1f}" in page


def test_a_row_for_each_photo_agrees_with_its_folder_when_all_are_predicted(home: Path):
    with (home / "photos.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert sorted(row["path"] for row in rows) == sorted(
        str(path.relative_to(home)) for path in home.glob("photos/test/*/*")
    )
    right = sum(Path(row["path"]).parent.name == row["label"] for row in rows)
    top1 = json.loads((home / "runs/photos/summary.json").read_text())["test"]["64px"]["top1"]
    assert 100 * right / len(rows) == pytest.approx(top1)


def test_plain_timm_loads_the_weights_when_they_were_exported(home: Path):
    assert "torch.Size([1, 2])" in do(sys.executable, "-c", LOAD.format(arch="test_resnet"), folder=home)


@pytest.fixture(scope="module")
def server(home: Path) -> Iterator[int]:
    """The port of the tutorial's server."""
    (home / "serve.py").write_text(SERVE)
    port = free_port()
    command = [sys.executable, "serve.py", "model", str(port)]
    process = subprocess.Popen(command, cwd=home, env=OFFLINE, stderr=subprocess.DEVNULL)
    try:
        yield port
    finally:
        process.terminate()
        process.wait()


@pytest.fixture(scope="module")
def odd(home: Path) -> Path:
    """A folder of class folders: parts of the test photos, of odd sizes, with sides 1 to 7 px apart."""
    for i, path in enumerate(sorted((home / "photos/test").glob("*/*"))):
        side, more = 31 + 7 * (i % 10), 1 + i % 7
        width, height = (side, side + more) if i % 2 else (side + more, side)
        target = home / "odd" / path.parent.name / (f"{i}.jpg" if i % 3 else f"{i}.png")
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.open(path).crop((0, 0, width, height)).save(target, quality=90)
    return home / "odd"


def evaluated(home: Path, data: str) -> dict[str, tuple[str, str]]:
    """The true and the predicted class of each image at 64 px by evaluate.py, by file name."""
    words = ("runs/photos", "--scales", "64", "--data-root", data, "--no-amp", "--output-dir", f"evaluated-{data}")
    do(sys.executable, "recipes/evaluate.py", *words, folder=home)
    names = json.loads((home / "runs/photos/class_map.json").read_text())
    (table,) = (home / f"evaluated-{data}/predictions").glob("*test.csv" if data == "photos" else "*.csv")
    with table.open(newline="") as file:
        return {row["name"]: (names[row["label"]], names[row["64px/predicted"]]) for row in csv.DictReader(file)}


@pytest.mark.parametrize("data", ["photos", "odd"])
def test_the_server_has_the_accuracy_of_evaluation_to_the_image(data: str, home: Path, server: int, odd: Path):
    expected = evaluated(home, data)
    assert len(expected) == 60
    said = {}
    for path in (home / data).glob("test/*/*" if data == "photos" else "*/*"):
        status, odds = post(server, path.read_bytes())
        assert (status, sum(odds.values())) == (200, pytest.approx(1, abs=1e-3))
        said["/".join(path.parts[-2:])] = next(iter(odds))
    predicted = {"/".join(Path(name).parts[-2:]): label for name, (_, label) in expected.items()}
    assert said == predicted
    assert {*said.values()} == {"flower", "pagoda"}  # control: there is something to tell apart


@pytest.mark.parametrize("content", [b"", b"hello", b"\xff\xd8\xff\xe0 cut off", b"%!PS-Adobe-3.0 EPSF-3.0\n"])
def test_what_is_no_image_gets_a_400_and_a_line(content: bytes, server: int):
    status, answer = post(server, content)
    assert status == 400
    assert re.fullmatch(r"not an image that can be read: [^\n]+", answer["error"])


def post(port: int, content: bytes) -> tuple[int, dict]:
    """Status and answer of the server, once it is up."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            reply = urllib.request.urlopen(f"http://127.0.0.1:{port}", data=content, timeout=PATIENCE_S)
            return reply.status, json.loads(reply.read())
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read())
        except urllib.error.URLError:
            assert time.monotonic() < deadline
            time.sleep(0.2)
