"""`accelerate_configs/`: each file through Accelerate's own loader and launcher; those for CPUs are run."""

import argparse
import json
import re
import socket
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import DistributedType
from accelerate.utils.launch import prepare_multi_gpu_env, prepare_simple_launcher_cmd_env

from tests.conftest import ACCELERATE, ROOT, SLOW, Runner

FOLDER = ROOT / "accelerate_configs"
CLOUDS = ("aws", "gcp", "azure")
SEVERAL_MACHINES = ("multi_node", *(f"{cloud}_multi_node" for cloud in CLOUDS))
NAMES = ("cpu", "multi_cpu", "single_gpu", "multi_gpu", "gcp_tpu", *CLOUDS, *SEVERAL_MACHINES)
every_file = pytest.mark.parametrize("name", NAMES)

# What the launcher reads while it validates, before it builds a command: see `_validate_launch_command`.
READ_FIRST = {
    "compute_environment",
    "distributed_type",
    "mixed_precision",
    "gpu_ids",
    "num_machines",
    "debug",
    "use_cpu",
}


class Watched(argparse.Namespace):
    """Arguments that remember which of them were read."""

    read: set[str]

    def __getattribute__(self, name: str):
        if name != "read" and not name.startswith("__"):
            self.read.add(name)
        return super().__getattribute__(name)


def keys_read(file: Path) -> set[str]:
    """The keys that reach a process when `accelerate launch` starts the file on one machine or on two."""
    found = set(READ_FIRST)
    for more in ((), ("--num_machines", "2", "--main_process_ip", "10.0.0.1", "--main_process_port", "29500")):
        words = ["--config_file", str(file), *more, "script.py"]
        arguments, _, _ = _validate_launch_command(launch_command_parser().parse_args(words))
        if more and not arguments.multi_gpu:
            continue
        watched = Watched(read=set(), **vars(arguments))
        (prepare_multi_gpu_env if arguments.multi_gpu else prepare_simple_launcher_cmd_env)(watched)
        found |= watched.read
    return found


def test_the_readme_has_a_line_for_every_file_that_the_launcher_understands():
    rows = [row for row in (FOLDER / "README.md").read_text().splitlines() if row.startswith("| [")]
    assert sorted(name for row in rows for name in re.findall(r"\[(\w+)\]\(\1\.yaml\)", row)) == sorted(NAMES)
    lines = [re.findall(r"`(toolkit launch [^`]+)`", row)[0] for row in rows]
    for words in (line.split()[2:] for line in lines):
        arguments, _, _ = _validate_launch_command(launch_command_parser().parse_args(words))
        assert (arguments.training_script, arguments.training_script_args) == ("train", ["multi"])
        assert Path(arguments.config_file).exists()


def test_there_is_a_file_for_every_kind_of_machine_when_the_folder_is_listed():
    assert sorted(path.stem for path in FOLDER.glob("*.yaml")) == sorted(NAMES)


@every_file
def test_a_file_is_understood_when_accelerate_loads_it(name: str):
    config = load_config_from_file(str(FOLDER / f"{name}.yaml"))
    kinds = {"cpu": DistributedType.NO, "single_gpu": DistributedType.NO}
    assert config.distributed_type == kinds.get(name, DistributedType.MULTI_GPU)
    assert config.use_cpu is name.endswith("cpu")
    machines = 2 if name in SEVERAL_MACHINES else 1
    assert config.num_processes == {"cpu": 1, "single_gpu": 1, "multi_cpu": 2}.get(name, 8 * machines)
    assert config.num_machines == machines


@every_file
def test_a_file_has_no_key_that_the_launcher_ignores_when_it_is_read(name: str):
    file = FOLDER / f"{name}.yaml"
    if name.startswith("multi") or name in (*CLOUDS, *SEVERAL_MACHINES):
        assert "machine_rank" in keys_read(file)  # control: it counts on several machines
    assert "rdzv_backend" not in keys_read(file)  # control: known to be ignored
    keys = set(yaml.safe_load(file.read_text()))
    assert keys - keys_read(file) == set()


@every_file
def test_a_file_says_in_its_first_line_what_it_is_for_when_opened(name: str):
    assert re.match(r"# \S.+", (FOLDER / f"{name}.yaml").read_text())


@pytest.mark.slow
@pytest.mark.parametrize(("name", "processes"), [pytest.param("cpu", 1, marks=SLOW), ("multi_cpu", 2)])
def test_a_run_has_the_processes_of_its_file_when_launched_on_a_cpu(
    run: Runner, tmp_path: Path, name: str, processes: int
):
    launcher = (*ACCELERATE, "--config_file", str(FOLDER / f"{name}.yaml"))
    words = ("--synthetic-count", "60", "--batch-size", "12", "--epochs", "1", "--log-with", "none", "--record-samples")
    done = run("recipes/multiscale.py", *words, "--output-dir", "out", launcher=launcher)
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert (summary["processes"], summary["device"], summary["precision"]) == (processes, "cpu", "no")
    assert summary["exit_reason"] == "done"
    assert set(summary["test"]) == {"20px", "32px", "64px"}  # the default scales
    assert summary["test"]["64px"]["images"] == 20  # each counted once
    lines = [json.loads(line) for line in (tmp_path / "out" / "samples.jsonl").read_text().splitlines()]
    assert {line["rank"] for line in lines} == set(range(processes))
    assert sorted(i for line in lines for i in line["ids"]) == list(range(60))


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


@SLOW
def test_two_launchers_train_together_with_the_file_for_several_machines(run: Runner, tmp_path: Path):
    words = ("--synthetic-count", "60", "--batch-size", "12", "--epochs", "1", "--log-with", "none", "--record-samples")
    port = str(free_port())

    def machine(rank: int) -> subprocess.CompletedProcess[str]:
        flags = ("--machine_rank", str(rank), "--num_processes", "2", "--main_process_port", port)
        launcher = (*ACCELERATE, "--config_file", str(FOLDER / "multi_node.yaml"), *flags, "--mixed_precision", "no")
        return run("recipes/multiscale.py", *words, "--output-dir", "out", launcher=launcher)

    with ThreadPoolExecutor(2) as machines:
        ended = [*machines.map(machine, (0, 1))]
    assert [done.returncode for done in ended] == [0, 0], ended[0].stderr + ended[1].stderr
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["processes"] == 2
    lines = [json.loads(line) for line in (tmp_path / "out" / "samples.jsonl").read_text().splitlines()]
    assert {line["rank"] for line in lines} == {0, 1}
    assert sorted(i for line in lines for i in line["ids"]) == list(range(60))
