"""The files of docs/launch/: their syntax, their commands, and the Slurm script's requeueing."""

import json
import os
import re
import shlex
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from tests.conftest import PATIENCE_S, ROOT
from toolkit.__main__ import main
from toolkit.system.preemption import EXIT_CODE

PLACE = ROOT / "docs" / "launch"
SBATCH = PLACE / "slurm.sbatch"
FEW = ["--synthetic-count", "240", "--synthetic-size", "32", "--arch", "test_vit", "--scales", "16,32"]
TRAINED = [*FEW, "--batch-size", "24", "--log-with", "none", "--save-every-steps", "4", "--epochs", "12"]
# What the two programs of Slurm that the script calls do on an allocation of one machine.
STAND_INS = {
    "srun": 'exec "$@"',
    "scontrol": 'if [ "$1" = show ]; then echo 127.0.0.1; else echo "$@" >> "$SAID"; fi',
}


def planned(words: list[str]) -> None:
    """Let `toolkit` plan a run with these words."""
    assert main([*words, "--dry-run", "--log-with", "none"]) == 0


def with_values(words: list[str], **values: str) -> list[str]:
    """The words with other values of some flags, named with underscores."""
    flags = {f"--{name.replace('_', '-')}": value for name, value in values.items()}
    split = [part for word in words for part in (word.split("=", 1) if word.startswith("--") else [word])]
    return [flags.get(before, word) for before, word in zip(["", *split], split, strict=False)]


def test_every_file_of_the_folder_is_on_its_page():
    text = (PLACE / "README.md").read_text()
    for path in PLACE.iterdir():
        assert path.name == "README.md" or f"[{path.name}]({path.name})" in text


@pytest.mark.parametrize("check", [["bash", "-n"], ["shellcheck"]], ids=["bash", "shellcheck"])
def test_the_slurm_script_is_a_right_one(check: list[str]):
    if shutil.which(check[0]) is None:
        pytest.skip(f"needs {check[0]}")
    done = subprocess.run([*check, str(SBATCH)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    options = re.findall(r"^#SBATCH --([a-z-]+)(?:=|$)", SBATCH.read_text(), re.MULTILINE)
    assert {"nodes", "ntasks-per-node", "signal", "requeue"} <= {*options}
    assert len(options) == SBATCH.read_text().count("#SBATCH")


def test_kubernetes_is_told_a_command_that_trains(tmp_path: Path):
    job = yaml.safe_load((PLACE / "trainjob.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("trainer.kubeflow.org/v1alpha1", "TrainJob")
    trainer = job["spec"]["trainer"]
    assert trainer["command"] == ["tini", "--", "torchrun"]
    words = trainer["args"][trainer["args"].index("toolkit") + 1 :]
    planned(with_values(words, data_root="synthetic", output_dir=str(tmp_path / "run")))
    mounted = job["spec"]["runtimePatches"][0]["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"][0]
    pod = mounted["template"]["spec"]["template"]["spec"]
    mounts = {mount["name"]: mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"]}
    assert {*mounts} == {volume["name"] for volume in pod["volumes"]}
    assert all(
        word.split("=")[1].startswith(mounts["storage"]) for word in words if word.startswith(("--data", "--out"))
    )
    seconds = {variable["name"]: int(variable["value"]) for variable in trainer["env"]}
    assert seconds["PET_SHUTDOWN_TIMEOUT"] < pod["terminationGracePeriodSeconds"]


def test_skypilot_is_told_a_command_that_trains(tmp_path: Path):
    task: dict[str, Any] = yaml.safe_load((PLACE / "skypilot.yaml").read_text())
    assert {*task} <= {"name", "workdir", "resources", "envs", "setup", "run"}
    assert task["resources"]["job_recovery"]["recover_on_exit_codes"] == [EXIT_CODE]
    own = {"DATA": "synthetic", "RUN": str(tmp_path / "run"), "CONFIG": "accelerate_configs/multi_cpu.yaml"}
    assert {*own} == {*task["envs"]}
    assert (ROOT / task["envs"]["CONFIG"]).exists()
    given = {**os.environ, **own, "SKYPILOT_NUM_GPUS_PER_NODE": "1", "SKYPILOT_NUM_NODES": "1", "PATH": path()}
    command = f"{task['run'].strip()} --dry-run"
    done = subprocess.run(["bash", "-ec", command], env=given, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "simultaneous 64/112/224 px" in done.stdout
    assert shlex.split(task["setup"]) == ["pip", "install", "-e", ".[s3]"]


def test_the_image_has_what_it_copies_hands_signals_on_and_is_not_root():
    text = (PLACE / "Dockerfile").read_text().replace("\\\n", "")
    lines = [line.split(maxsplit=1) for line in text.splitlines() if line and not line.startswith("#")]
    assert {word for word, _ in lines} == {"FROM", "RUN", "WORKDIR", "COPY", "USER", "ENTRYPOINT", "CMD"}
    for word, rest in lines:
        if word == "COPY":
            *sources, _ = rest.split()
            assert all((ROOT / source).exists() for source in sources)
        elif word == "RUN":
            subprocess.run(["sh", "-n", "-c", rest], check=True)
    last = dict(lines)
    assert json.loads(last["ENTRYPOINT"])[:2] == ["tini", "--"]
    assert last["USER"] != "root"


def path() -> str:
    return f"{Path(sys.executable).parent}:{os.environ['PATH']}"


class Cluster:
    """An allocation of one machine, with what the script told Slurm in it."""

    def __init__(self, home: Path) -> None:
        self.run, self.said = home / "run", home / "said"
        for name, does in STAND_INS.items():
            program = home / "bin" / name
            program.parent.mkdir(exist_ok=True)
            program.write_text(f"#!/bin/sh\n{does}\n")
            program.chmod(program.stat().st_mode | stat.S_IXUSR)
        told = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "one", "SLURM_NNODES": "1", "SAID": str(self.said)}
        own = {"RUN": str(self.run), "DATA": "synthetic", "PROCESSES": "2", "PATH": f"{home / 'bin'}:{path()}"}
        self.environment = {**os.environ, **told, **own, "OMP_NUM_THREADS": "1"}

    def start(self, *flags: str) -> subprocess.Popen[str]:
        pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        return subprocess.Popen(["bash", str(SBATCH), *flags], env=self.environment, cwd=ROOT, text=True, **pipe)

    def requeued(self) -> list[str]:
        return self.said.read_text().splitlines() if self.said.exists() else []


@pytest.mark.slow
def test_a_job_of_slurm_is_queued_again_when_its_time_was_over_and_only_then(tmp_path: Path):
    cluster = Cluster(tmp_path)
    job = cluster.start(*TRAINED)
    deadline = time.monotonic() + PATIENCE_S
    while not [*cluster.run.glob("checkpoints/*/COMMITTED")]:
        assert job.poll() is None, job.stdout.read()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    launcher = next(child for child in psutil.Process(job.pid).children() if "torchrun" in " ".join(child.cmdline()))
    launcher.send_signal(signal.SIGUSR1)
    said, _ = job.communicate(timeout=PATIENCE_S)
    assert "stopped by SIGUSR1 at step" in said
    assert cluster.requeued() == ["requeue 7"]

    wrong = cluster.start(*TRAINED, "--no-such-flag")
    said, _ = wrong.communicate(timeout=PATIENCE_S)
    assert "no flag --no-such-flag" in said
    assert wrong.returncode
    assert cluster.requeued() == ["requeue 7"]

    again = cluster.start(*TRAINED)
    said, _ = again.communicate(timeout=PATIENCE_S)
    assert again.returncode == 0, said
    assert "continuing from" in said
    assert json.loads((cluster.run / "summary.json").read_text())["exit_reason"] == "done"
    assert cluster.requeued() == ["requeue 7"]
