"""The Accelerator and the hardware it runs on: device, processes, threads, precision."""

import atexit
import contextlib
import ctypes
import gc
import logging
import os
import sys
from collections.abc import Sequence

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import (
    DistributedDataParallelKwargs,
    GradientAccumulationPlugin,
)
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from toolkit.config.settings import Settings
from toolkit.models import xla
from toolkit.system import clouds, environment, host
from toolkit.system.errors import InputError, first_line
from toolkit.training import launch_requests, peers
from toolkit.training.compilation import restoring_state

log = logging.getLogger(__name__)

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # from glibc's malloc.h
ACCELERATES = {"float32": "no"}  # Accelerate's names of precisions, where they differ from ours


def has_accelerator() -> bool:
    """Whether there is a GPU of any vendor or a TPU, and the launcher allows its use."""
    return not xla.only_cpu() and (torch.accelerator.is_available() or xla.on_xla())


def precisions() -> tuple[str, ...]:
    """The precisions that the hardware supports, without emulation, the best one last: "float32", "fp16", "bf16"."""
    if not has_accelerator():
        return ("float32", "bf16") if torch.cpu._is_avx512_bf16_supported() else ("float32",)
    if xla.on_xla():
        return ("float32", "bf16")
    if torch.cuda.is_available():
        bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        return ("float32", "fp16", "bf16") if bf16 else ("float32", "fp16")
    if torch.xpu.is_available():
        return ("float32", "bf16") if torch.xpu.is_bf16_supported(including_emulation=False) else ("float32",)
    return ("float32", "fp16") if torch.backends.mps.is_available() else ("float32",)


def best_precision() -> str:
    """The best mixed precision that the hardware supports, by Accelerate's name: "bf16", "fp16" or "no"."""
    return ACCELERATES.get(precisions()[-1], precisions()[-1])


def keep_freed_memory(keep: bool = True) -> None:
    """Make glibc reuse large blocks instead of returning them: training on a CPU is 1.3-1.4x faster.

    By default (`keep` False) the kernel maps and clears new pages for every activation. No effect without Linux and
    glibc.
    """
    if sys.platform == "linux":
        with contextlib.suppress(AttributeError):  # other C libraries have no mallopt
            for option in (M_MMAP_THRESHOLD, M_TRIM_THRESHOLD):
                ctypes.CDLL(None).mallopt(option, 2**30 if keep else 2**17)


def give_back_memory(collect: bool = True) -> None:
    """Release memory cached on the host and on a GPU, so that a peak measured next counts only memory in use.

    `collect`: also that of cycles of objects, which takes up to a second.
    """
    if collect:
        gc.collect()
    if (kind := torch.accelerator.current_accelerator(check_available=True)) is not None:
        torch.get_device_module(kind).empty_cache()
    if sys.platform == "linux":
        with contextlib.suppress(AttributeError):
            ctypes.CDLL(None).malloc_trim(0)


def name(accelerator: Accelerator) -> str:
    """The device's name, for display."""
    if accelerator.device.type in ("cuda", "xpu"):
        return torch.get_device_module(accelerator.device).get_device_name(accelerator.device)
    return f"{accelerator.device.type} ({torch.get_num_threads()} threads)"


def arithmetic(accelerator: Accelerator) -> str:
    """The hardware that the last bits of a sum depend on: device; on a CPU also threads and instruction set."""
    if accelerator.device.type != "cpu":
        return name(accelerator)
    return f"cpu ({torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()})"


def start(settings: Settings, precision: str | None = None, trains: bool = True) -> Accelerator:
    """Create the run's Accelerator and configure torch.

    `precision`: one of `precisions()`; overrides the settings. `trains`: False in evaluation and prediction. Raises
    InputError if the launcher or the environment asks for what is not carried out.
    """
    environment.tidy_variables()
    if precision is None:
        precision = {None: None, True: best_precision(), False: "no"}[settings.amp]
    precision = ACCELERATES.get(precision, precision) if precision else None
    # Without a GPU a plain Accelerator() ignores torchrun's other processes: each would train alone.
    cpu = not has_accelerator()
    launch_requests.check_features(precision, cpu, trains)
    if settings.alone:
        launch_requests.leave_tasks()
    elif "MASTER_ADDR" not in os.environ:  # then no process can find another
        launch_requests.check_tasks(processes=1)
    try:
        xla.join_host()
        with xla.weights_kept():
            accelerator = _accelerator(cpu, precision, settings.peer_timeout_s)
        peers.watch(settings.peer_timeout_s)
        if not settings.alone:
            launch_requests.check_tasks(accelerator.num_processes)
        launch_requests.check_group(accelerator)
    except (ImportError, NotImplementedError, ValueError) as error:
        stop()
        if isinstance(error, InputError):
            raise
        raise InputError(f"Accelerate cannot do what the environment asks for: {first_line(error)}") from None
    except BaseException:
        peers.unwatch()
        raise
    if cpu:
        keep_freed_memory()
        torch.set_num_threads(max(1, host.cpu_quota() // host.local_processes()))
    if settings.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False
    return accelerator


def _accelerator(cpu: bool, precision: str | None, peer_timeout_s: float) -> Accelerator:
    # Evaluation and checkpoints use rank 0's buffers, so they need not be broadcast in each step.
    ddp = DistributedDataParallelKwargs(broadcast_buffers=False)
    return Accelerator(
        cpu=cpu,
        mixed_precision=precision,
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1, sync_with_dataloader=False),
        kwargs_handlers=[ddp, *peers.process_group(peer_timeout_s)],
        step_scheduler_with_optimizer=False,
    )


def configure(accelerator: Accelerator, unused_parameters: bool) -> None:
    """Set DDP options as the plan requires; call it before `Accelerator.prepare`."""
    accelerator.ddp_handler.find_unused_parameters = unused_parameters


def warm_up_ddp_buckets(model: nn.Module, sizes: Sequence[int]) -> None:
    """Make DistributedDataParallel fix its gradient buckets, by a backward pass that changes no state.

    DDP lays out its buckets after the first backward pass of a process. The layout sets the order in which more than
    two processes add up gradients, so a resumed run would start with another order.
    """
    if not isinstance(model, DistributedDataParallel):
        return
    views = [torch.zeros(2, 3, size, size, device=model.device) for size in sizes]  # one image is too few for BatchNorm
    with restoring_state(model), torch.compiler.set_stance("force_eager"):
        torch.stack(model.train()(*views)).sum().backward()


def stop() -> None:
    """Reset Accelerate's state, so that another run can start in the same process.

    The process group stays until the process ends: two successive groups use the same keys of the store, and a rank
    could read its peer's old address.
    """
    peers.unwatch()
    if torch.distributed.is_initialized():
        AcceleratorState._reset_state()
        atexit.unregister(torch.distributed.destroy_process_group)
        atexit.register(torch.distributed.destroy_process_group)
    else:
        AcceleratorState._reset_state(reset_partial_state=True)


def leave() -> None:
    """Close the connections to the other ranks after a failure on this one, so that they notice at once."""
    if torch.distributed.is_initialized():
        atexit.unregister(torch.distributed.destroy_process_group)
        torch.distributed.destroy_process_group()


def describe_machine(settings: Settings, accelerator: Accelerator) -> list[str]:
    """Lines for display: device, processes, threads, precision."""
    origin = "launcher" if settings.amp is None else "--amp" if settings.amp else "--no-amp"
    precision = accelerator.mixed_precision
    words = {"no": "float32", "bf16": "bfloat16 mixed", "fp16": "float16 mixed"}.get(precision, precision)
    if settings.amp and precision == "no":
        words += ", no faster type on this device"
    return [
        f"machine   {accelerator.device.type}, {accelerator.num_processes} process(es), "
        f"{torch.get_num_threads()} threads each, cloud {clouds.cloud(settings.cloud)}",
        f"precision {words} ({origin})",
    ]
