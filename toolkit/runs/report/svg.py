"""A Matplotlib figure as SVG for embedding in a page: text stays text, and the page's variables set the colors.

A figure is as wide as a phone's screen, so that its text needs no scaling; the page places figures side by side.
"""

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from toolkit.system.plotting import Figure, FigureCanvasSVG, LinearSegmentedColormap, rc_context, to_hex

# Placeholders for colors that differ between light and dark pages; the page's variables replace them.
INK, MUTED, FAINT = "#010101", "#010102", "#010103"
VARIABLES = {INK: "--ink", MUTED: "--muted", FAINT: "--faint"}
LIGHT = {INK: "#1b1c21", MUTED: "#61646f", FAINT: "#e8e9ed"}  # as in report.css
SCALE = "#0102"  # then two digits: the index of the scale, ascending
WIDTH, HEIGHT = 400, 230  # px
LEFT, RIGHT, TOP, BOTTOM = 46, 50, 22, 38  # margins, px
TEXT = 12  # px
STYLE: dict[str, Any] = {
    "figure.dpi": 72,  # the resolution of SVG, so that points are px
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
    "axes.ymargin": 0.0,  # axes end at ticks
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


# From small scales to large ones; lightness is monotonic, so that the colors differ without hue, too.
RAMPS = {"light": ("#a36200", "#c2416f", "#5a3fc0"), "dark": ("#f5c04a", "#f081a4", "#9a8cff")}


def milliseconds(value: float) -> str:
    """`0.123 ms`, `12.3 ms`, `1,234 ms`."""
    return f"{value:,.0f} ms" if value >= 100 else f"{value:.3g} ms"


def scale_colors(count: int, scheme: str) -> list[str]:
    """Hex colors of `count` scales, on a page whose `scheme` is light or dark."""
    ramp = LinearSegmentedColormap.from_list(scheme, RAMPS[scheme])
    return [to_hex(ramp(place / max(1, count - 1) if count > 1 else 1.0)) for place in range(count)]


def scale_color(place: int) -> str:
    """Placeholder for the color of a scale, the same in every plot."""
    return f"{SCALE}{place:02d}"


@contextmanager
def drawing(name: str, description: str, height: int = HEIGHT, top: int = TOP) -> Iterator[tuple[Figure, list[str]]]:
    """Yield a figure in the report's style and an empty list, which gets the SVG text when the block ends."""
    svg: list[str] = []
    style: Any = {**STYLE, "svg.hashsalt": name}
    with rc_context(style):
        figure = Figure(figsize=(WIDTH / 72, height / 72), facecolor="none")
        figure.subplots_adjust(
            left=LEFT / WIDTH, right=1 - RIGHT / WIDTH, bottom=BOTTOM / height, top=1 - top / height, hspace=0.32
        )
        yield figure, svg
        text = io.StringIO()
        FigureCanvasSVG(figure).print_svg(text, metadata={"Date": None})
    svg.append(_for_a_page(text.getvalue(), description))


def _for_a_page(svg: str, description: str) -> str:
    """The `<svg>` element, adapted to a page: no namespaces, no fixed size, the page's colors."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*"/>| transform="rotate\(-0 [^"]*"', "", re.sub(r'<g id="[^"]*">', "<g>", svg))
    svg = re.sub(r"font-family: [^;\"]*(&quot;[^;]*)?;? ?|font: (\d+)px [^;\"]*", _only_size, svg)
    svg = re.sub(rf"{SCALE}(\d\d)", lambda found: f"var(--scale-{int(found[1])})", svg)
    for color, variable in VARIABLES.items():
        svg = svg.replace(color, f"var({variable})")
    box = re.search(r'viewBox="[^"]*"', svg)
    head = f'<svg {box[0] if box else ""} role="img" aria-label="{description}">'
    return re.sub(r"\n\s*", "\n", re.sub(r"^<svg[^>]*>", head, svg))


def in_light_colors(svg: str) -> str:
    """The SVG with the colors of a light page in place of the placeholders, for a file of its own."""
    for color, light in LIGHT.items():
        svg = svg.replace(color, light)
    return svg


def _only_size(found: re.Match[str]) -> str:
    return f"font-size: {found[2]}px" if found[2] else ""
