"""What an evaluation leaves behind: a table, JSON, a plot."""

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from toolkit.models import metrics
from toolkit.models.cascade import saving
from toolkit.tools.evaluate import CascadeReport, EvaluationReport

SCHEMA = 1  # of evaluation.json


def table(found: EvaluationReport) -> str:
    """Everything as text for a person."""
    return "".join(f"{line}\n" for line in _lines(found))


def _lines(found: EvaluationReport) -> Iterator[str]:
    wide = max(6, *(len(spec.name) for spec in found.specs))
    yield f"run       {found.loaded.directory.path}, best model (epoch {found.loaded.metadata['epoch']})"
    yield f"machine   {found.machine}"
    sizes, images = found.recalibrated
    if sizes:
        yield f"statistics of {', '.join(map(str, sizes))} px estimated on {images} training images"
    yield ""
    yield f"{'cost':{wide}}  10^6 multiply-adds  latency p50 ms  p95 ms  images/s  peak memory GB"
    for name, cost in found.costs.items():
        yield (
            f"{name:>{wide}}  {1000 * cost.gmacs:18.2f}  {cost.latency_p50_ms:14.2f}  {cost.latency_p95_ms:6.2f}  "
            f"{cost.images_per_s:8.0f}  {cost.peak_memory_gb:14.2f}"
        )
    for split, evaluation in found.evaluations.items():
        yield ""
        some = next(iter(evaluation.scores.values()))
        left_out = f", {some.unreadable} unreadable left out" if some.unreadable else ""
        yield f"{split}, {some.images} images{left_out}"
        yield f"{'':{wide}}  top-1 %  top-5 %    loss    ECE"
        for name, score in evaluation.scores.items():
            error = metrics.calibration_error(evaluation.predictions.of(name))
            lent = f"  normalization of {score.norm_from} px" if score.norm_from else ""
            yield f"{name:>{wide}}  {score.top1:7.2f}  {score.top5:7.2f}  {score.loss:6.4f}  {error:.4f}{lent}"
    for split, cascade in found.cascades.items():
        yield ""
        yield from _cascade_lines(split, cascade, found)
    if found.flags.cascade and found.confidence is not None:
        yield f"  predict     {_predicting(found, found.flags.cascade, found.confidence)}"


def _predicting(found: EvaluationReport, sizes: Sequence[int], confidence: float) -> str:
    """The command that predicts as this cascade was found to."""
    fresh = sorted({*sizes} & {*found.recalibrated[0]})
    if fresh:
        told = ", ".join(map(str, fresh))
        return f"would decide otherwise: the statistics of {told} px that were estimated here are in no run"
    words = [str(found.flags.run), "PATH", "--cascade", ",".join(map(str, sizes)), "--confidence", str(confidence)]
    words += ["--flip"] if found.flags.flip else []
    words += [] if found.flags.amp is None else ["--amp" if found.flags.amp else "--no-amp"]
    return shlex.join(["python", "recipes/predict.py", *words])


def _cascade_lines(split: str, cascade: CascadeReport, found: EvaluationReport) -> Iterator[str]:
    last = max(cascade.shares)
    chosen = f", chosen on {found.tuned_on}" if found.tuned_on else ""
    yield f"cascade on {split}, confidence {found.confidence:g}{chosen}"
    yield "  decided at  " + "  ".join(f"{size} px {100 * share:.1f}%" for size, share in cascade.shares.items())
    yield (
        f"  compute     {1000 * cascade.gmacs:.2f} of {1000 * cascade.alone_gmacs:.2f} x 10^6 multiply-adds an image: "
        f"{saving(cascade.gmacs, cascade.alone_gmacs)} than {last} px alone"
    )
    lost = cascade.top1 - cascade.alone_top1
    yield f"  top-1       {cascade.top1:.2f}% against {cascade.alone_top1:.2f}%: {lost:+.2f} points"


def to_json(found: EvaluationReport) -> dict[str, Any]:
    """Everything as plain values."""
    loaded, (sizes, images) = found.loaded, found.recalibrated
    splits = {
        split: {
            name: {**asdict(score), "ece": metrics.calibration_error(evaluation.predictions.of(name))}
            for name, score in evaluation.scores.items()
        }
        for split, evaluation in found.evaluations.items()
    }
    cascade = {
        "confidence": found.confidence,
        "tuned_on": found.tuned_on,
        "splits": {
            split: {**asdict(cascade), "times_less_compute": cascade.alone_gmacs / cascade.gmacs}
            for split, cascade in found.cascades.items()
        },
    }
    return {
        "schema": SCHEMA,
        "run": str(loaded.directory.path),
        "epoch": loaded.metadata["epoch"],
        "classes": loaded.classes,
        "machine": found.machine,
        "recalibrated": {"sizes": sizes, "images": images},
        "costs": {name: asdict(cost) for name, cost in found.costs.items()},
        "splits": splits,
        "cascade": cascade if found.cascades else None,
    }


@rc_context({"text.parse_math": False})  # names may hold any characters
def write_plot(found: EvaluationReport, path: Path) -> None:
    """Accuracy and latency against size, and accuracy against multiply-adds, as SVG; a color for each split."""
    single = [spec for spec in found.specs if len(spec.sizes) == 1]
    sizes, names = [spec.sizes[0] for spec in single], [spec.name for spec in single]
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for place, (split, evaluation) in enumerate(found.evaluations.items()):
        color, scores = f"C{place}", evaluation.scores
        left.plot(sizes, [scores[name].top1 for name in names], "o-", color=color, label=split)
        mega = {name: 1000 * cost.gmacs for name, cost in found.costs.items()}
        right.plot([mega[name] for name in names], [scores[name].top1 for name in names], "o-", color=color)
        for name in mega.keys() - {*names}:
            right.plot(mega[name], scores[name].top1, "s", color=color, label=f"{split}, averaged {name}")
        if split in found.cascades:
            cascade = found.cascades[split]
            right.plot(1000 * cascade.gmacs, cascade.top1, "*", markersize=12, color=color, label=f"{split}, cascade")
    _axes(left, "image size, px", "top-1, %")
    left.set_xticks(sizes)
    time = left.twinx()
    time.plot(sizes, [found.costs[name].latency_p50_ms for name in names], ".:", color="gray", label="latency p50")
    time.set_ylabel("latency of one image, ms (dotted)")
    time.set_ylim(bottom=0)
    _axes(right, "10^6 multiply-adds of one image", "top-1, %")
    left.legend(loc="best", fontsize="small")
    if right.get_legend_handles_labels()[0]:
        right.legend(loc="best", fontsize="small")
    figure.savefig(path, format="svg")


def _axes(axes: Axes, x: str, y: str) -> None:
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(alpha=0.3)
