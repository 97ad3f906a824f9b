"""Whether bfloat16 is faster than float32 on this CPU; some CPUs that have it train at a third of the speed in it."""

import contextlib
import json
import logging
import time
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import nn

from toolkit.system import files, places
from toolkit.training.run_plan import RunPlan

log = logging.getLogger(__name__)

PASS_GMACS = 4.0  # 10^9 multiply-adds of a timed forward pass, about 0.3 s of training on two cores
TIMED_STEPS = 5
CPUINFO = Path("/proc/cpuinfo")


def compare_precisions(accelerator: Accelerator, run_plan: RunPlan) -> None:
    """In mixed precision on a CPU, log its speed relative to float32; measured once per machine, model and size."""
    if accelerator.device.type != "cpu" or accelerator.mixed_precision != "bf16" or not accelerator.is_main_process:
        return
    size = max(size for phase in run_plan.steps.phases for size in phase.sizes)
    ratio = _stored_ratio(run_plan, size)
    line = (
        f"precision bfloat16 trains {ratio:.2f} times as fast as float32 here ({run_plan.parts.model.name}, {size} px)"
    )
    if ratio < 1:
        log.warning("%s: --no-amp is faster", line)
    else:
        log.info("%s", line)


def _stored_ratio(run_plan: RunPlan, size: int) -> float:
    """The speed of bfloat16 as a multiple of float32's, from the cache if it was measured before."""
    model = [run_plan.parts.model.name, json.dumps(run_plan.model.arguments, sort_keys=True, default=str), str(size)]
    machine = [_cpu(), str(torch.get_num_threads()), torch.__version__]
    stored = places.cache_dir() / "precision" / f"{files.key(*machine, *model)}.json"
    try:
        return float(json.loads(stored.read_text())["bf16"])
    except (OSError, ValueError, KeyError, TypeError):
        ratio = bfloat16_speed(run_plan, size)
    with contextlib.suppress(OSError):  # then it is measured again the next time
        stored.parent.mkdir(parents=True, exist_ok=True)
        files.write_json(stored, {"bf16": ratio})
    return ratio


def bfloat16_speed(run_plan: RunPlan, size: int) -> float:
    """Time forward and backward passes of random images in both types; the speed of bfloat16 relative to float32."""
    settings = run_plan.settings.model_copy(update={"pretrained": False})
    model = run_plan.parts.model.create(settings, run_plan.model, run_plan.parts.strategy.norm()).train()
    batch = max(2, min(run_plan.steps.micro_batch, int(PASS_GMACS / max(run_plan.model.gmacs[size], 1e-3))))
    images = torch.randn(batch, 3, size, size).contiguous(memory_format=torch.channels_last)
    seconds: dict[bool, list[float]] = {True: [], False: []}
    for _ in range(1 + TIMED_STEPS):
        for mixed, times in seconds.items():
            times.append(_step_seconds(model, images, mixed))
    return min(seconds[False][1:]) / min(seconds[True][1:])


def _step_seconds(model: nn.Module, images: torch.Tensor, mixed: bool) -> float:
    started = time.perf_counter()
    with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
        (logits,) = model(images)
    logits.float().sum().backward()
    return time.perf_counter() - started


def _cpu() -> str:
    """The processor's name and the instruction set that torch uses on it."""
    try:
        names = [line for line in CPUINFO.read_text().splitlines() if line.startswith("model name")]
    except OSError:
        names = []
    return f"{names[:1]} {torch.backends.cpu.get_cpu_capability()}"
