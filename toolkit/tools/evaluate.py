"""What a run's best model is worth and costs at any size: figures on labeled images, time and memory of one image."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator

from toolkit.config.tool_settings import Evaluate, Inference
from toolkit.data.loading.reader import ImageReader
from toolkit.models import metrics, recalibration
from toolkit.models.cascade import apply_cascade, cheapest_confidence
from toolkit.models.evaluator import Evaluation, Evaluator
from toolkit.runs import saved_predictions
from toolkit.runs.quarantine import Quarantine
from toolkit.strategies.base import EvalSpec, at_size
from toolkit.system import console, files, host
from toolkit.system.errors import InputError
from toolkit.tools.loaded_run import LoadedRun, load_run
from toolkit.tools.run_data import moved_images, other_images, own_images
from toolkit.training import device
from toolkit.training.monitor import peak_memory_gb, reset_peak_memory

TIMED_S = 1.0  # spent on timing one figure
MAX_LOSS = 0.5  # points of top-1
UNREADABLE, PREDICTIONS = "unreadable.jsonl", "predictions"


@dataclass(frozen=True)
class Cost:
    """Of one image, from pixels on the host to the answer there; `gmacs`: 10^9 multiply-adds.

    `images_per_s`: of one process, in batches; `peak_memory_gb`: with such a batch, on a CPU the most so far.
    """

    gmacs: float
    latency_p50_ms: float
    latency_p95_ms: float
    images_per_s: float
    peak_memory_gb: float


@dataclass(frozen=True)
class CascadeReport:
    """What a cascade does on one split, against its last size alone: top-1 in percent, mean cost of an image.

    `shares`: of the images that each size has the word on, in [0, 1].
    """

    top1: float
    alone_top1: float
    gmacs: float
    alone_gmacs: float
    shares: dict[int, float]


@dataclass(frozen=True)
class EvaluationReport:
    """Everything that was found out: `costs` by figure, `evaluations` and `cascades` by split.

    `recalibrated`: sizes with new statistics, and the number of images that those are estimated on; `tuned_on`: the
    split that `confidence` was chosen on, None where it was given.
    """

    flags: Evaluate
    loaded: LoadedRun
    machine: str
    specs: tuple[EvalSpec, ...]
    costs: dict[str, Cost]
    evaluations: dict[str, Evaluation]
    recalibrated: tuple[list[int], int]
    confidence: float | None
    tuned_on: str | None
    cascades: dict[str, CascadeReport]


def start_evaluator(loaded: LoadedRun, flags: Inference, unreadable: Path | None = None) -> Evaluator:
    """The Accelerator and a run's model on it, in the run's precision unless told otherwise; `device.stop` ends it.

    Images that cannot be read are left out and listed in the file `unreadable`, where there is one.
    """
    accelerator = _start(loaded, flags.amp)
    console.start(accelerator.is_main_process)
    place = accelerator.device
    return Evaluator(
        accelerator,
        loaded.model.to(place),
        loaded.mean.to(place),
        loaded.std.to(place),
        flags.batch_size,
        host.loader_threads() if flags.num_workers is None else flags.num_workers,
        loaded.settings.loader_timeout_s,
        quarantine=Quarantine(unreadable, accelerator.process_index) if unreadable else None,
        flip=flags.flip,
    )


def _start(loaded: LoadedRun, amp: bool | None) -> Accelerator:
    """`amp` None: in what the run was trained in, whoever chose that, or in float32 where this device lacks it."""
    if amp is not None:
        return device.start(loaded.settings.model_copy(update={"amp": amp}))
    precision = loaded.precision()
    return device.start(loaded.settings, precision if precision in (None, *device.precisions()) else "float32")


def evaluate(flags: Evaluate, folder: Path) -> EvaluationReport:
    """Measure and evaluate; what was said of each image is written to `folder`. Raises InputError."""
    loaded = load_run(flags.run, [*(flags.scales or ()), *(flags.cascade or ())])
    scales = tuple(sorted({*(flags.scales or loaded.sizes)}))
    specs = [at_size(size) for size in sorted({*scales, *(flags.cascade or ())})]
    if flags.scales is None:
        specs += [spec for spec in loaded.strategy.eval_specs() if spec not in specs]
    if flags.average:
        if len(scales) == 1:
            raise InputError(f"--average would be ignored with one size, {scales[0]} px: give more --scales or drop it")
        average = EvalSpec(f"{'+'.join(map(str, scales))}px", scales)
        specs += [average] if average not in specs else []
    if (folder / "config.yaml").exists():
        raise InputError(f"--output-dir {folder} is a run, whose own predictions/ would be overwritten: give another")
    files.make_folder(folder)
    evaluator = start_evaluator(loaded, flags, folder / UNREADABLE)
    try:
        return _evaluate(flags, folder, loaded, tuple(specs), evaluator)
    finally:
        device.stop()


def _evaluate(
    flags: Evaluate, folder: Path, loaded: LoadedRun, specs: tuple[EvalSpec, ...], evaluator: Evaluator
) -> EvaluationReport:
    accelerator = evaluator.accelerator
    moved = moved_images(loaded, flags.data_root) if flags.data_root else None
    other = flags.data_root if moved is None else None
    needs_own = other is None or flags.recalibrate or (flags.cascade and flags.confidence is None)
    own = moved or (own_images(loaded) if needs_own else {})
    images = _chosen(flags, own if other is None else other_images(loaded, other))
    unseen = _unseen(loaded, evaluator, specs) if flags.recalibrate else []
    if accelerator.is_main_process:  # everything is right: from here on what an earlier evaluation left is replaced
        (folder / UNREADABLE).unlink(missing_ok=True)
    accelerator.wait_for_everyone()
    seed = loaded.settings.seed
    recalibrated = unseen, recalibration.recalibrate(evaluator, own["train"], unseen, seed) if unseen else 0
    costs = {spec.name: _measure(evaluator, spec, loaded.gmacs) for spec in specs}
    evaluations = {split: evaluator.evaluate(pixels, specs) for split, pixels in images.items()}
    confidence, cascades, tuned_on = flags.confidence, {}, None
    if flags.cascade:
        names, gmacs = (
            [at_size(size).name for size in flags.cascade],
            [costs[at_size(size).name].gmacs for size in flags.cascade],
        )
        if confidence is None:
            tuned_on = "val"
            same = other is None and "val" in evaluations
            known = evaluations["val"] if same else evaluator.evaluate(own["val"], specs)
            max_loss = MAX_LOSS if flags.max_loss is None else flags.max_loss
            confidence = cheapest_confidence(known.predictions, names, gmacs, max_loss)
        cascades = {
            split: measure_cascade(evaluation, flags.cascade, gmacs, confidence)
            for split, evaluation in evaluations.items()
        }
    if accelerator.is_main_process:
        saved_predictions.clear(folder / PREDICTIONS)
        for split, evaluation in evaluations.items():
            saved_predictions.write(folder / PREDICTIONS, split, evaluation.predictions, images[split])
    precision = {"no": "float32", "bf16": "bfloat16", "fp16": "float16"}[accelerator.mixed_precision]
    words = (
        f"{accelerator.device.type}, {accelerator.num_processes} process(es), {torch.get_num_threads()} threads each"
    )
    return EvaluationReport(
        flags, loaded, f"{words}, {precision}", specs, costs, evaluations, recalibrated, confidence, tuned_on, cascades
    )


def _chosen(flags: Evaluate, images: Mapping[str, ImageReader]) -> dict[str, ImageReader]:
    """The split that was asked for, else all but train; raises InputError where there is none."""
    names = [flags.split] if flags.split else [name for name in images if name != "train"]
    if not names or names[0] not in images:
        there = ", ".join(images)
        raise InputError(f"--split {flags.split or 'val or test'}: the data has none; give one of: {there}")
    return {name: images[name] for name in names}


def _unseen(loaded: LoadedRun, evaluator: Evaluator, specs: Sequence[EvalSpec]) -> list[int]:
    """The sizes that --recalibrate is for; raises InputError where there is none."""
    sizes = recalibration.unseen(evaluator, sorted({size for spec in specs for size in spec.sizes}))
    if not sizes:
        known = ", ".join(map(str, evaluator.model.policy.scales))
        raise InputError(
            f"--recalibrate would be ignored: the statistics are those of {known} px, and no other size is asked for, "
            f"or {loaded.settings.arch} has no BatchNorm; drop it"
        )
    return sizes


def measure_cascade(
    evaluation: Evaluation, sizes: Sequence[int], gmacs: Sequence[float], confidence: float
) -> CascadeReport:
    """What going up through `sizes` px, with `gmacs` each, does on a split that was evaluated at all of them."""
    names, predictions = [at_size(size).name for size in sizes], evaluation.predictions
    found, alone = apply_cascade(predictions, names, confidence), predictions.of(names[-1])
    shares = np.bincount(found.exit_index, minlength=len(sizes)) / len(found.exit_index)
    return CascadeReport(
        metrics.accuracy(found.predictions),
        metrics.accuracy(alone),
        found.cost(gmacs),
        gmacs[-1],
        dict(zip(sizes, shares.tolist(), strict=True)),
    )


def _measure(evaluator: Evaluator, spec: EvalSpec, gmacs: Mapping[int, float]) -> Cost:
    """On the main process, while the others wait."""
    evaluator.accelerator.wait_for_everyone()
    place, passes = evaluator.accelerator.device, 1 + evaluator.flip
    reset_peak_memory(place)
    one, many = [0.0], [1.0]
    if evaluator.accelerator.is_main_process:
        one, many = (evaluator.seconds(spec, count, TIMED_S) for count in (1, evaluator.batch_size))
    evaluator.accelerator.wait_for_everyone()
    return Cost(
        gmacs=passes * sum(gmacs[size] for size in spec.sizes),
        latency_p50_ms=1000 * statistics.median(one),
        latency_p95_ms=1000 * float(np.percentile(one, 95)),
        images_per_s=evaluator.batch_size / statistics.median(many),
        peak_memory_gb=peak_memory_gb(place),
    )
