"""evaluation.svg: a metric and the latency against image size, and the metric against the cost."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from toolkit.runs.report.plots import fitting
from toolkit.runs.report.svg import INK, MUTED, STYLE, in_light_colors, scale_colors
from toolkit.strategies.base import Metric
from toolkit.system import files
from toolkit.system.plotting import Axes, Figure, FixedLocator, MaxNLocator, NullLocator, rc_context
from toolkit.tools.evaluation_report import EvaluationReport

WIDTH, HEIGHT = 1120, 340  # px
SPLIT_NAMES = {"val": "validation"}
TRAINED, BORROWED, RECALIBRATED = "trained size", "normalization of the nearest size", "recalibrated"
UNTRAINED = "not trained at this size"  # of a model without BatchNorm
MARKERS = {TRAINED: "o", BORROWED: "o", RECALIBRATED: "D", UNTRAINED: "o"}
FILLED = (TRAINED, RECALIBRATED)


class Point(NamedTuple):
    """One size: px, 10^6 multiply-adds, latency in ms, and where its normalization comes from."""

    name: str
    size: int
    mega: float
    latency_ms: float
    origin: str


def write_plot(report: EvaluationReport, path: Path) -> None:
    """Draw the three plots next to each other as SVG; one color per split, one marker per origin."""
    points, metric = _points(report), _plotted(report)
    label = metric.title + (", %" if metric.percent else "")
    drawing: Any = {**STYLE, "svg.hashsalt": "evaluation"}
    with rc_context(drawing):
        figure = Figure(figsize=(WIDTH / 72, HEIGHT / 72), facecolor="white")
        figure.subplots_adjust(left=0.05, right=0.98, top=0.9, bottom=0.29, wspace=0.2)
        by_size, latency, by_cost = figure.subplots(1, 3)
        colors = scale_colors(max(2, len(report.evaluations)), "light")[::-1]
        for color, (split, evaluation) in zip(colors, report.evaluations.items(), strict=False):
            values = [evaluation.scores[point.name][metric.name] for point in points]
            name = SPLIT_NAMES.get(split, split)
            _draw(by_size, points, [point.size for point in points], values, color, name)
            _draw(by_cost, points, [point.mega for point in points], values, color)
            _draw_combined(by_cost, report, split, color, name)
        _draw(latency, points, [point.size for point in points], [point.latency_ms for point in points], INK)
        for axes, title, x in (
            (by_size, f"{label} against image size", "image size, px"),
            (latency, "Latency of one image alone, median, ms", "image size, px"),
            (by_cost, f"{label} against the cost", "10^6 multiply-adds of one image"),
        ):
            axes.set_title(title[:1].upper() + title[1:], loc="left", size=13, color=INK, pad=12)
            axes.set_xlabel(x, loc="right")
            axes.margins(x=0.06)
        for axes in (by_size, latency):
            _name_sizes(axes, [point.size for point in points])
        _end_at_ticks(latency, 0, None)
        for axes in (by_size, by_cost):
            _end_at_ticks(axes, None, 100 if metric.percent else None)
        by_cost.set_xlim(left=0)
        figure.text(0.98, 0.035, f"Measured on {report.machine}", ha="right", size=11)
        _legend(figure, by_size, by_cost, points)
        figure.savefig(path, format="svg", metadata={"Date": None})
    files.write_text(path, in_light_colors(path.read_text()))


def _plotted(report: EvaluationReport) -> Metric:
    """The metric that selected the model; the task's first one where these images do not have it."""
    selects, first = report.loaded.select_by, report.loaded.task.metrics[0]
    scores = [score for evaluation in report.evaluations.values() for score in evaluation.scores.values()]
    return selects if all(selects.name in score.values for score in scores) else first


def _points(report: EvaluationReport) -> list[Point]:
    """The sizes that were evaluated alone."""
    scores = next(iter(report.evaluations.values())).scores
    points = []
    for spec in report.specs:
        if len(spec.sizes) == 1:
            [size], cost = spec.sizes, report.costs[spec.name]
            origin = TRAINED if size in report.loaded.sizes else UNTRAINED
            origin = BORROWED if scores[spec.name].norm_from else origin
            origin = RECALIBRATED if size in report.recalibrated.sizes else origin
            points.append(Point(spec.name, size, 1000 * cost.gmacs, cost.latency_p50_ms, origin))
    return points


def _draw(
    axes: Axes, points: Sequence[Point], x: Sequence[float], y: Sequence[float], color: str, name: str = ""
) -> None:
    """A line through all points, and a marker at each that tells its origin; `name`: that of the legend."""
    axes.plot(x, y, color=color, linewidth=1.4, label=name or "_")
    for point, place, value in zip(points, x, y, strict=True):
        fill = color if point.origin in FILLED else "white"
        style: dict[str, Any] = {"markerfacecolor": fill, "markersize": 7, "markeredgewidth": 1.6, "zorder": 3}
        axes.plot([place], [value], MARKERS[point.origin], color=color, **style)


def _draw_combined(axes: Axes, report: EvaluationReport, split: str, color: str, name: str) -> None:
    """Averages over several sizes, and the cascade."""
    metric, scores = _plotted(report), report.evaluations[split].scores
    for spec in report.specs:
        if len(spec.sizes) > 1:
            mega = 1000 * report.costs[spec.name].gmacs
            axes.plot(mega, scores[spec.name][metric.name], "s", color=color, label=f"averaged {spec.name}, {name}")
    if report.cascade is not None and metric.name == "top1":
        cascade = report.cascade.splits[split]
        axes.plot(1000 * cascade.gmacs, cascade.top1, "*", markersize=12, color=color, label=f"cascade, {name}")


def _name_sizes(axes: Axes, sizes: Sequence[int]) -> None:
    """An axis of sizes, each with its name where that fits."""
    axes.set_xscale("log")
    named = [sizes[i] for i in fitting(axes, sizes, [str(size) for size in sizes])]
    axes.set_xticks(named, [str(size) for size in named])
    axes.xaxis.set_minor_locator(NullLocator())


def _end_at_ticks(axes: Axes, lowest: float | None, highest: float | None) -> None:
    """`lowest`: where the axis starts; `highest`: what it does not exceed; None: as the values ask for it."""
    low, high = axes.dataLim.intervaly
    found = MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]).tick_values(low if lowest is None else lowest, high)
    ticks = np.minimum(found, np.inf if highest is None else highest)
    axes.yaxis.set_major_locator(FixedLocator(ticks.tolist()))
    axes.set_ylim(ticks[0], ticks[-1])


def _legend(figure: Figure, by_size: Axes, by_cost: Axes, points: Sequence[Point]) -> None:
    """Below all plots: the splits and what else was measured; then the markers that occur."""
    found = [axes.get_legend_handles_labels() for axes in (by_size, by_cost)]
    handles, labels = ([*found[0][i], *found[1][i]] for i in (0, 1))
    style: dict[str, Any] = {"loc": "lower left", "frameon": False, "fontsize": 12, "borderaxespad": 0}
    figure.legend(handles, labels, ncols=len(labels), bbox_to_anchor=(0.045, 0.09), **style)
    origins = list(dict.fromkeys(point.origin for point in points))
    fills = [MUTED if origin in FILLED else "white" for origin in origins]
    markers = [
        by_size.plot([], [], MARKERS[origin], color=MUTED, markerfacecolor=fill, markeredgewidth=1.6)[0]
        for origin, fill in zip(origins, fills, strict=True)
    ]
    figure.legend(markers, origins, ncols=len(origins), bbox_to_anchor=(0.045, 0.02), **style)
