"""The search for the learning rate (`--lr-find`) as a plot of report.html."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from toolkit.runs.report.plots import over_rates

RATE_SWEEP = "lr_find.json"  # in a run directory


def rate_search(directory: Path) -> tuple[str, Markup, str] | None:
    """Title, plot and note of the search; None if there was none, or if nothing can be read."""
    try:
        found: dict[str, Any] = json.loads((directory / RATE_SWEEP).read_text())
        trials: Sequence[dict[str, Any]] = found["trials"]
        kept = [(trial["learning_rate"], trial["score"]) for trial in trials if trial["score"] is not None]
        diverged = [f"{trial['learning_rate']:g}" for trial in trials if trial["score"] is None]
        chosen, metric, steps = found["learning_rate"], found["metric"], found["steps"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    rates, scores = zip(*kept, strict=True)
    note = f"Validation {metric} after {steps} steps at each rate; filled: chosen."
    note += f" Diverged: {', '.join(diverged)}." if diverged else ""
    unit = "%" if found.get("percent") else ""
    return "Search for the learning rate", Markup(over_rates(rates, scores, rates.index(chosen), unit)), note
