"""The plots of a report, each as SVG."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from toolkit.models.metrics import Bin
from toolkit.runs.report.history import Band
from toolkit.runs.report.svg import FAINT, HEIGHT, INK, LEFT, MUTED, RIGHT, TEXT, TOP, WIDTH, drawing, milliseconds
from toolkit.system.plotting import Axes, FixedLocator, FuncFormatter, MaxNLocator, MultipleLocator, NullLocator


@dataclass(frozen=True)
class Line:
    """One series over epochs; `label` is drawn at its end unless empty; `ring` is the index of a circled point.

    `epochs`: how many are done at each value; None: a value an epoch.
    """

    label: str
    values: np.ndarray
    color: str = INK
    dotted: bool = False
    ring: int | None = None
    epochs: np.ndarray | None = None


def over_epochs(
    name: str, epochs: np.ndarray, lines: Sequence[Line], bands: Sequence[Band], unit: str = "", floor: bool = False
) -> str:
    """Plot lines over the epochs done, labeled at their ends, on shaded phases; `floor`: the y-axis starts at 0."""
    with drawing(name, f"{name} over epochs", top=TOP if bands else 8) as (figure, svg):
        axes = figure.add_subplot()
        for line in lines:
            done, there = epochs if line.epochs is None else line.epochs, np.isfinite(line.values)
            sparse = there.sum() < 0.6 * len(done) or there.sum() == 1
            axes.plot(
                done[there],
                line.values[there],
                color=line.color,
                linestyle=(0, (1, 2)) if line.dotted else "-",
                linewidth=1.6 if line.dotted else 1.2 if sparse or line.epochs is not None else 2,
                marker="o" if sparse and not line.dotted else "",
                markersize=5,
                dash_capstyle="round",
                clip_on=False,
            )
            if line.ring is not None:
                _point(axes, done[line.ring], line.values[line.ring], line.color, filled=False)
        axes.set_xlim(0, epochs[-1])
        axes.set_xticks(_epoch_ticks(epochs[-1]))
        axes.set_xlabel("epoch", loc="right", labelpad=3)
        _scale_values(axes, unit, floor)
        _draw_bands(axes, bands)
        known = [(line, np.isfinite(line.values)) for line in lines if line.label]
        _label_ends(
            axes,
            [
                End(line.label, epochs[there][-1], line.values[there][-1], line.color)
                for line, there in known
                if there.any()
            ],
        )
    return svg[0]


def _epoch_ticks(last: float) -> list[float]:
    """0, round numbers, and the last epoch, where the axis ends; a round number too close to it is left out."""
    ticks = [*MaxNLocator(6, integer=True).tick_values(0, last)]
    step = ticks[1] - ticks[0]
    return [*(tick for tick in ticks if tick <= last - 0.6 * step), last]


def _scale_values(axes: Axes, unit: str, floor: bool = False) -> None:
    """Set the y-axis, which ends at ticks, after all is drawn.

    Percentages span at least 2 points; ticks above 100 only if a value is.
    """
    if unit == "%":
        middle = float(np.clip(np.mean(axes.dataLim.intervaly), 1, 99))
        axes.update_datalim([(0, middle - 1), (0, middle + 1)], updatex=False)
        axes.autoscale_view(scalex=False)
    low, high = axes.get_ylim()
    if unit == "%" and axes.dataLim.y1 <= 100:
        low, high = np.clip((low, high), 0, 100)
    ticks = np.round(MaxNLocator(4).tick_values(0 if floor else low, high), 12) + 0.0  # turns -1e-17 and -0 into 0
    axes.yaxis.set_major_locator(FixedLocator(ticks.tolist()))
    axes.set_ylim(ticks[0], ticks[-1])
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}{unit}"))


def _draw_bands(axes: Axes, bands: Sequence[Band]) -> None:
    """Shade every second phase; write the sizes of each phase above it if they fit."""
    per_epoch = (WIDTH - LEFT - RIGHT) / max(1e-9, np.ptp(axes.get_xlim()))
    for i, band in enumerate(bands):
        first, last = band.first - 1, band.last
        if i % 2 == 0:
            axes.axvspan(first, last, color=FAINT, alpha=0.45, linewidth=0, zorder=0)
        words = next(
            (words for words in (f"{band.sizes} px", band.sizes) if 7 * len(words) < (last - first) * per_epoch), ""
        )
        axes.text(
            (first + last) / 2, 1.02, words, transform=axes.get_xaxis_transform(), ha="center", va="bottom", size=11
        )


class End(NamedTuple):
    """The last point of a line, and the label next to it."""

    label: str
    x: float
    y: float
    color: str


def _label_ends(axes: Axes, ends: Sequence[End]) -> None:
    """Label the last points of lines, moving apart labels that would overlap. Call it once the axes are final."""
    places = [axes.transData.transform((end.x, end.y)) for end in ends]
    for i, y in _apart([place[1] for place in places], TEXT + 2):
        axes.annotate(
            ends[i].label,
            (ends[i].x, ends[i].y),
            (places[i][0] + 11, y),
            textcoords="figure pixels",
            color=ends[i].color,
            va="center",
            annotation_clip=False,
        )


def _apart(heights: Sequence[float], least: float) -> list[tuple[int, float]]:
    """Indices into `heights`, each with a new height, at least `least` apart; groups of moved ones keep their mean."""
    groups: list[tuple[list[int], float]] = []  # members, ascending, and the middle of the group
    for i in np.argsort(heights, kind="stable").tolist():
        members, middle = [i], float(heights[i])
        while groups and middle - groups[-1][1] < least * (len(members) + len(groups[-1][0])) / 2:
            members = groups.pop()[0] + members
            middle = float(np.mean([heights[j] for j in members]))
        groups.append((members, middle))
    return [
        (i, middle + least * (k - (len(members) - 1) / 2)) for members, middle in groups for k, i in enumerate(members)
    ]


def over_sizes(
    sizes: Sequence[int],
    colors: Sequence[str],
    accuracy: Mapping[str, Sequence[float | None]],
    latency_ms: Sequence[float | None],
    unit: str = "%",
) -> str:
    """Plot a metric of each split against size (first split filled, others hollow) and, below, the latency if known."""
    timed = all(value is not None for value in latency_ms)
    with drawing("Accuracy against size", "accuracy against image size", 330 if timed else HEIGHT) as (figure, svg):
        upper, *lower = figure.subplots(2 if timed else 1, 1, sharex=True, squeeze=False, height_ratios=_RATIO[timed])[
            :, 0
        ]
        upper.set_xscale("log")
        upper.set_xlim(sizes[0] / 1.25, sizes[-1] * 1.25)
        ends = []
        for i, (split, values) in enumerate(accuracy.items()):
            known = [(size, value) for size, value in zip(sizes, values, strict=True) if value is not None]
            upper.plot(*zip(*known, strict=True), color=MUTED, linewidth=1, linestyle="-" if i == 0 else (0, (2, 3)))
            for size, value, color in zip(sizes, values, colors, strict=True):
                if value is not None:
                    _point(upper, size, value, color, filled=i == 0)
            ends.append(End(split, *known[-1], INK))
        _scale_values(upper, unit)
        for axes in lower:
            heights = [value or 0.0 for value in latency_ms]
            axes.vlines(sizes, 0, heights, color=list(colors), linewidth=3)
            times = [milliseconds(value) for value in heights]
            for i in fitting(axes, sizes, times):
                axes.annotate(
                    times[i],
                    (sizes[i], heights[i]),
                    (0, 5),
                    textcoords="offset points",
                    ha="center",
                    color=INK,
                    size=11,
                )
            axes.set_ylim(0, 1.45 * max(heights))
            axes.yaxis.set_major_locator(NullLocator())
        last = lower[0] if lower else upper
        named = [sizes[i] for i in fitting(last, sizes, [str(size) for size in sizes])]
        last.set_xticks(named, [str(size) for size in named])
        last.xaxis.set_minor_locator(NullLocator())
        last.set_xlabel("image size, px", loc="right", labelpad=3)
        _label_ends(upper, ends)
    return svg[0]


def fitting(axes: Axes, sizes: Sequence[float], labels: Sequence[str]) -> list[int]:
    """Indices, ascending, of labels that do not overlap: the last, then each smaller one that fits."""
    least, kept = 6 + 6 * max(map(len, labels)), [len(sizes) - 1]  # px: 24 for 3 digits
    places = [axes.transData.transform((size, 0))[0] for size in sizes]
    for i in reversed(range(len(sizes) - 1)):
        if places[kept[-1]] - places[i] >= least:
            kept.append(i)
    return kept[::-1]


_RATIO = {True: (1.8, 1), False: (1,)}


def _point(axes: Axes, x: float, y: float, color: str, filled: bool) -> None:
    axes.plot(
        [x],
        [y],
        marker="o",
        markersize=9 if filled else 8,
        color=color,
        markerfacecolor=color if filled else "none",
        markeredgewidth=0 if filled else 2,
        clip_on=False,
        zorder=3,
    )


def over_rates(rates: Sequence[float], scores: Sequence[float], chosen: int, unit: str) -> str:
    """Plot a metric against learning rates, ascending; that at `chosen` is filled."""
    with drawing("Learning rates", "metric against learning rate") as (figure, svg):
        axes = figure.subplots()
        axes.set_xscale("log")
        axes.set_xlim(rates[0] / 1.5, rates[-1] * 1.5)
        axes.plot(rates, scores, color=MUTED, linewidth=1)
        for i, (rate, score) in enumerate(zip(rates, scores, strict=True)):
            _point(axes, rate, score, INK, filled=i == chosen)
        _scale_values(axes, unit)
        named = [rates[i] for i in fitting(axes, rates, [f"{rate:g}" for rate in rates])]
        axes.set_xticks(named, [f"{rate:g}" for rate in named])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlabel("peak learning rate", loc="right", labelpad=3)
    return svg[0]


def reliability_diagram(bins: Sequence[Bin], color: str) -> str:
    """Plot accuracy against confidence (calibrated bars end on the diagonal) and, below, the images per bin."""
    with drawing("Reliability", "reliability diagram", 330) as (figure, svg):
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        left, width = [b.low for b in bins], [b.high - b.low for b in bins]
        upper.bar(left, [b.accuracy for b in bins], width, align="edge", color=color, alpha=0.85, linewidth=0)
        upper.plot([0, 1], [0, 1], color=INK, linewidth=1, linestyle=(0, (3, 3)))
        upper.annotate("perfectly calibrated", (1, 1), (-6, 4), textcoords="offset points", ha="right", va="bottom")
        upper.set(xlim=(0, 1), ylim=(0, 1))
        lower.bar(left, [b.images for b in bins], width, align="edge", color=MUTED, alpha=0.6, linewidth=0)
        ticks = MaxNLocator(2, integer=True).tick_values(0, max((b.images for b in bins), default=1))
        lower.set(yticks=ticks, ylim=(0, ticks[-1]))
        for axis in (upper.xaxis, upper.yaxis):
            axis.set_major_locator(MultipleLocator(0.25))
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.0f}%"))
        upper.set_title("share that is right", loc="left", size=11, color=MUTED, pad=6, x=0)
        lower.set_title("images", loc="left", size=11, color=MUTED, pad=4, x=0)
        lower.set_xlabel("confidence", loc="right", labelpad=3)
    return svg[0]
