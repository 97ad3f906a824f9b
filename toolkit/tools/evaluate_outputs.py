"""Write an evaluation as a table and as JSON; evaluation_plot.py draws it."""

import shlex
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from toolkit.models.cascade import saving
from toolkit.models.evaluator import Evaluation
from toolkit.system import files
from toolkit.tools.cascade_report import CascadeReport, SplitCascade
from toolkit.tools.evaluation_plot import write_plot
from toolkit.tools.evaluation_report import EvaluationReport

SCHEMA = 2  # version of evaluation.json


def write_files(report: EvaluationReport) -> None:
    """Write evaluation.txt, evaluation.json and evaluation.svg to the report's folder."""
    files.write_text(report.folder / "evaluation.txt", table(report))
    files.write_json(report.folder / "evaluation.json", to_json(report))
    with files.naming(plot := report.folder / "evaluation.svg"):
        write_plot(report, plot)


def table(report: EvaluationReport) -> str:
    """The report as text."""
    return "".join(f"{line}\n" for line in _lines(report))


def _lines(report: EvaluationReport) -> Iterator[str]:
    wide = max(6, *(len(spec.name) for spec in report.specs))
    yield f"run       {report.loaded.name}, best model (epoch {report.loaded.metadata['epoch'] + 1})"
    yield f"machine   {report.machine}"
    sizes, images = report.recalibrated
    if sizes:
        yield f"statistics of {', '.join(map(str, sizes))} px estimated on {images} training images"
    yield ""
    yield f"cost of one image alone; images/s in batches of {report.options.batch_size}"
    yield f"{'':{wide}}  10^6 multiply-adds  latency p50 ms  p95 ms  images/s  peak memory GB"
    for name, cost in report.costs.items():
        yield (
            f"{name:>{wide}}  {1000 * cost.gmacs:18.2f}  {cost.latency_p50_ms:14.2f}  {cost.latency_p95_ms:6.2f}  "
            f"{cost.images_per_s:8.0f}  {cost.peak_memory_gb:14.2f}"
        )
    for split, evaluation in report.evaluations.items():
        yield ""
        some = next(iter(evaluation.scores.values()))
        left_out = f", {some.unreadable} unreadable left out" if some.unreadable else ""
        yield f"{split}, {some.images} images{left_out}"
        yield from _score_lines(report, evaluation, wide)
    if report.cascade is not None:
        for split, result in report.cascade.splits.items():
            yield ""
            yield from _cascade_lines(split, result, report.cascade)
        yield f"  predict     {_predict_command(report, report.cascade)}"


def _score_lines(report: EvaluationReport, evaluation: Evaluation, wide: int) -> Iterator[str]:
    """The metrics of one split; a line for each eval spec."""
    measured = report.loaded.task.metrics
    heads = [f"{metric.title} %" if metric.percent else metric.title for metric in measured]
    has_classes = evaluation.predictions.has_classes
    heads += ["ECE", "worst class %"] if has_classes else []
    yield f"{'':{wide}}  " + "  ".join(f"{head:>7}" for head in heads)
    for name, values in evaluation.to_json(report.loaded.classes).items():
        cells = [f"{values[metric.name]:.{2 if metric.percent else 4}f}" for metric in measured]
        cells += [f"{values['ece']:.4f}", f"{values['worst_class_accuracy']:.2f}"] if has_classes else []
        line = "  ".join(f"{cell:>{max(7, len(head))}}" for cell, head in zip(cells, heads, strict=True))
        worst = f" {values['worst_class']}" if has_classes else ""
        lent = f"  normalization of {values['norm_from']} px" if values["norm_from"] else ""
        yield f"{name:>{wide}}  {line}{worst}{lent}"


def _predict_command(report: EvaluationReport, cascade: CascadeReport) -> str:
    """The command that makes predictions with this cascade, or why no command does."""
    fresh = sorted({*cascade.sizes} & {*report.recalibrated.sizes})
    if fresh:
        sizes = ", ".join(map(str, fresh))
        return f"would differ: the statistics of {sizes} px that were estimated here are in no run"
    sizes = ",".join(map(str, cascade.sizes))
    words = [report.loaded.name, "PATH", "--cascade", sizes, "--confidence", str(cascade.confidence)]
    words += ["--flip"] if report.options.flip else []
    words += [] if report.options.amp is None else ["--amp" if report.options.amp else "--no-amp"]
    return shlex.join(["toolkit", "predict", *words])


def _cascade_lines(split: str, result: SplitCascade, cascade: CascadeReport) -> Iterator[str]:
    last = max(result.shares)
    chosen = f", chosen on {cascade.tuned_on}" if cascade.tuned_on else ""
    yield f"cascade on {split}, confidence {cascade.confidence:g}{chosen}"
    yield "  exits at    " + "  ".join(f"{size} px {100 * share:.1f}%" for size, share in result.shares.items())
    yield (
        f"  compute     {1000 * result.gmacs:.2f} of {1000 * result.alone_gmacs:.2f} x 10^6 multiply-adds an image: "
        f"{saving(result.gmacs, result.alone_gmacs)} than {last} px alone"
    )
    lost = result.top1 - result.alone_top1
    yield f"  top-1       {result.top1:.2f}% against {result.alone_top1:.2f}%: {lost:+.2f} points"


def to_json(report: EvaluationReport) -> dict[str, Any]:
    """The report as JSON-serializable values."""
    loaded, (sizes, images) = report.loaded, report.recalibrated
    return {
        "schema": SCHEMA,
        "run": loaded.name,
        "epoch": loaded.metadata["epoch"],
        "classes": loaded.classes,
        "machine": report.machine,
        "recalibrated": {"sizes": sizes, "images": images},
        "costs": {name: asdict(cost) for name, cost in report.costs.items()},
        "splits": {split: evaluation.to_json(loaded.classes) for split, evaluation in report.evaluations.items()},
        "cascade": None if report.cascade is None else _cascade_json(report.cascade),
    }


def _cascade_json(cascade: CascadeReport) -> dict[str, Any]:
    splits = {
        split: {**asdict(result), "times_less_compute": result.alone_gmacs / result.gmacs}
        for split, result in cascade.splits.items()
    }
    return {"confidence": cascade.confidence, "tuned_on": cascade.tuned_on, "splits": splits}
