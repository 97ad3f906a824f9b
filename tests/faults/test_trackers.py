"""A dashboard without a key, without a network, or dying in the middle of a run changes nothing but itself."""

import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread

import pytest

from tests.conftest import PATIENCE_S, ROOT, SLOW, recipe

SCRIPT = Path(__file__).with_name("tracked.py")
LAST = "step-000000020"
KEY = "ab12" * 10
SECRETS = {
    "WANDB_API_KEY": KEY,
    "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMI/K7MDENG/bPxRfiCYSECRETKEY",
    "HF_TOKEN": "hf_SECRETSECRETSECRET",
    "NO_PROXY": "127.0.0.1",
    "ftp_proxy": "http://me:PROXYSECRET@127.0.0.1:9",
}
HIDDEN = [KEY, "wJalrXUtnFEMI", "hf_SECRET", "PROXYSECRET"]


def tracked(output: Path, log_with: str, fault: str, code: int = 0, **env: str) -> str:
    """Train; returns all that was said. `env`: beside a home folder of its own, and secrets."""
    home = output.with_name("home")
    home.mkdir(exist_ok=True)
    environment = {**os.environ, **SECRETS, "HOME": str(home), "PYTHONPATH": str(ROOT), **env}
    command = [sys.executable, str(SCRIPT), str(output), log_with, fault]
    done = subprocess.run(
        command, cwd=output.parent, env=environment, capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def learned(output: Path) -> dict[str, str]:
    """Hashes of weights, optimizer and generators at the end; times are left out."""
    files = json.loads((output / "checkpoints" / LAST / "MANIFEST.json").read_text())["files"]
    return {name: entry["sha256"] for name, entry in files.items() if name != "trainer.json"}


def holding(folder: Path, secrets: list[str]) -> list[str]:
    """Files that hold a secret, and paths that do."""
    paths = [*folder.rglob("*")]
    texts = {str(path): path.read_bytes() + str(path).encode() for path in paths if path.is_file()}
    return [path for path, text in texts.items() if any(secret.encode() in text for secret in secrets)]


def records(output: Path) -> list[str]:
    """The kinds of what wandb wrote down of an offline run, in order."""
    (run,) = (output / "wandb").glob("offline-run-*")
    reader = (str(Path(sys.executable).with_name("wandb")), "leet", "inspect", "--json", str(run))
    text = subprocess.check_output(reader, text=True, cwd=output)
    return [json.loads(line)["type"] for line in text.splitlines()]


def syncing(command: str) -> str:
    """What a line that a run has printed would upload."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    words = ["bash", "-c", f"{command} --dry-run"]
    done = subprocess.run(words, env={**os.environ, "PATH": path}, capture_output=True, text=True, check=True)
    return done.stdout + done.stderr


def seconds(name: str, text: str) -> float:
    found = re.search(rf"{name} took ([\d.]+) s", text)
    assert found, text
    return float(found[1])


@pytest.fixture(scope="module")
def untracked(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    output = tmp_path_factory.mktemp("untracked") / "run"
    tracked(output, "none", "none")
    found = learned(output)
    assert "model.safetensors" in found
    return found


@pytest.fixture
def black_hole() -> Iterator[str]:
    """A server that takes every connection and never says a word."""
    with socket.create_server(("127.0.0.1", 0), backlog=100) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


@pytest.fixture
def freezing() -> Iterator[Callable[..., str]]:
    """Starts a server that lets wandb register a run, and then answers no request that holds one of some words.

    `at_once`: nor before that.
    """
    thaw, servers = Event(), []

    def start(*words: str, at_once: bool = False) -> str:
        registered = Event()
        if at_once:
            registered.set()

        class Server(BaseHTTPRequestHandler):
            def log_message(self, *_: object) -> None: ...

            def do_GET(self) -> None:
                self._answer("{}")

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"])).decode(errors="replace")
                if registered.is_set() and any(word in body for word in words):
                    thaw.wait(240)
                elif "upsertBucket" in body:
                    bucket = {"id": "1", "project": PROJECT, "name": json.loads(body)["variables"]["name"]}
                    self._answer(json.dumps({"data": {"upsertBucket": {"bucket": bucket, "inserted": True}}}))
                    registered.set()
                else:
                    self._answer(json.dumps({"data": {"viewer": VIEWER, "project": None}}))

            def _answer(self, text: str) -> None:
                self.send_response(200)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text.encode())

        server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
        Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    thaw.set()
    for server in servers:
        server.shutdown()
        server.server_close()


PROJECT = {"id": "1", "name": "toolkit", "entity": {"id": "1", "name": "me"}}
VIEWER = {"id": "1", "username": "me", "entity": "me", "flags": "{}", "teams": {"edges": []}}


@SLOW
def test_nothing_is_held_up_when_wandb_has_no_key(untracked: dict[str, str], tmp_path: Path):
    said = tracked(tmp_path / "run", "wandb", "none", WANDB_API_KEY="")
    assert "offline: no API key was found" in said
    assert seconds("start", said) <= 10
    assert learned(tmp_path / "run") == untracked
    kinds = records(tmp_path / "run")
    assert kinds[-1] == "exit"
    assert "preempting" not in kinds
    assert holding(tmp_path / "run", HIDDEN) == []


@SLOW
def test_the_dashboard_is_told_to_expect_more_when_a_run_is_preempted(tmp_path: Path):
    tracked(tmp_path / "run", "wandb", "stop", code=75, WANDB_MODE="offline")
    kinds = records(tmp_path / "run")
    assert kinds.index("preempting") < kinds.index("exit")


@SLOW
def test_a_start_is_held_up_10_s_at_most_when_the_server_is_a_black_hole(
    untracked: dict[str, str], tmp_path: Path, black_hole: str
):
    started = time.monotonic()
    said = tracked(tmp_path / "run", "wandb", "none", WANDB_BASE_URL=black_hole)
    assert "offline: 127.0.0.1 does not answer" in said
    assert 5 <= seconds("start", said) <= 10
    assert seconds("finish", said) < 10
    assert time.monotonic() - started < 90  # its end is not held up either: 20 s more where a run was half registered
    assert learned(tmp_path / "run") == untracked
    assert holding(tmp_path / "run", HIDDEN) == []


@SLOW
def test_a_run_is_offline_when_the_server_answers_but_does_not_register_it(
    untracked: dict[str, str], tmp_path: Path, freezing: Callable[..., str]
):
    """wandb holds the id of a start that failed: the run is written under another, and uploaded to its own."""
    started = time.monotonic()
    said = tracked(tmp_path / "run", "wandb", "none", WANDB_BASE_URL=freezing("upsertBucket", at_once=True))
    assert "wandb     offline: " in said
    assert "continuing fromout it" not in said
    assert seconds("start", said) < 20
    assert time.monotonic() - started < 120
    assert learned(tmp_path / "run") == untracked
    kinds = records(tmp_path / "run")
    assert kinds[-1] == "exit"
    assert "history" in kinds
    run_id = json.loads((tmp_path / "run" / ".dashboard-wandb.json").read_text())["id"]
    command = re.search(r"`(.*)` uploads it later", said)[1]
    assert f"--id {run_id} " in command
    assert "Would sync 1 run" in syncing(command)


@SLOW
def test_the_end_comes_in_time_when_the_network_goes_in_the_middle(
    untracked: dict[str, str], tmp_path: Path, freezing: Callable[..., str]
):
    said = tracked(tmp_path / "run", "wandb", "none", WANDB_BASE_URL=freezing(""))
    assert "/me/toolkit/runs/" in said  # it was online
    assert seconds("start", said) <= 10
    assert seconds("finish", said) < 20
    assert "the dashboard failed and is left alone from here: Failed to verify credentials" in said
    assert learned(tmp_path / "run") == untracked
    assert list((tmp_path / "run" / "wandb").glob("run-*/*.wandb"))  # for `wandb sync`
    assert holding(tmp_path / "run", HIDDEN) == []


@SLOW
def test_what_is_left_and_how_it_gets_there_is_said_when_uploads_take_too_long(
    untracked: dict[str, str], tmp_path: Path, freezing: Callable[..., str]
):
    url = freezing("CreateArtifact", "CreateRunFiles", '{"files"')
    said = tracked(tmp_path / "run", "wandb", "none", WANDB_BASE_URL=url)
    assert 6 <= seconds("finish", said) < 20  # FINISH_S is 6 here, and 60 s else; without it this never ends
    assert learned(tmp_path / "run") == untracked
    (rest,) = (tmp_path / "run" / "wandb").glob("run-*")
    assert list(rest.glob("*.wandb"))
    command = re.search(r"took longer than 6 s to upload: `(.*)` sends the rest later", said)[1]
    assert str(rest) in command
    assert "Would sync 1 run" in syncing(command)
    assert "No runs to sync" in syncing(command.replace("--include-online ", ""))  # control
    notes = json.loads((tmp_path / "run" / ".dashboard-wandb.json").read_text())
    name, best = f"me/toolkit/model-{notes['id']}", tmp_path / "run" / "best"
    words = f"--type model --alias best --alias step-20 --name {name} {best}"
    assert f"`wandb artifact put {words}` does that later" in said
    assert notes["model"] is None
    assert holding(tmp_path / "run", HIDDEN) == []


@SLOW
@pytest.mark.parametrize(("log_with", "fault"), [("wandb", "service"), ("wandb", "folder"), ("tensorboard", "folder")])
def test_a_run_goes_on_when_its_dashboard_dies_in_the_middle(
    untracked: dict[str, str], tmp_path: Path, log_with: str, fault: str
):
    said = tracked(tmp_path / "run", log_with, fault, WANDB_API_KEY="")
    assert learned(tmp_path / "run") == untracked
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["exit_reason"] == "done"
    if (log_with, fault) != ("wandb", "folder"):  # whose files stay open
        assert "the dashboard failed and is left alone from here" in said or "could not be closed" in said
    assert holding(tmp_path / "run", HIDDEN) == []


@SLOW
def test_the_weights_are_others_when_a_dashboard_draws_from_the_run_s_generator(
    untracked: dict[str, str], tmp_path: Path
):
    """The control: the comparison can fail."""
    tracked(tmp_path / "run", "none", "draw")
    found = learned(tmp_path / "run")
    assert found.keys() == untracked.keys()
    assert found["model.safetensors"] != untracked["model.safetensors"]


def test_a_secret_is_found_when_it_is_there(tmp_path: Path):
    """The control of the search."""
    (tmp_path / "deep" / "in").mkdir(parents=True)
    (tmp_path / "deep" / "in" / "file.bin").write_bytes(b"\0\xff" + KEY.encode() + b"\0")
    assert holding(tmp_path, HIDDEN) == [str(tmp_path / "deep" / "in" / "file.bin")]


@pytest.mark.parametrize(
    "url",
    ["s3://me:SECRET@bucket/shards", "https://host/shards?X-Amz-Signature=SECRET", "az://box/shards#SECRET"],
)
def test_a_url_with_a_secret_is_refused_without_repeating_it_when_it_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], url: str
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.yaml").write_text(f"data_root: {url}\n")
    for words in (["--data-root", url], ["--config", "config.yaml"]):
        assert recipe("single_scale")([*words, "--output-dir", "run"]) == 2
        out, err = capsys.readouterr()
        assert "a URL must hold no password, token or query" in err
        assert "SECRET" not in out + err
    assert not (tmp_path / "run").exists()
