"""The contents of report.html, section by section; empty sections are left out."""

import re
from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from toolkit.runs.metrics_row import eval_column, raw_column, train_column
from toolkit.runs.report.classes_section import classes_section
from toolkit.runs.report.commands import commands
from toolkit.runs.report.errors_section import errors_section
from toolkit.runs.report.plots import Line, over_epochs, over_sizes
from toolkit.runs.report.rate_search import rate_search
from toolkit.runs.report.records import (
    FILLED_IN,
    ReportData,
    SizeResult,
    rows,
    settings_of,
    status,
    time_parts,
)
from toolkit.runs.report.svg import INK, MUTED, milliseconds, scale_color, scale_colors
from toolkit.strategies.base import Metric
from toolkit.system.console import duration

PEAK = "Of what one large matrix product reaches on this device."
SPLIT_NAMES = {"val": "validation", "test": "test"}
PRECISIONS = {"no": "float32", "bf16": "bfloat16 mixed", "fp16": "float16 mixed"}


class Plot(NamedTuple):
    title: str
    svg: Markup
    note: str = ""


def render(records: ReportData, errors_on: str = "val") -> str:
    """The whole page as HTML; `errors_on`: the split whose errors are shown."""
    table = rows(records)
    target = next((row for row in table if row.name == records.target), None)
    return (
        _templates()
        .get_template("report.html")
        .render(
            records=records,
            scales=[_spoken(name) for name in records.scales],
            palettes={scheme: scale_colors(len(records.scales), scheme) for scheme in ("light", "dark")},
            status=status(records),
            target=target,
            rows=table,
            splits=[split for split in SPLIT_NAMES if any(split in row.splits for row in table)],
            split_names=SPLIT_NAMES,
            calibrated=[split for split in SPLIT_NAMES if any("ece" in row.splits.get(split, {}) for row in table)],
            left_out=_left_out(table),
            as_of=datetime.fromtimestamp(records.as_of).strftime("%Y-%m-%d %H:%M"),
            latency_conditions=_latency_conditions(records),
            against_size=_against_size(table, records),
            learning=[*_learning(records), *_rate_search(records)],
            parts=time_parts(records.history),
            key_numbers=_key_numbers(records),
            cost=_cost(records),
            errors=errors_section(records, errors_on),
            of_classes=classes_section(records, errors_on),
            settings=settings_of(records.config),
            filled_in=[name for name in FILLED_IN if records.config.get(name) is not None],
            commands=commands(records, errors_on),
        )
    )


def _templates() -> Environment:
    environment = Environment(
        loader=PackageLoader("toolkit.runs.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        duration=duration,
        milliseconds=milliseconds,
        spoken=_spoken,
        breakable=_breakable,
        percent=lambda value: f"{value:.2f}%",
        measured=lambda value, metric: metric.text(value).strip(),
    )
    return environment


def _breakable(text: str) -> Markup:
    """A long path may break after a slash or a colon, so that no word of it breaks."""
    return Markup(re.sub(r"([/:])", r"\1<wbr>", str(escape(text)))) if len(text) > 24 else escape(text)


def _spoken(name: str) -> str:
    """`32 px` for `32px`; other names are unchanged."""
    return f"{name[:-2]} px" if name.endswith("px") and name[:-2].isdigit() else name


def _left_out(table: Sequence[SizeResult]) -> str:
    """Unreadable images of each split, which no metric counts, such as `2 of validation, 1 of test`."""
    counts = {
        name: max((row.splits.get(split, {}).get("unreadable", 0) for row in table), default=0)
        for split, name in SPLIT_NAMES.items()
    }
    return ", ".join(f"{count:.0f} of {name}" for name, count in counts.items() if count)


def _against_size(table: Sequence[SizeResult], records: ReportData) -> Plot | None:
    """A metric, and latency if it was measured, against image size; None for fewer than two sizes."""
    metric, at = records.metric, [row for row in table if row.name.endswith("px") and row.name[:-2].isdigit()]
    if len(at) < 2:
        return None
    accuracy = {
        SPLIT_NAMES[split]: [row.splits.get(split, {}).get(metric.name) for row in at]
        for split in SPLIT_NAMES
        if any(metric.name in row.splits.get(split, {}) for row in at)
    }
    latency = [row.latency_ms for row in at]
    sizes, colors = [int(row.name[:-2]) for row in at], [scale_color(row.place) for row in at]
    note = f"Below: {_latency_conditions(records)}." if None not in latency else ""
    unit = "%" if metric.percent else ""
    title = f"{_sentence(metric.title)} against image size"
    return Plot(title, Markup(over_sizes(sizes, colors, accuracy, latency, unit)), note)


def _latency_conditions(records: ReportData) -> str:
    """How the latency was measured; earlier runs do not record their threads."""
    device, threads = records.summary.get("device", ""), records.summary.get("threads")
    count = f" with {threads} thread{'s' * (threads != 1)}" if device == "cpu" and threads else ""
    return f"median time for one image alone, on {device.replace('cpu', 'the CPU')}{count}"


def _learning(records: ReportData) -> list[Plot]:
    """Loss, accuracy and schedules over the epochs; empty for fewer than two epochs."""
    history, places = records.history, {name: place for place, name in enumerate(records.scales)}
    selects = records.metric
    if len(history) < 2:
        return []

    def line(name: str, column: str, dotted: bool = False, label: bool = True) -> list[Line]:
        values = history.get(column)
        if values is None:
            return []
        best = eval_column(records.target, selects.name)
        ring = records.best_row if column == (raw_column(best) if records.best_is_raw else best) else None
        return [Line(_spoken(name) if label else "", values, scale_color(places[name]), dotted, ring)]

    evaluated, trained = history.evaluated(), history.trained()
    lines = [new for name in evaluated for new in line(name, eval_column(name, "loss"))]
    lines += [new for name in trained for new in line(name, train_column(name), True, name not in evaluated)]
    if not trained and (total := history.get("train_loss")) is not None:
        lines.append(Line("training", total, MUTED, True))
    accuracy = [new for name in evaluated for new in line(name, eval_column(name, selects.name))]
    raw = [new for name in evaluated for new in line(name, raw_column(eval_column(name, selects.name)), True, False)]
    note = "Ring: the best epoch." + (" Solid: averaged weights. Dotted: without averaging." if raw else "")
    norm = "Gradient norm before the clip" if records.clips else "Gradient norm"
    plots = [
        ("Loss", lines, "", False, "Solid: validation. Dotted: training."),
        (_chosen_by(selects), [*accuracy, *raw], "%" if selects.percent else "", False, note),
        ("Training loss within the epochs", _within(records, "train_loss"), "", False, ""),
        ("Learning rate", _within(records, "lr"), "", True, ""),
        ("Regularization (share of the run's)", _single(_varying(history.get("regularization"))), "", True, ""),
        (norm, _single(history.get("gradient_norm")), "", True, ""),
    ]
    return _drawn(records, plots)


def _rate_search(records: ReportData) -> list[Plot]:
    found = rate_search(records.directory)
    return [Plot(*found)] if found else []


def _within(records: ReportData, name: str) -> list[Line]:
    """A line with points within the epochs; empty if nothing was recorded."""
    values: np.ndarray = getattr(records.steps, name)
    return [Line("", values, epochs=records.steps.epochs)] if np.isfinite(values).any() else []


def _chosen_by(metric: Metric) -> str:
    return "Top-1 accuracy on validation" if metric.name == "top1" else f"{_sentence(metric.title)} on validation"


def _sentence(title: str) -> str:
    return title[:1].upper() + title[1:]


def _weights(records: ReportData) -> str | None:
    """Which weights the best model has; None without averaging."""
    if not records.config.get("ema_decay") or records.best_row is None:
        return None
    return "raw, better than their average" if records.best_is_raw else "moving average"


def _cost(records: ReportData) -> list[Plot]:
    """Throughput, step time and memory over the epochs; empty for fewer than two epochs."""
    history = records.history
    if len(history) < 2:
        return []
    median, slow = history.get("step_p50_ms"), history.get("step_p95_ms")
    steps = [*_single(median, "median"), *_single(slow, "p95", MUTED)]
    plots = [
        ("Images per second", _single(history.get("images_per_s")), "", True, ""),
        ("Arithmetic, share of the peak", _percent(history.get("share_of_peak")), "%", True, PEAK),
        ("Time of an optimizer step, ms", steps, "", True, ""),
        ("Training time spent waiting for data", _percent(history.get("data_wait_share")), "%", True, ""),
        ("Peak memory, GB", _single(_varying(history.get("peak_memory_gb"))), "", True, ""),
    ]
    return _drawn(records, plots)


def _drawn(records: ReportData, plots: Sequence[tuple[str, list[Line], str, bool, str]]) -> list[Plot]:
    epochs, bands = records.history.epochs, records.history.bands()
    return [
        Plot(title, Markup(over_epochs(title, epochs, lines, bands, unit, floor)), note)
        for title, lines, unit, floor, note in plots
        if lines
    ]


def _single(values: np.ndarray | None, label: str = "", color: str = INK) -> list[Line]:
    return [] if values is None else [Line(label, values, color)]


def _percent(shares: np.ndarray | None) -> list[Line]:
    return _single(None if shares is None else 100 * shares)


def _varying(values: np.ndarray | None) -> np.ndarray | None:
    """The values; None if they differ by at most 2%, because one number is then clearer than a plot."""
    flat = values is None or np.nanmax(values) - np.nanmin(values) <= 0.02 * abs(np.nanmax(values))
    return None if flat else values


def _key_numbers(records: ReportData) -> list[tuple[str, str]]:
    """Key numbers of the run, as (name, value with its unit)."""
    summary, history = records.summary, records.history

    def last(column: str) -> float | None:
        values = history.get(column)
        return None if values is None else float(values[np.isfinite(values)][-1])

    steps, images = summary.get("steps", last("step")), summary.get("images_seen", last("images_seen"))
    rate, memory = (
        summary.get("images_per_s", last("images_per_s")),
        summary.get("peak_memory_gb", last("peak_memory_gb")),
    )
    machine = f"{summary['processes']} on {summary['device']}" if summary.get("device") else None
    cost = summary.get("cost", last("cost"))
    tflops, share = last("tflops"), last("share_of_peak")
    skipped, clipped = last("skipped_steps"), last("clipped_share")
    found = {
        "optimizer steps": steps and f"{int(steps):,}",
        "images seen": images and f"{int(images):,}",
        "throughput": rate and f"{rate:,.0f} images/s",
        "arithmetic per device, last epoch": tflops and share and f"{tflops:.3g} TFLOP/s, {share:.0%} of the peak",
        "peak memory per process": memory and f"{memory:.2f} GB",
        "cost": cost and f"{cost:,.2f}, at {records.config.get('hourly_cost')} an hour and machine",
        "processes": machine,
        "weights of the best model": _weights(records),
        "precision": PRECISIONS.get(str(summary.get("precision")), summary.get("precision")),
        "gradients clipped, last epoch": f"{100 * clipped:.0f}%" if records.clips and clipped is not None else None,
        "skipped steps (overflow)": skipped and f"{skipped:.0f}",
        "rollbacks": summary.get("rollbacks") and str(summary["rollbacks"]),
        "cloud": None if summary.get("cloud") in (None, "none") else str(summary["cloud"]),
    }
    return [(name, str(text)) for name, text in found.items() if text]
