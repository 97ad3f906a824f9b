"""Model card (README.md, Hugging Face format) of an exported model: description, accuracy per size, loading code."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch

from toolkit.config.data_roots import BUILT_IN
from toolkit.config.yaml_values import to_yaml
from toolkit.models.classification import Classification
from toolkit.runs.metrics_row import eval_column
from toolkit.runs.resume_rules import FILES
from toolkit.runs.run_config import learned
from toolkit.strategies.base import Metric, at_size
from toolkit.system.errors import printable
from toolkit.tools.card_code import Card, preprocessing, usage
from toolkit.tools.loaded_run import LoadedRun

MOST_CLASSES = 20  # most classes that the card names; class_map.json has all
LIMITATIONS = (
    "Accuracy was measured on images of the same source as those of the training; on others expect less. Logits were "
    "compared in float32 on a CPU; in half precision they differ more. What the images show, and who may use them and "
    "this model, is for its author to add, with a license."
)
SPLITS = {"val": "validation", "test": "test"}


@dataclass(frozen=True)
class SizeRow:
    """A row of the accuracy table: the headline metrics by split; 10^9 multiply-adds; normalization scale."""

    name: str
    scores: Mapping[str, tuple[float, ...]]
    gmacs: float
    norm_from: int | None


def read_rows(loaded: LoadedRun) -> list[SizeRow]:
    """Metrics from summary.json; for an unfinished run, the validation metrics saved with the best model."""
    summary = loaded.directory.summary()
    found = {split: summary[split] for split in SPLITS if split in summary}
    rows, names = [], [metric.name for metric in headline(loaded)]
    for spec in loaded.strategy.eval_specs():
        told = {split: tuple(of[spec.name].get(name) for name in names) for split, of in found.items()}
        scores = {split: values for split, values in told.items() if None not in values}
        if not scores and eval_column(spec.name, names[0]) in loaded.metadata:
            scores = {"val": tuple(loaded.metadata[eval_column(spec.name, name)] for name in names)}
        norm_from = next((scale for size in spec.sizes if (scale := loaded.model.norm_from(size))), None)
        rows.append(SizeRow(spec.name, scores, sum(loaded.gmacs[size] for size in spec.sizes), norm_from))
    return rows


def headline(loaded: LoadedRun) -> tuple[Metric, ...]:
    return loaded.task.headline(loaded.select_by.name)


def unreadable(loaded: LoadedRun) -> dict[str, int]:
    """Number of unreadable images of each split, which no metric includes."""
    target = loaded.strategy.selection().name
    tested = loaded.directory.summary().get("test", {}).get(target, {})
    return {"val": int(loaded.metadata.get(eval_column(target, "unreadable"), 0)), "test": tested.get("unreadable", 0)}


def recommended(rows: list[SizeRow], metric: Metric) -> SizeRow | None:
    """The row with the best validation result, the cheapest on ties; None if there are no validation metrics."""
    measured = [row for row in rows if "val" in row.scores]
    return max(measured, key=lambda row: (metric.gain(row.scores["val"][0], 0), -row.gmacs), default=None)


def write_card(card: Card) -> str:
    """The text of the card; raises InputError if the run's summary cannot be read."""
    rows = read_rows(card.loaded)
    title = f"# {verbatim(_name(card.loaded))} at {card.model.size} px"
    sections = {
        "How to load it": usage(card),
        "Preprocessing": preprocessing(card),
        "Accuracy": _accuracy(card, rows),
        "Training data": _counts(card),
        "Settings": f"```yaml\n{to_yaml(_settings(card.loaded))}```",
        "Limitations": f"{_unknown_images(card.loaded)} {LIMITATIONS}",
        "Versions": _versions(card.loaded),
    }
    parts = [f"---\n{to_yaml(_front(card, rows))}---\n{title}", _introduction(card)]
    return "\n\n".join([*parts, *(f"## {name}\n\n{text}" for name, text in sections.items())]) + "\n"


def verbatim(text: str) -> str:
    """Markdown inline code of a line of text, with more backticks around it than it has in a row."""
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    around = " " if text[:1] in ("`", " ") or text[-1:] in ("`", " ") else ""
    return f"{fence}{around}{text}{around}{fence}"


def _name(loaded: LoadedRun) -> str:
    return printable(loaded.directory.path.resolve().name)


def _front(card: Card, rows: list[SizeRow]) -> dict[str, Any]:
    """Front matter: the metadata that the Hugging Face Hub reads."""
    front: dict[str, Any] = {
        "library_name": card.model.library,
        "pipeline_tag": "image-classification",
        "tags": [card.model.library, "image-classification"],
    }
    exported = next((row for row in rows if row.name == at_size(card.model.size).name), None)
    metric = headline(card.loaded)[0]
    if exported is not None and exported.scores:
        results = [
            {
                "task": {"type": "image-classification"},
                "dataset": {"name": f"{SPLITS[split]} images", "type": "image-folder", "split": SPLITS[split]},
                "metrics": [
                    {
                        "type": "accuracy" if metric.name == "top1" else metric.name,
                        "name": f"{metric.title} at {exported.name}" + ", %" * metric.percent,
                        "value": round(values[0], 2 if metric.percent else 4),
                    }
                ],
            }
            for split, values in exported.scores.items()
        ]
        front["model-index"] = [{"name": _name(card.loaded), "results": results}]
    return front


def _introduction(card: Card) -> str:
    loaded, model, settings = card.loaded, card.model, card.loaded.settings
    data = "the built-in data" if settings.data_root in BUILT_IN else "own images"
    start = "other weights" if settings.weights else "timm's pretrained weights" if settings.pretrained else model.start
    averaged = settings.ema_decay and loaded.metadata.get("weights") != "raw"
    average = f" (a moving average of the weights, decay {settings.ema_decay})" if averaged else ""
    named = ", ".join(verbatim(printable(name)) for name in model.classes[:MOST_CLASSES])
    more = f" and {len(model.classes) - MOST_CLASSES} more, in class_map.json" if model.classes[MOST_CLASSES:] else ""
    return (
        f"{model.origin} for {len(model.classes)} classes of images, trained on {data} from {start}: "
        f"{loaded.strategy}. These are the weights after epoch {loaded.metadata['epoch'] + 1}, the best at "
        f"{loaded.strategy.selection().name}{average}.\n\nClasses, in the order of the logits: {named}{more}."
    )


def _unknown_images(loaded: LoadedRun) -> str:
    known = "It knows these classes only"
    return f"{known}: anything else gets one of them, too." if isinstance(loaded.task, Classification) else f"{known}."


def _accuracy(card: Card, rows: list[SizeRow]) -> str:
    """The accuracy table, the recommended size, and the scale of this export."""
    splits = [split for split in SPLITS if any(split in row.scores for row in rows)]
    shown = headline(card.loaded)
    heads = [f"{SPLITS[split]} {metric.title}" for split in splits for metric in shown]
    table = [f"| size | {' | '.join([*heads, '10^9 multiply-adds'])} |", "|---" * (len(heads) + 2) + "|"]
    for row in rows:
        values = [pair for split in splits for pair in zip(shown, row.scores.get(split, ()), strict=False)]
        cells = [metric.text(value).strip() for metric, value in values] or ["" for _ in heads]
        name = row.name + (f" (normalization of {row.norm_from} px)" if row.norm_from else "")
        table += [f"| {' | '.join([name, *cells, f'{row.gmacs:.3g}'])} |"]
    best, dearest = recommended(rows, shown[0]), max(rows, key=lambda row: row.gmacs)
    if best is None or len([row for row in rows if row.scores]) < len(rows):
        advice = "The run has not ended: the sizes without metrics cannot be compared yet."
    else:
        share = (
            "the slowest" if best is dearest else f"at {best.gmacs / dearest.gmacs:.0%} of the cost of {dearest.name}"
        )
        advice = f"Recommended test size: **{best.name}**, the best on validation images, {share}."
    if card.loaded.model.scale_norms:
        own = card.loaded.model.policy.scale_for(card.model.size)
        advice += (
            f" This export has the normalization of {own} px; the other rows are those of the run's own model, which "
            "has one for each scale: `toolkit export RUN --scale` exports another."
        )
    left_out = ", ".join(f"{count} of {SPLITS[split]}" for split, count in unreadable(card.loaded).items() if count)
    note = f"Images that could not be read are left out: {left_out}.\n\n" if left_out else ""
    return "\n".join(table) + f"\n\n{note}{advice}"


def _counts(card: Card) -> str:
    """Image counts, from the run's checkpoint and summary; counts per class only if train is unchanged since."""
    now, then = card.splits.digests(), card.loaded.manifest().get("data")
    if then is None:
        return "No checkpoint of the run is left, which would tell how many images it had."
    totals, missing = {"val": then["val"]["images"]}, unreadable(card.loaded)
    for score in [*card.loaded.directory.summary().get("test", {}).values()][:1]:
        totals["test"] = score["images"] + score["unreadable"]
    sizes = [
        f"{total} {SPLITS[split]}" + (f" ({total - missing[split]} readable)" if missing[split] else "")
        for split, total in totals.items()
    ]
    counted = f"{then['train']['images']} training, {', '.join(sizes)} images"
    if then["train"] != now["train"]:
        return f"{counted}."
    counts = card.loaded.task.class_counts(card.splits.train.labels, len(card.splits.classes))
    each = f"{counts.min()}" if counts.min() == counts.max() else f"{counts.min()} to {counts.max()}"
    return f"{counted}; {each} training images of each class."


def _settings(loaded: LoadedRun) -> dict[str, Any]:
    """The settings that affect what was learned, without paths of this machine."""
    settings = learned(loaded.directory.config())
    for name in FILES:
        if settings.get(name):
            settings[name] = Path(settings[name]).name
    return {name: _published(value) for name, value in settings.items() if name != "data_root" and value is not None}


def _published(value: Any) -> Any:
    """A setting's value; of paths that name folders of this machine, only the last part."""
    if isinstance(value, Mapping):
        return {name: _published(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_published(part) for part in value]
    is_path = isinstance(value, str) and (value.startswith(("~", "./", "../")) or Path(value).is_absolute())
    return Path(value).name if is_path else value


def _versions(loaded: LoadedRun) -> str:
    versions = loaded.directory.summary().get("versions", {}).items()
    packages = ", ".join(f"{package} {number}" for package, number in versions)
    now = f"torch {torch.__version__}, timm {timm.__version__}"
    return (f"Trained with {packages}. " if packages else "") + f"Exported with {now}."
