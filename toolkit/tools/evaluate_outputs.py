"""Write an evaluation as a table and as JSON; evaluation_plot.py draws it."""

import shlex
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

from toolkit.models.cascade import saving
from toolkit.models.classification import Classification
from toolkit.models.intervals import Interval
from toolkit.strategies.base import Metric
from toolkit.system import files
from toolkit.tools.cascade_report import CascadeReport, SplitCascade
from toolkit.tools.evaluation_plot import write_plot
from toolkit.tools.evaluation_report import EvaluationReport

SCHEMA = 2  # version of evaluation.json
SPECS_IN_A_ROW = 4  # columns of a table
WORST = "worst class"
OF_CLASSES = [Classification.metric(name) for name in ("ece", "worst_class")]  # of any task with one class an image
NOTE_ON_COSTS = (
    "expected cost: mean cost, by the cost matrix, of the most probable class, which predict and exports answer",
    "least expected cost: of the class whose expected cost is lowest under the predicted probabilities",
)


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
    for split in report.evaluations:
        yield ""
        yield from _split_lines(report, split)
    if any(metric.costs for metric in report.extra):
        yield ""
        yield from NOTE_ON_COSTS
    if report.cascade is not None:
        for split, result in report.cascade.splits.items():
            yield ""
            yield from _cascade_lines(split, result, report.cascade)
        yield f"  predict     {_predict_command(report, report.cascade)}"


def _split_lines(report: EvaluationReport, split: str) -> Iterator[str]:
    """The metrics of one split: a line for each metric, a column for each eval spec."""
    evaluation = report.evaluations[split]
    some = next(iter(evaluation.scores.values()))
    left_out = f", {some.unreadable} unreadable left out" if some.unreadable else ""
    sampled = f"; in brackets 95% intervals of {report.bootstrap} bootstrap samples" if report.bootstrap else ""
    yield f"{split}, {some.images} images{left_out}{sampled}"
    rows, names = _rows(report, split), [*evaluation.scores]
    wide = max(len(row[0]) for row in rows)
    for first in range(0, len(names), SPECS_IN_A_ROW):
        part = slice(first, first + SPECS_IN_A_ROW)
        cells = [names[part], *([*row[1:]][part] for row in rows)]
        wides = [max(map(len, column)) for column in zip(*cells, strict=True)]
        for head, row in zip(["", *(row[0] for row in rows)], cells, strict=True):
            padded = "  ".join(f"{cell:<{width}}" for cell, width in zip(row, wides, strict=True))
            yield f"{head:{wide}}  {padded}".rstrip()


def _rows(report: EvaluationReport, split: str) -> list[list[str]]:
    """A title and, for each eval spec, a cell: of every metric, and what else belongs to the numbers."""
    evaluation = report.evaluations[split]
    values, found = evaluation.to_json(report.loaded.classes), report.intervals.get(split, {})
    metrics = shown_metrics(report)
    rows = [
        [metric.title, *(_cell(metric, of[metric.name], found.get(spec, {})) for spec, of in values.items())]
        for metric in metrics
    ]
    if any("worst_class" in of for of in values.values()):
        place = next((i for i, metric in enumerate(metrics) if metric.title == WORST), len(metrics) - 1)
        rows.insert(place + 1, ["  which is", *(str(of.get("worst_class", "")) for of in values.values())])
    if any(of["norm_from"] for of in values.values()):
        lent = (f"normalization of {of['norm_from']} px" if of["norm_from"] else "" for of in values.values())
        rows.append(["note", *lent])
    return rows


def shown_metrics(report: EvaluationReport) -> list[Metric]:
    """The metrics of the table: the task's, further ones, and those of any task with one class an image."""
    metrics = [*report.loaded.task.metrics, *report.extra]
    if not all(evaluation.predictions.has_classes for evaluation in report.evaluations.values()):
        return metrics
    return [*metrics, *(metric for metric in OF_CLASSES if metric.name not in {known.name for known in metrics})]


def _cell(metric: Metric, value: float | None, found: Mapping[str, Interval]) -> str:
    """A value and its interval, such as `81.20% (79.90 - 82.41)`."""
    if value is None:
        return "undefined"
    interval = f" ({metric.between(*found[metric.name])})" if metric.name in found else ""
    return f"{metric.text(value).strip()}{interval}"


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
        "bootstrap": {"samples": report.bootstrap, "seed": 0, "level": 0.95} if report.bootstrap else None,
        "metrics": [asdict(metric) for metric in shown_metrics(report)],
        "splits": {split: _split_json(report, split) for split in report.evaluations},
        "cascade": None if report.cascade is None else _cascade_json(report.cascade),
    }


def _split_json(report: EvaluationReport, split: str) -> dict[str, dict[str, Any]]:
    """The values of each eval spec, and the intervals of those that have one, as [low, high]."""
    found = report.intervals.get(split, {})
    return {
        spec: {**values, **({"intervals": {name: [*of] for name, of in found[spec].items()}} if spec in found else {})}
        for spec, values in report.evaluations[split].to_json(report.loaded.classes).items()
    }


def _cascade_json(cascade: CascadeReport) -> dict[str, Any]:
    splits = {
        split: {**asdict(result), "times_less_compute": result.alone_gmacs / result.gmacs}
        for split, result in cascade.splits.items()
    }
    return {"confidence": cascade.confidence, "tuned_on": cascade.tuned_on, "splits": splits}
