"""Several hosts, as network namespaces: a cut link and a host that dies are named on every side, and the run goes on.

Skipped where namespaces cannot be made: they need root and iproute2.
"""

import json
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from victim import newest

from tests import forkserver
from tests.conftest import PATIENCE_S, ROOT, SLOW
from tests.hosts import CAN, Hosts, hosts

pytestmark = [SLOW, pytest.mark.skipif(not CAN, reason="network namespaces need root and iproute2")]
RECIPE = str(ROOT / "recipes" / "multiscale.py")
TORCHRUN = str(Path(sys.executable).with_name("torchrun"))
TINY = [
    *("--synthetic-count", "240", "--synthetic-size", "32", "--arch", "test_vit", "--scales", "16,32"),
    *("--batch-size", "24", "--optimizer", "sgd", "--learning-rate", "0.05", "--log-with", "none"),
    *("--record-samples", "--save-every-steps", "4", "--num-workers", "1"),
]
STEPS = 10  # an epoch
TIMEOUT_S, EXIT_S = 10, 20
PORT = "29511"


@pytest.fixture(scope="module")
def two() -> Iterator[Hosts]:
    with hosts("a", "b") as made:
        yield made


@pytest.fixture(autouse=True)
def _nothing_left(two: Hosts) -> Iterator[None]:
    yield
    two.clear()


class Training:
    """A run with one process on each of some hosts."""

    def __init__(self, made: Hosts, output: Path, *flags: str, disk: Path | None = None, launcher: str = "") -> None:
        self.hosts, self.output = made, output
        self.logs = {name: output.with_name(f"{output.name}.{name}.log") for name in made.names}
        names, first = made.names, made.address(made.names[0])
        self.processes = {}
        for rank, name in enumerate(names):
            place = {"RANK": str(rank), "LOCAL_RANK": "0", "WORLD_SIZE": str(len(names)), "LOCAL_WORLD_SIZE": "1"}
            env = {**place, "MASTER_ADDR": first, "MASTER_PORT": PORT} if not launcher else {}
            command = [sys.executable]
            if launcher == "static":
                nodes = ["--nnodes", str(len(names)), "--node-rank", str(rank)]
                command = [TORCHRUN, *nodes, "--master-addr", first, "--master-port", PORT, "--max-restarts", "2"]
            elif launcher == "c10d":
                meet = ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"{first}:{PORT}", "--rdzv-id", "hosts"]
                own = ["--local-addr", made.address(name), "--max-restarts", "2"]
                command = [TORCHRUN, "--nnodes", str(len(names)), *meet, *own]
            words = [*command, RECIPE, *TINY, *flags, "--output-dir", str(output)]
            with self.logs[name].open("wb") as log:
                env |= {"GLOO_SOCKET_IFNAME": "eth0", "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
                self.processes[name] = made.start(name, words, env, log, disk)

    def wait_for(self, steps: int) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while len(lines(self.output)) < len(self.processes) * steps:
            assert all(process.poll() is None for process in self.processes.values()), self.texts()
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def ends(self) -> dict[str, tuple[int, float]]:
        """The exit code of each process, and the seconds until then."""
        began, found = time.monotonic(), dict[str, tuple[int, float]]()
        while len(found) < len(self.processes) and time.monotonic() - began < PATIENCE_S:
            for name, process in self.processes.items():
                if name not in found and process.poll() is not None:
                    found[name] = (process.returncode, time.monotonic() - began)
            time.sleep(0.05)
        assert len(found) == len(self.processes), self.texts()
        return found

    def text(self, name: str) -> str:
        return self.logs[name].read_text()

    def texts(self) -> str:
        return "\n".join(f"-- {name}\n{self.text(name)[-2000:]}" for name in self.logs)

    def errors(self, name: str) -> list[str]:
        return [line for line in self.text(name).splitlines() if line.startswith("error")]


def lines(output: Path) -> list[dict[str, Any]]:
    file = output / "samples.jsonl"
    found = file.read_text().splitlines(keepends=True) if file.exists() else []
    return [json.loads(line) for line in found if line.endswith("\n")]


def samples(output: Path) -> dict[int, dict[int, Any]]:
    """The pixels that were delivered, as digests, by step and image."""
    found: dict[int, dict[int, Any]] = {}
    for line in lines(output):
        found.setdefault(line["step"], {}).update(zip(line["ids"], line["digests"], strict=True))
    return found


def weights(output: Path) -> dict[str, torch.Tensor]:
    return load_file(output / "checkpoints" / f"step-{newest(output):09d}" / "model.safetensors")


def check_equal(one: Path, other: Path, apart: float = 0.0) -> None:
    assert samples(one) == samples(other)
    pairs = [(tensor, weights(other)[name]) for name, tensor in weights(one).items()]
    assert max((first - second).abs().max().item() for first, second in pairs) <= apart


@pytest.fixture(scope="module")
def whole(two: Hosts, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three epochs on two hosts, undisturbed."""
    output = tmp_path_factory.mktemp("hosts") / "whole"
    training = Training(two, output, "--epochs", "3")
    assert {code for code, _ in training.ends().values()} == {0}, training.texts()
    return output


def test_two_hosts_train_as_one_does(whole: Path, tmp_path: Path):
    output = tmp_path / "one"
    done = forkserver.run([sys.executable, RECIPE, *TINY, "--epochs", "3", "--output-dir", str(output)])
    assert done.returncode == 0, done.stderr
    check_equal(whole, output, 1e-5)


@pytest.mark.parametrize("lost", [("a b", "b a"), ("a b",), ("b a",)], ids=["both ways", "from a", "from b"])
def test_a_cut_link_ends_both_sides_which_name_each_other_and_the_same_command_continues(
    two: Hosts, whole: Path, tmp_path: Path, lost: Sequence[str]
):
    output = tmp_path / "run"
    training = Training(two, output, "--epochs", "3", "--peer-timeout-s", str(TIMEOUT_S))
    training.wait_for(STEPS + 6)
    for way in lost:
        two.cut(*way.split())
    ends = training.ends()
    two.mend()
    assert [code for code, _ in ends.values()] == [1, 1], training.texts()
    print({name: round(seconds, 1) for name, (_, seconds) in ends.items()}, lost)
    assert all(TIMEOUT_S - 1 < seconds < TIMEOUT_S + EXIT_S for _, seconds in ends.values()), ends
    told = f"for {TIMEOUT_S} s: network or machine; run the same command again"
    assert training.errors("a") == [f"error: no answer from rank 1 on host hostb {told}"]
    assert training.errors("b") == [f"error on rank 1: no answer from rank 0 on host hosta {told}"]
    assert newest(output) >= STEPS
    again = Training(two, output, "--epochs", "3")
    assert {code for code, _ in again.ends().values()} == {0}, again.texts()
    assert "continuing from" in again.text("a")
    check_equal(whole, output)


@pytest.mark.parametrize("victim", ["a", "b"])
def test_a_host_that_dies_is_named_and_the_same_command_continues(two: Hosts, whole: Path, tmp_path: Path, victim: str):
    """As without power: the other side gets no word, not even that a connection is closed."""
    output, other = tmp_path / "run", "b" if victim == "a" else "a"
    training = Training(two, output, "--epochs", "3", "--peer-timeout-s", str(TIMEOUT_S))
    training.wait_for(STEPS + 6)
    two.cut(victim, other)
    two.kill(victim)
    code, seconds = training.ends()[other]
    two.mend()
    assert code == 1
    assert seconds < TIMEOUT_S + EXIT_S
    rank = two.names.index(victim)
    assert f"no answer from rank {rank} on host host{victim} for {TIMEOUT_S} s" in training.errors(other)[0]
    again = Training(two, output, "--epochs", "3")
    assert {code for code, _ in again.ends().values()} == {0}, again.texts()
    check_equal(whole, output)


def test_the_rest_of_three_hosts_name_the_one_that_is_cut_off(tmp_path: Path):
    output = tmp_path / "run"
    with hosts("a", "b", "c") as made:
        training = Training(made, output, "--epochs", "50", "--peer-timeout-s", str(TIMEOUT_S))
        training.wait_for(6)
        for other in ("a", "b"):
            made.cut("c", other)
            made.cut(other, "c")
        ends = training.ends()
    assert all(code == 1 and seconds < TIMEOUT_S + EXIT_S for code, seconds in ends.values()), ends
    assert [len(training.errors(name)) for name in "abc"] == [1, 1, 1]
    for name in "ab":
        assert "no answer from rank 2 on host hostc for" in training.errors(name)[0]
    assert "no answer from rank 0 on host hosta for" in training.errors("c")[0]


@pytest.mark.parametrize("made", [False, True], ids=["absent", "empty"])
def test_hosts_without_a_shared_disk_are_refused_in_one_line_each(two: Hosts, tmp_path: Path, made: bool):
    """Also where a folder with the right name is there."""
    disk = tmp_path / "disk"
    disk.mkdir()
    output = disk / "run" if not made else disk
    training = Training(two, output, "--epochs", "3", disk=disk)
    assert [code for code, _ in training.ends().values()] == [2, 2], training.texts()
    told = f"--output-dir {output}: rank 1 on host hostb does not see what rank 0 on host hosta wrote there: give"
    assert [training.errors(name)[0].partition(": ")[2].startswith(told) for name in "ab"] == [True, True]
    assert [len(training.errors(name)) for name in "ab"] == [1, 1]


@pytest.mark.parametrize("launcher", ["static", "c10d"])
@pytest.mark.parametrize("victim", ["a", "b"])
def test_torchrun_restarts_both_hosts_when_a_process_of_one_is_killed(
    two: Hosts, whole: Path, tmp_path: Path, launcher: str, victim: str
):
    output = tmp_path / "run"
    training = Training(two, output, "--epochs", "3", launcher=launcher)
    training.wait_for(STEPS + 6)
    kill_worker(training.processes[victim].pid)
    ends = training.ends()
    assert [code for code, _ in ends.values()] == [0, 0], training.texts()
    assert "continuing from" in training.text("a")
    check_equal(whole, output)


def kill_worker(launcher: int) -> None:
    import psutil

    workers = [process for process in psutil.Process(launcher).children(recursive=True) if RECIPE in process.cmdline()]
    workers[-1].kill()
