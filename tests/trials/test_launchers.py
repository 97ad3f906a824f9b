"""What launchers and environments ask for is carried out, or refused in one line that names the cure."""

import json
import os
import shlex
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests import forkserver
from tests.conftest import ACCELERATE, PATIENCE_S, ROOT, SLOW, TINY, Runner, recipe
from toolkit.system.errors import InputError, expected
from toolkit.training import launch_requests

DRY = (*TINY, "--dry-run", "--epochs", "1", "--warmup-epochs", "0")
SLURM_STEP = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "2", "SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "2"}
OPEN_MPI = {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_LOCAL_RANK": "1"}
# What `accelerate launch` sets for one process, and what an earlier launcher leaves in a shell.
USUAL = {
    "ACCELERATE_USE_CPU": "true",
    "ACCELERATE_MIXED_PRECISION": "bf16",
    "ACCELERATE_DYNAMO_BACKEND": "NO",
    "ACCELERATE_DYNAMO_MODE": "default",
    "ACCELERATE_DYNAMO_USE_FULLGRAPH": "False",
    "TORCHELASTIC_RUN_ID": "none",
    "MASTER_ADDR": "node1",
    "MASTER_PORT": "29500",
}
REFUSED = {
    "srun": (SLURM_STEP, "srun asks for 2"),
    "Open MPI": (OPEN_MPI, "mpirun asks for 2"),
    "Intel MPI, MPICH": ({"PMI_SIZE": "4", "PMI_RANK": "0"}, "mpiexec asks for 4"),
    "MVAPICH": ({"MV2_COMM_WORLD_SIZE": "2"}, "mpirun asks for 2"),
    "SageMaker hosts": ({"SM_HOSTS": '["algo-1", "algo-2"]', "SM_NUM_GPUS": "1"}, "SM_HOSTS"),
    "Vertex AI": ({"CLUSTER_SPEC": '{"cluster": {"workerpool0": ["a:1"], "workerpool1": ["b:1"]}}'}, "Vertex AI asks"),
    "AWS Batch": ({"AWS_BATCH_JOB_NUM_NODES": "3"}, "AWS Batch asks for 3"),
    "SkyPilot": ({"SKYPILOT_NUM_NODES": "2", "SKYPILOT_NODE_RANK": "1"}, "SkyPilot asks for 2"),
    "torchrun's machines": ({"PET_NNODES": "2:4"}, "PET_NNODES=2:4"),
    "torchrun's processes": ({"PET_NPROC_PER_NODE": "2"}, "PET_NPROC_PER_NODE=2"),
    "FSDP": ({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}, "multi_gpu.yaml"),
    "DeepSpeed": ({"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4"}, "DeepSpeed"),
    "Megatron-LM": ({"ACCELERATE_USE_MEGATRON_LM": "true"}, "Megatron-LM"),
    "context parallelism": ({"ACCELERATE_USE_PARALLELISM_CONFIG": "true"}, "parallelism_config"),
    "dynamo": ({"ACCELERATE_DYNAMO_BACKEND": "INDUCTOR"}, "--compile"),
    "accumulation": ({"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4"}, "--device-batch-size"),
    "clipping": ({"ACCELERATE_GRADIENT_CLIPPING": "1.0"}, "--gradient-clip"),
    "fp8": ({"ACCELERATE_MIXED_PRECISION": "fp8"}, "--amp"),
    "fp16 on a CPU": ({"ACCELERATE_MIXED_PRECISION": "fp16"}, "--amp"),
    "a precision that is none": ({"ACCELERATE_MIXED_PRECISION": "bf61"}, "bf61"),
    "a device that is none": ({"ACCELERATE_TORCH_DEVICE": "gpu:7"}, "ACCELERATE_TORCH_DEVICE=gpu:7"),
    "SageMaker's own parallelism": ({"ACCELERATE_SAGEMAKER_DISTRIBUTED_TYPE": "DATA_PARALLEL"}, "torchrun"),
    "a CPU, perhaps": ({"ACCELERATE_USE_CPU": "maybe"}, "ACCELERATE_USE_CPU=maybe: must be true or false"),
    "horovodrun": ({"HOROVOD_SIZE": "2", "HOROVOD_RANK": "1"}, "horovodrun asks for 2"),
    "Azure ML": ({"AZUREML_NODE_COUNT": "2"}, "Azure ML asks for 2"),
    "a TPU": ({"PJRT_DEVICE": "TPU"}, "torch_xla"),
}
CARRIED_OUT = {
    "variables that are empty": (
        dict.fromkeys(
            (
                *("ACCELERATE_USE_CPU", "ACCELERATE_TORCH_DEVICE", "ACCELERATE_DYNAMO_BACKEND", "LOCAL_WORLD_SIZE"),
                *("ACCELERATE_MIXED_PRECISION", "LOCAL_RANK", "WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE"),
                "PJRT_DEVICE",
            ),
            "",
        ),
        (),
    ),
    "what accelerate launch sets for one process": (USUAL, ()),
    "an allocation without srun": ({"SLURM_NTASKS": "8", "SLURM_PROCID": "0", "SLURM_NNODES": "2"}, ()),
    "a step of one task": ({**SLURM_STEP, "SLURM_STEP_NUM_TASKS": "1"}, ()),
    "srun with --alone": (SLURM_STEP, ("--alone",)),
    "Open MPI with --alone": (OPEN_MPI, ("--alone",)),
    "one host of SageMaker": ({"SM_HOSTS": '["algo-1"]', "SM_NUM_GPUS": "8"}, ()),
    "a shell in srun's step": ({"SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "0", "SLURM_PTY_PORT": "40001"}, ()),
    "as many processes as there are devices": ({"PET_NPROC_PER_NODE": "auto"}, ()),
    "one machine of Vertex AI": ({"CLUSTER_SPEC": '{"cluster": {"workerpool0": ["a:1"]}}'}, ()),
    "fp8 overridden by a flag": ({"ACCELERATE_MIXED_PRECISION": "fp8"}, ("--no-amp",)),
    "one micro-batch": ({"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "1"}, ()),
    "elastic from one machine on": ({"PET_NNODES": "1:4", "PET_NPROC_PER_NODE": "1"}, ()),
}


def planned(environment: dict[str, str], *flags: str) -> int:
    """The exit code of a dry run in such an environment, which it leaves as it was."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        return recipe("single_scale")([*DRY, *flags])


@pytest.mark.parametrize("asked", REFUSED)
def test_a_request_that_is_not_carried_out_is_refused_in_one_line_that_names_the_cure(
    asked: str, capfd: pytest.CaptureFixture[str]
):
    environment, cure = REFUSED[asked]
    assert planned(environment) == 2
    error = capfd.readouterr().err.strip()
    assert cure in error
    assert error.count("\n") == 0


@pytest.mark.parametrize("asked", CARRIED_OUT)
def test_what_asks_for_nothing_else_or_is_overridden_by_a_flag_is_carried_out(asked: str):
    environment, flags = CARRIED_OUT[asked]
    assert planned(environment, *flags) == 0


def test_torchrun_in_each_task_of_srun_is_one_run_and_standalone_ones_are_refused():
    each_joined = {**SLURM_STEP, "WORLD_SIZE": "8", "GROUP_WORLD_SIZE": "2", "PET_NNODES": "2"}
    launch_requests.check_tasks(8, each_joined)
    with pytest.raises(InputError, match="srun asks for 2"):
        launch_requests.check_tasks(4, {**each_joined, "WORLD_SIZE": "4", "GROUP_WORLD_SIZE": "1"})


def test_more_processes_than_gpus_are_refused_by_the_flag_to_change():
    told = (
        "NCCL error: invalid usage\nLast error:\nDuplicate GPU detected : rank 1 and rank 0 both on CUDA device 1b000"
    )
    assert "--nproc-per-node" in str(expected(RuntimeError(told)))


@SLOW
def test_processes_of_mpirun_join_on_a_cpu_where_they_have_an_address(tmp_path: Path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    command = [sys.executable, str(ROOT / "recipes" / "single_scale.py"), *DRY]
    ranks = []
    for rank in ("0", "1"):
        own = {**OPEN_MPI, "OMPI_COMM_WORLD_RANK": rank, "OMPI_COMM_WORLD_LOCAL_RANK": rank, **address}
        own |= {"OMPI_COMM_WORLD_LOCAL_SIZE": "2"}
        ranks.append(forkserver.Popen(command, {**os.environ, **own}, cwd=tmp_path, stdout=subprocess.PIPE, text=True))
    told = [rank.communicate(timeout=PATIENCE_S)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0]
    assert "2 process(es)" in told[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "code"), [(("--num_processes", "2"), 1), pytest.param(("--num_processes", "1"), 0, marks=SLOW)]
)
def test_accelerate_launch_with_more_processes_than_it_starts_is_refused(
    run: Runner, words: tuple[str, ...], code: int
):
    batch_script = {"MASTER_ADDR": "node1", "MASTER_PORT": "12345"}  # exported by many; no request of the launcher's
    done = run("recipes/single_scale.py", *DRY, launcher=(*ACCELERATE, "--cpu", *words), **batch_script)
    assert done.returncode == code, done.stderr  # of the launcher, which knows 0 and 1 only
    assert ("error: accelerate launch was asked for several processes" in done.stderr) == bool(code)
    assert "Traceback" not in done.stderr


def test_a_precision_in_capitals_is_carried_out(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "BF16")
    assert recipe("single_scale")([*DRY]) == 0
    assert (
        "precision bfloat16 mixed (launcher)" in capsys.readouterr().out
    )  # as Accelerate reads it, which takes BF16 for float32


@pytest.mark.slow
@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_run_trains_with_closed_streams(tmp_path: Path, closed: str):
    words = [sys.executable, str(ROOT / "recipes/single_scale.py"), *(word for word in DRY if word != "--dry-run")]
    words += ["--output-dir", str(tmp_path / "run")]
    done = subprocess.run(f"{shlex.join(words)} {closed}", shell=True, cwd=tmp_path, check=False)
    assert done.returncode == 0
    assert json.loads((tmp_path / "run/summary.json").read_text())["exit_reason"] == "done"
