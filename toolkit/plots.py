"""The plots of a report as SVG to be set into its page: their text is text, their colours are the page's.

A plot is as wide as a phone's page, so that its text needs no scaling; the page sets them side by side.
"""

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.colors import LinearSegmentedColormap, to_hex
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, MultipleLocator, NullLocator

from toolkit.history import Band
from toolkit.quality import Bin

# Colours of the page, which differ between light and dark: drawn as these, and replaced by the page's variables.
INK, MUTED, FAINT = "#010101", "#010102", "#010103"
VARIABLES = {INK: "--ink", MUTED: "--muted", FAINT: "--faint"}
SCALE = "#0102"  # then two digits: the scale's place, ascending
WIDTH, HEIGHT = 400, 230  # px
LEFT, RIGHT, TOP, BOTTOM = 46, 50, 22, 38  # margins, px
TEXT = 12  # px
STYLE: dict[str, Any] = {
    "figure.dpi": 72,  # of SVG: so points are px
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": TEXT,
    "text.color": MUTED,
    "text.parse_math": False,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": FAINT,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.xmargin": 0.0,
    "axes.ymargin": 0.12,
    "grid.color": FAINT,
    "grid.linewidth": 1,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "xtick.major.pad": 7,
    "ytick.major.pad": 7,
    "lines.linewidth": 2,
    "lines.solid_capstyle": "round",
    "lines.solid_joinstyle": "round",
}


@dataclass(frozen=True)
class Line:
    """One series over epochs; `label` stands at its end, empty: nothing does; `ring` is the place of a marked point."""

    label: str
    values: np.ndarray
    colour: str = INK
    dotted: bool = False
    ring: int | None = None


# From small scales to large ones; lightness runs one way, so that they differ without hue, too.
RAMPS = {"light": ("#a36200", "#c2416f", "#5a3fc0"), "dark": ("#f5c04a", "#f081a4", "#9a8cff")}


def scale_colours(count: int, scheme: str) -> list[str]:
    """What the colours of so many scales are on a light or dark page."""
    ramp = LinearSegmentedColormap.from_list(scheme, RAMPS[scheme])
    return [to_hex(ramp(place / max(1, count - 1) if count > 1 else 1.0)) for place in range(count)]


def scale_colour(place: int) -> str:
    """The colour of a scale, in every plot."""
    return f"{SCALE}{place:02d}"


@contextmanager
def _drawing(name: str, description: str, height: int = HEIGHT, top: int = TOP) -> Iterator[tuple[Figure, list[str]]]:
    """A figure in our style; what it became, once the block ends, is the list's only element."""
    svg: list[str] = []
    style: Any = {**STYLE, "svg.hashsalt": name}
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(WIDTH / 72, height / 72), facecolor="none")
        figure.subplots_adjust(
            left=LEFT / WIDTH, right=1 - RIGHT / WIDTH, bottom=BOTTOM / height, top=1 - top / height, hspace=0.32
        )
        yield figure, svg
        text = io.StringIO()
        FigureCanvasSVG(figure).print_svg(text, metadata={"Date": None})
    svg.append(_for_a_page(text.getvalue(), description))


def _for_a_page(svg: str, description: str) -> str:
    """The file's `<svg>` element with what a page needs: no namespaces, no fixed size, the page's colours."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*"/>| transform="rotate\(-0 [^"]*"', "", re.sub(r'<g id="[^"]*">', "<g>", svg))
    svg = re.sub(r"font-family: [^;\"]*(&quot;[^;]*)?;? ?|font: (\d+)px [^;\"]*", _only_size, svg)
    svg = re.sub(rf"{SCALE}(\d\d)", lambda found: f"var(--scale-{int(found[1])})", svg)
    for colour, variable in VARIABLES.items():
        svg = svg.replace(colour, f"var({variable})")
    box = re.search(r'viewBox="[^"]*"', svg)
    head = f'<svg {box[0] if box else ""} role="img" aria-label="{description}">'
    return re.sub(r"\n\s*", "\n", re.sub(r"^<svg[^>]*>", head, svg))


def _only_size(found: re.Match[str]) -> str:
    return f"font-size: {found[2]}px" if found[2] else ""


def over_epochs(
    name: str, epochs: np.ndarray, lines: Sequence[Line], bands: Sequence[Band], unit: str = "", floor: bool = False
) -> str:
    """Lines over epochs, labelled at their ends, with the phases behind them; `floor`: the axis starts at 0."""
    with _drawing(name, f"{name} over epochs", top=TOP if bands else 8) as (figure, svg):
        axes = figure.add_subplot()
        for line in lines:
            there = np.isfinite(line.values)
            sparse = there.sum() < 0.6 * len(epochs) or there.sum() == 1
            axes.plot(
                epochs[there],
                line.values[there],
                color=line.colour,
                linestyle=(0, (1, 2)) if line.dotted else "-",
                linewidth=1.6 if line.dotted else 1.2 if sparse else 2,
                marker="o" if sparse and not line.dotted else "",
                markersize=5,
                dash_capstyle="round",
                clip_on=False,
            )
            if line.ring is not None:
                _point(axes, epochs[line.ring], line.values[line.ring], line.colour, filled=False)
        axes.set_xlim(epochs[0] - 0.5, epochs[-1] + 0.5)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
        axes.yaxis.set_major_locator(MaxNLocator(4))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}{unit}"))
        axes.set_xlabel("epoch", loc="right", labelpad=3)
        if floor:
            axes.set_ylim(bottom=0)
        _draw_bands(axes, bands)
        known = [(line, np.isfinite(line.values)) for line in lines if line.label]
        _label_ends(
            axes,
            [
                End(line.label, epochs[there][-1], line.values[there][-1], line.colour)
                for line, there in known
                if there.any()
            ],
        )
    return svg[0]


def _draw_bands(axes: Axes, bands: Sequence[Band]) -> None:
    """Every second phase is shaded; its sizes stand above it where they fit."""
    per_epoch = (WIDTH - LEFT - RIGHT) / max(1e-9, np.ptp(axes.get_xlim()))
    for i, band in enumerate(bands):
        first, last = band.first - 0.5, band.last + 0.5
        if i % 2 == 0:
            axes.axvspan(first, last, color=FAINT, alpha=0.45, linewidth=0, zorder=0)
        words = next(
            (words for words in (f"{band.sizes} px", band.sizes) if 7 * len(words) < (last - first) * per_epoch), ""
        )
        axes.text(
            (first + last) / 2, 1.02, words, transform=axes.get_xaxis_transform(), ha="center", va="bottom", size=11
        )


class End(NamedTuple):
    """The last point of a line, and what stands beside it."""

    label: str
    x: float
    y: float
    colour: str


def _label_ends(axes: Axes, ends: Sequence[End]) -> None:
    """Names at the last points of lines, pushed apart where they would meet; to be called once the axes are final."""
    places = [axes.transData.transform((end.x, end.y)) for end in ends]
    for i, y in _apart([place[1] for place in places], TEXT + 2):
        axes.annotate(
            ends[i].label,
            (ends[i].x, ends[i].y),
            (places[i][0] + 11, y),
            textcoords="figure pixels",
            color=ends[i].colour,
            va="center",
            annotation_clip=False,
        )


def _apart(heights: Sequence[float], least: float) -> list[tuple[int, float]]:
    """Places in `heights` with heights that are at least so far apart, the groups staying where they were."""
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
    colours: Sequence[str],
    accuracy: Mapping[str, Sequence[float | None]],
    latency_ms: Sequence[float | None],
) -> str:
    """Top-1 of each split (the first one filled, others hollow) against size, and below it the latency, if any."""
    timed = all(value is not None for value in latency_ms)
    with _drawing("Accuracy against size", "accuracy against image size", 330 if timed else HEIGHT) as (figure, svg):
        upper, *lower = figure.subplots(2 if timed else 1, 1, sharex=True, squeeze=False, height_ratios=_RATIO[timed])[
            :, 0
        ]
        ends = []
        for i, (split, values) in enumerate(accuracy.items()):
            known = [(size, value) for size, value in zip(sizes, values, strict=True) if value is not None]
            upper.plot(*zip(*known, strict=True), color=MUTED, linewidth=1, linestyle="-" if i == 0 else (0, (2, 3)))
            for size, value, colour in zip(sizes, values, colours, strict=True):
                if value is not None:
                    _point(upper, size, value, colour, filled=i == 0)
            ends.append(End(split, *known[-1], INK))
        upper.yaxis.set_major_locator(MaxNLocator(4))
        upper.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}%"))
        for axes in lower:
            heights = [value or 0.0 for value in latency_ms]
            axes.vlines(sizes, 0, heights, color=list(colours), linewidth=3)
            for size, value in zip(sizes, heights, strict=True):
                axes.annotate(
                    f"{value:.3g} ms",
                    (size, value),
                    (0, 5),
                    textcoords="offset points",
                    ha="center",
                    color=INK,
                    size=11,
                )
            axes.set_ylim(0, 1.45 * max(heights))
            axes.yaxis.set_major_locator(NullLocator())
        last = lower[0] if lower else upper
        last.set_xscale("log")
        last.set_xlim(sizes[0] / 1.25, sizes[-1] * 1.25)
        last.set_xticks(list(sizes), [str(size) for size in sizes])
        last.xaxis.set_minor_locator(NullLocator())
        last.set_xlabel("image size, px", loc="right", labelpad=3)
        _label_ends(upper, ends)
    return svg[0]


_RATIO = {True: (1.8, 1), False: (1,)}


def _point(axes: Axes, x: float, y: float, colour: str, filled: bool) -> None:
    axes.plot(
        [x],
        [y],
        marker="o",
        markersize=9 if filled else 8,
        color=colour,
        markerfacecolor=colour if filled else "none",
        markeredgewidth=0 if filled else 2,
        clip_on=False,
        zorder=3,
    )


def reliability_diagram(bins: Sequence[Bin], colour: str) -> str:
    """The share that is right against confidence: bars on the diagonal are calibrated; below, where the answers lie."""
    with _drawing("Reliability", "reliability diagram", 330) as (figure, svg):
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        left, width = [b.low for b in bins], [b.high - b.low for b in bins]
        upper.bar(left, [b.accuracy for b in bins], width, align="edge", color=colour, alpha=0.85, linewidth=0)
        upper.plot([0, 1], [0, 1], color=INK, linewidth=1, linestyle=(0, (3, 3)))
        upper.annotate("perfectly calibrated", (1, 1), (-6, 4), textcoords="offset points", ha="right", va="bottom")
        upper.set(xlim=(0, 1), ylim=(0, 1.08))
        lower.bar(left, [b.images for b in bins], width, align="edge", color=MUTED, alpha=0.6, linewidth=0)
        lower.yaxis.set_major_locator(MaxNLocator(2, integer=True))
        for axis in (upper.xaxis, upper.yaxis):
            axis.set_major_locator(MultipleLocator(0.25))
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.0f}%"))
        upper.set_title("share that is right", loc="left", size=11, color=MUTED, pad=6, x=0)
        lower.set_title("images", loc="left", size=11, color=MUTED, pad=4, x=0)
        lower.set_xlabel("confidence", loc="right", labelpad=3)
    return svg[0]
