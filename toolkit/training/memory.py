"""Out of memory: the most expensive step is tried before training; errors name sizes, phase and a batch that fits."""

import contextlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import torch
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._python_dispatch import TorchDispatchMode

from toolkit.data.loading.batches import empty_batch
from toolkit.models.collectives import gather_objects
from toolkit.models.optimizer import check_optimizer
from toolkit.strategies.base import Phase
from toolkit.system import host
from toolkit.system.errors import FEWER, OutOfMemoryError, missing_memory
from toolkit.training import device
from toolkit.training.compilation import restoring_state
from toolkit.training.run import Run
from toolkit.training.step_plan import step_sizes

SUPPORTED = ("cpu", "cuda", "mps", "xpu")  # elsewhere each size would be compiled for the trial
SPARE_GB = 0.3  # on a CPU, for loader threads, evaluation, and what the optimizer's step needs in passing
HEADROOM_GB = 0.1  # on a CPU, for what an operation allocates beside its results
PARALLEL = 1 << 20  # numbers in a tensor that all threads of a processor compute


class Headroom(TorchDispatchMode):
    """Raises MemoryError before an operation once little memory is left within the process's limit.

    Large allocations that fail raise; native code ends the process where small ones do.
    """

    def __init__(self, heap: bool) -> None:
        super().__init__()
        self._heap = heap  # whether the heap's free memory is this thread's to use

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if host.bytes_left(self._heap) < HEADROOM_GB * 1e9:
            raise MemoryError(f"less than {HEADROOM_GB:g} GB are left")
        return func(*args, **(kwargs or {}))


class Case(NamedTuple):
    """A micro-batch of a step that a run will take."""

    phase: Phase
    sizes: tuple[int, ...]
    images: int  # per process

    @property
    def pixels(self) -> int:
        return self.images * sum(size * size for size in self.sizes)

    def __str__(self) -> str:
        sizes = "+".join(map(str, self.sizes))
        return (
            f"in a step of {self.images} images per process and forward pass at {sizes} px (phase {self.phase.index})"
        )


def try_largest_step(run: Run) -> None:
    """Run the largest micro-batch of the remaining steps forward and backward; no state is changed.

    Raises OutOfMemoryError on all ranks, naming a --device-batch-size that was tried and fits. Covers weights,
    activations, gradients, the state that the optimizer will keep, and on a CPU the decoded images that are kept and
    SPARE_GB for all else; not what a loss of the user's own needs beyond the logits.
    """
    epoch = next(run.epochs(), None)
    if epoch is None or run.accelerator.device.type not in SUPPORTED:
        return
    try:
        for case in _largest(run):
            missing = _missing(run, case)
            if missing and run.settings.compile:  # compiled code can do with less
                missing = _missing(run, case, compiled=True)
            if missing:
                raise _refusal(run, case, missing, _fitting(run, case))
    finally:
        run.state.begin(epoch.phase, run.plan.accumulation(epoch.phase))


def _largest(run: Run) -> list[Case]:
    """The case with most pixels, and that of the phases in which the whole model learns, if it is another."""
    phases = {epoch.phase.index: epoch.phase for epoch in run.epochs()}.values()
    cases = [
        Case(phase, sizes, run.plan.micro_batches[phase.index])
        for phase in phases
        for sizes in step_sizes(run.strategy, phase)
    ]
    learning = [case for case in cases if not case.phase.trainable]
    return [*dict.fromkeys(max(some, key=lambda case: case.pixels) for some in (learning, cases) if some)]


def _step(run: Run, case: Case) -> None:
    """One forward and backward pass of the case, as it needs memory in training; ranks exchange nothing."""
    state, accelerator = run.state, run.accelerator
    state.begin(case.phase, run.plan.accumulation(case.phase))
    network = accelerator.unwrap_model(state.model)
    # Tensors of their own, with the same memory: DistributedDataParallel notes each gradient of a parameter.
    weights = {name: value.detach().requires_grad_(value.requires_grad) for name, value in network.named_parameters()}
    with restoring_state(state.model), torch.compiler.set_stance("force_eager"):
        kept = 0 if state.optimizer.state else check_optimizer(run.settings, accelerator.device)
        learn = [value for value in weights.values() if value.requires_grad]
        reserved = [torch.empty_like(value).zero_() for value in learn for _ in range(kept)]
        if accelerator.device.type == "cpu":
            reserved.append(torch.empty(int(SPARE_GB * 1e9), dtype=torch.uint8))
        pixels = empty_batch(case.images, case.sizes[-1]).zero_().to(accelerator.device)
        with accelerator.autocast():
            logits = functional_call(network, weights, tuple(state.views(pixels, case.sizes)))
        torch.stack(logits).sum().backward()
        del reserved


def _step_on_cpu(run: Run, case: Case, keep: bool) -> None:
    """The same within free memory. `keep`: freed memory, for training to use, as training does.

    Otherwise it goes back to the kernel and leaves room for the next trial. That is in a thread of its own, because
    oneDNN never forgets a failure of its code generator in a thread (3.12).
    """
    kept_gb = run.data.kept_gb
    free_gb = host.free_memory_gb() / host.local_processes() - kept_gb
    if free_gb < SPARE_GB:  # torch's own code does not bear that every allocation fails
        raise MemoryError(f"{free_gb:.1f} GB are free")

    def within_free_memory() -> None:  # also in the thread: one that starts without memory would never be seen to start
        torch.zeros(PARALLEL).add_(1)  # starts the threads that compute for this one: later they might lack memory
        with host.within_free_memory(kept_gb), Headroom(heap=keep):
            _step(run, case)

    if keep:
        within_free_memory()
        return
    device.keep_freed_memory(False)
    try:
        with ThreadPoolExecutor(1) as thread:
            thread.submit(within_free_memory).result()
    finally:
        device.keep_freed_memory()


def _missing(run: Run, case: Case, compiled: bool = False, keep: bool = True) -> str:
    """What memory some rank lacked for a case; empty if all had enough. Every rank must call it."""
    missing = ""
    try:
        if compiled:
            on_cpu = run.accelerator.device.type == "cpu"
            with host.within_free_memory(run.data.kept_gb) if on_cpu else contextlib.nullcontext():
                run.state.compile(case.sizes, case.images)
        elif run.accelerator.device.type == "cpu":
            _step_on_cpu(run, case, keep)
        else:
            _step(run, case)
    except Exception as error:
        missing = missing_memory(error)
        if not missing:
            raise
        if compiled or run.settings.sync_bn:  # other ranks may wait within it for this one
            smaller = next(iter(run.plan.smaller_micro_batches(case.images // 2 + 1, _in_pairs(run))), None)
            raise _refusal(run, case, missing, smaller) from None
    device.give_back_memory(collect=bool(missing))
    return next(filter(None, gather_objects(missing)), "")


def _fitting(run: Run, case: Case) -> int | None:
    """The --device-batch-size that fits, halved from that of the case until it does; None if none does."""
    tried = case.images
    norms = any(isinstance(module, _BatchNorm) for module in run.state.weights.model.modules())
    least = 2 if norms else 1  # at a size that ends in one pixel, BatchNorm needs two images
    factor = 2 if run.accelerator.device.type == "cpu" else 1  # training there keeps freed memory, up to as much again
    for images in run.plan.smaller_micro_batches(tried, _in_pairs(run)):
        if images > tried // 2 or images < least:
            continue
        tried = images
        try:
            if not _missing(run, case._replace(images=images * factor), keep=False):
                return images
        except ValueError:  # BatchNorm needs two images
            return None
    return None


def _in_pairs(run: Run) -> bool:
    return bool(run.settings.mixup or run.settings.cutmix)


def _refusal(run: Run, case: Case, missing: str, fitting: int | None) -> OutOfMemoryError:
    batch, processes = case.phase.batch_size, run.plan.processes
    if fitting is None:
        advice = "no --device-batch-size fits: use smaller sizes, a smaller model or a device with more memory"
    else:
        steps = batch // (processes * fitting)
        advice = (
            f"give --device-batch-size {fitting}, which computes the same steps of {batch} images in {steps} "
            "micro-batches, or use smaller sizes"
        )
    if run.data.kept_gb > SPARE_GB:
        advice += f"; --cache disk would free the {run.data.kept_gb:.2g} GB per process for decoded images"
    return OutOfMemoryError(f"{missing} {case}", advice)


def explain(run: Run, error: Exception) -> OutOfMemoryError | None:
    """The error of a run whose memory ran out, with the step or evaluation in which it did; None for other errors."""
    what = error.what if isinstance(error, OutOfMemoryError) else ""
    if isinstance(error, OutOfMemoryError) and error.advice != FEWER:
        return error
    missing = what or missing_memory(error)
    if not missing:
        return None
    training, done = run.clocks.training.running, run.state.progress.step
    step = max(0, min(done if training else done - 1, run.plan.steps - 1))
    epoch = next(epoch for epoch in run.plan.epochs() if epoch.start <= step < epoch.end)
    images, at = run.plan.micro_batches[epoch.phase.index], f"(epoch {epoch.number + 1}, phase {epoch.phase.index})"
    smaller = next(iter(run.plan.smaller_micro_batches(images // 2 + 1, _in_pairs(run))), None)
    if training:
        sizes = run.strategy.step(epoch.phase, epoch.first + step - epoch.start).sizes
        return _refusal(run, Case(epoch.phase, sizes, images), f"{missing} at step {step}", smaller)
    where = what or f"{missing} at the end of an epoch"
    fewer = f"give --device-batch-size {smaller}" if smaller else "use a smaller model"
    return OutOfMemoryError(f"{where} {at}", f"{fewer}, or evaluate at smaller sizes")
