"""What a launcher or the environment asks of a run: carried out, or refused in one line that names the cure.

The one place that reads their variables for that. A row of a table is one request.
"""

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import psutil
import torch
from accelerate import Accelerator
from accelerate.utils import parse_flag_from_env

from toolkit.system import preemption
from toolkit.system.errors import InputError, first_line

OFF = ("", "0", "1", "no", "none", "false", "off", "auto")  # values of Accelerate's variables that ask for nothing
# Accelerate joins processes on CPUs by these, without torchrun; the last is everyone's.
MPI_SIZES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE")
WHOLE_MODEL = (
    "every process holds the whole model (docs/scaling.md says why): give distributed_type MULTI_GPU, as in "
    "accelerate_configs/multi_gpu.yaml"
)


@dataclass(frozen=True)
class Feature:
    """A choice in Accelerate's config that recipes do not carry out; `of_training`: it asks nothing of other tools."""

    variable: str
    asks: str
    cure: str
    off: tuple[str, ...] = OFF
    of_training: bool = False


SWITCH_OFF = ("", "0", "no", "n", "f", "false", "off")
FEATURES = (
    Feature("ACCELERATE_USE_FSDP", "FSDP", WHOLE_MODEL, SWITCH_OFF),
    Feature("ACCELERATE_USE_DEEPSPEED", "DeepSpeed", WHOLE_MODEL, SWITCH_OFF),
    Feature("ACCELERATE_USE_MEGATRON_LM", "Megatron-LM", WHOLE_MODEL, SWITCH_OFF),
    Feature("ACCELERATE_USE_PARALLELISM_CONFIG", "a parallelism_config", WHOLE_MODEL, SWITCH_OFF),
    Feature(
        "ACCELERATE_SAGEMAKER_DISTRIBUTED_TYPE",
        "SageMaker's own data or model parallelism",
        "start torchrun there (distribution={'torch_distributed': {'enabled': True}})",
    ),
    Feature(
        "ACCELERATE_DYNAMO_BACKEND",
        "torch.compile for one shape",
        "give the recipe --compile, and the launcher --dynamo_backend no (ACCELERATE_DYNAMO_BACKEND=no)",
    ),
    Feature(
        "ACCELERATE_GRADIENT_ACCUMULATION_STEPS",
        "gradient accumulation",
        "--batch-size counts the images of a whole optimizer step over all processes; for N micro-batches give "
        "--device-batch-size = --batch-size / (processes x N), and take gradient_accumulation_steps from its config",
        of_training=True,
    ),
    Feature(
        "ACCELERATE_GRADIENT_CLIPPING",
        "gradient clipping",
        "give the recipe --gradient-clip, and take gradient_clipping from its config",
        off=("", "none", "auto"),
        of_training=True,
    ),
)


def _number(value: str) -> int:
    """A count; the smallest of torchrun's MIN:MAX. 1 if it is none, so that it asks for nothing."""
    first = value.split(":")[0].strip()
    return int(first) if first.isdigit() else 1


def _hosts(value: str) -> int:
    """The length of a JSON list."""
    try:
        return len(json.loads(value))
    except (TypeError, ValueError):
        return 1


def _replicas(value: str) -> int:
    """The machines in a JSON object of lists, {"cluster": {"workerpool0": [...], ...}}."""
    try:
        return sum(len(pool) for pool in json.loads(value)["cluster"].values())
    except (AttributeError, KeyError, TypeError, ValueError):
        return 1


@dataclass(frozen=True)
class Tasks:
    """The number of tasks or machines on which `who` starts the same command; each must join the run.

    `also`: a variable that must be there too. `unless_torchrun`: torchrun reads or replaces it.
    """

    variable: str
    who: str
    count: Callable[[str], int] = _number
    also: str | None = None
    unless_torchrun: bool = False


TASKS = (
    Tasks("SLURM_STEP_NUM_TASKS", "srun", also="SLURM_PROCID"),  # an allocation's SLURM_NTASKS starts nothing
    Tasks("OMPI_COMM_WORLD_SIZE", "mpirun"),
    Tasks("PMI_SIZE", "mpiexec"),
    Tasks("MV2_COMM_WORLD_SIZE", "mpirun"),
    Tasks("JSM_NAMESPACE_SIZE", "jsrun"),
    Tasks("HOROVOD_SIZE", "horovodrun"),
    Tasks("AZUREML_NODE_COUNT", "Azure ML"),
    Tasks("TF_CONFIG", "TF_CONFIG", _replicas),
    Tasks("FLUX_JOB_SIZE", "flux run"),
    Tasks("SM_HOSTS", "SageMaker", _hosts),
    Tasks("CLUSTER_SPEC", "Vertex AI", _replicas),
    Tasks("AWS_BATCH_JOB_NUM_NODES", "AWS Batch"),
    Tasks("SKYPILOT_NUM_NODES", "SkyPilot"),
    Tasks("DSTACK_NODES_NUM", "dstack"),
    Tasks("PET_NNODES", "the environment (torchrun's variables)", unless_torchrun=True),
    Tasks("PET_NPROC_PER_NODE", "the environment (torchrun's variables)", unless_torchrun=True),
)


def check_features(precision: str | None, cpu: bool, trains: bool) -> None:
    """Raise InputError for what recipes do not carry out; call it before an Accelerator is created.

    `precision`: that of a flag, which overrides the launcher's. `trains`: False in evaluation and prediction.
    """
    for feature in FEATURES:
        value = os.environ.get(feature.variable, "")
        if value.strip().lower() not in feature.off and (trains or not feature.of_training):
            raise InputError(f"the launcher asks for {feature.asks} ({feature.variable}={value}): {feature.cure}")
    asked = os.environ.get("ACCELERATE_MIXED_PRECISION", "no").lower() if precision is None else "no"
    if asked not in ("no", "bf16", "fp16"):
        raise InputError(
            f"the launcher asks for {asked}, which recipes do not train in: use bf16, fp16 or no, or give --amp"
        )
    if asked == "fp16" and cpu:
        raise InputError("the launcher asks for fp16, which CPUs do not train in: use bf16 or no, or give --amp")
    if device := os.environ.get("ACCELERATE_TORCH_DEVICE"):
        try:
            torch.empty(0, device=device)
        except (AssertionError, RuntimeError) as error:
            raise InputError(f"ACCELERATE_TORCH_DEVICE={device} cannot be used here: {first_line(error)}") from None


def check_tasks(processes: int, environ: Mapping[str, str] = os.environ) -> None:
    """Raise InputError if tasks that were started together are not all in the run, which has so many `processes`."""
    by_torchrun = "WORLD_SIZE" in environ
    launchers = _number(environ.get("GROUP_WORLD_SIZE", str(processes)))  # torchrun's own: one for each task
    for tasks in TASKS:
        value = environ.get(tasks.variable, "")
        if tasks.who == "srun" and "SLURM_PTY_PORT" in environ:  # a shell in the allocation: one task has it
            continue
        if (tasks.also and tasks.also not in environ) or (tasks.unless_torchrun and by_torchrun):
            continue
        count = tasks.count(value)
        if count > launchers:
            raise InputError(
                f"{tasks.who} asks for {count} tasks or processes ({tasks.variable}={value}), but each would train "
                "alone: start torchrun once on each machine, with --nnodes and --nproc-per-node; or give --alone if "
                "each is a run of its own"
            )


def leave_tasks() -> None:
    """With `--alone`: keep Accelerate from joining the tasks of an MPI launcher, which it does on CPUs."""
    if "WORLD_SIZE" not in os.environ:
        for name in MPI_SIZES:
            os.environ.pop(name, None)


def check_group(accelerator: Accelerator) -> None:
    """Raise InputError if the processes of torchrun or Accelerate form no group, or an absent device was asked for."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world > 1 and accelerator.num_processes == 1:
        raise InputError(
            f"the launcher started {world} processes, but each sees only itself (split brain): start with torchrun, or "
            "give Accelerate a config for this machine, such as accelerate_configs/multi_cpu.yaml"
        )
    if accelerator.num_processes == 1 and _wanted_several():
        raise InputError(
            "accelerate launch was asked for several processes or machines, but starts one process in this "
            "configuration: on CPUs use torchrun --nproc-per-node N or accelerate_configs/multi_cpu.yaml, "
            "on GPUs --multi_gpu; or give --num_processes 1"
        )
    on_cpu = os.environ.get("ACCELERATE_TORCH_DEVICE") == "cpu" or parse_flag_from_env("ACCELERATE_USE_CPU")
    if "PJRT_DEVICE" in os.environ and accelerator.device.type != "xla" and not on_cpu:
        raise InputError(
            f"PJRT_DEVICE={os.environ['PJRT_DEVICE']} asks for torch_xla, which is not installed, so that the run "
            f"would use {accelerator.device.type}: install it, or unset PJRT_DEVICE"
        )


def _wanted_several() -> bool:
    """Whether `accelerate launch` was asked for several processes: only then it sets an address for them.

    Not where the address was there before, as in many batch scripts; by the parent's environment.
    """
    address = [os.environ.get(name) for name in ("MASTER_ADDR", "MASTER_PORT")]
    if "WORLD_SIZE" in os.environ or None in address or not preemption.is_launched():
        return False
    try:
        before = psutil.Process(os.getppid()).environ()
    except psutil.Error:
        return False
    return address != [before.get(name) for name in ("MASTER_ADDR", "MASTER_PORT")]
