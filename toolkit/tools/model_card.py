"""Model card (README.md, Hugging Face format) of an exported model: description, accuracy per size, loading code."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import timm
import torch

from toolkit.config.choices import Format
from toolkit.config.data_roots import BUILT_IN
from toolkit.config.yaml_values import to_yaml
from toolkit.data.images.gray import mapping_code
from toolkit.data.sources.index import Splits
from toolkit.models.classification import Classification
from toolkit.models.portable import MIDDLE, PortableModel
from toolkit.runs.metrics_row import eval_column
from toolkit.runs.run_config import learned
from toolkit.strategies.base import Metric, at_size
from toolkit.system.errors import printable
from toolkit.tools.export_formats import FILES, INPUT, TOLERANCE
from toolkit.tools.loaded_run import LoadedRun

MOST_CLASSES = 20  # most classes that the card names; class_map.json has all
LIMITATIONS = (
    "Accuracy was measured on images of the same source as those of the training; on others expect less. Logits were "
    "compared in float32 on a CPU; in half precision they differ more. What the images show, and who may use them and "
    "this model, is for its author to add, with a license."
)
SPLITS = {"val": "validation", "test": "test"}


@dataclass(frozen=True)
class Gap:
    """Gap between other preprocessing and evaluation's, in gray levels of 255; `same`: images with the same answer."""

    images: int
    mean_levels: float
    most_levels: float
    same: int
    probability: float  # largest change of a probability

    def __str__(self) -> str:
        return (
            f"{self.mean_levels:.2g} of 255 gray levels off on average and {self.most_levels:.2g} at most; {self.same} "
            f"of {self.images} images get the same answer, no probability changes by more than {self.probability:.2g}"
        )


@dataclass(frozen=True)
class Card:
    """Contents of a model card. `differences`: largest logit difference by format, over `checked` images of `splits`.

    `by_card`: gap of the preprocessing code on the card; `by_library`: gap of a library's transform alone.
    """

    loaded: LoadedRun
    splits: Splits
    model: PortableModel
    differences: Mapping[Format, float]
    checked: int
    by_card: Gap
    by_library: Gap


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
        scores = {split: tuple(of[spec.name][name] for name in names) for split, of in found.items()}
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
        "How to load it": _usage(card),
        "Preprocessing": _preprocessing(card),
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


def _usage(card: Card) -> str:
    """Self-contained Python code that loads the files, and a table of the files."""
    model, weights = card.model, FILES["safetensors"] if "safetensors" in card.differences else None
    imports, creation = model.code(weights)
    lines = [
        *imports,
        "",
        *creation,
        "image = ImageOps.exif_transpose(Image.open('photo.jpg')).convert('RGB')",
        f"pixels = transform({MIDDLE})[None]",
        *([_result(card.loaded)] if weights else []),
    ]
    blocks = ["\n".join(lines)]
    if "onnx" in card.differences:
        run = f"by_onnx = session.run(None, {{'{INPUT}': pixels.numpy()}})[0]"
        blocks += [f"import onnxruntime\n\nsession = onnxruntime.InferenceSession('{FILES['onnx']}')\n{run}"]
    if "pt2" in card.differences:
        blocks += [f"import torch\n\nby_torch = torch.export.load('{FILES['pt2']}').module()(pixels)"]
    files = (
        f"All files take float32 batches of any number of images, N x 3 x {model.size} x {model.size}, normalized as "
        f"above, and give N x {len(model.classes)} logits. Each was opened again and compared with the run's own model "
        f"on {card.checked} images, in batches of 1, 5 and the rest; a difference above {TOLERANCE:g} is refused."
    )
    table = ["| file | largest difference of a logit |", "|---|---|"]
    table += [f"| {FILES[name]} | {largest:.2g} |" for name, largest in card.differences.items()]
    return "\n\n".join(
        [
            *(f"```python\n{block}\n```" for block in blocks),
            *([model.note] if weights and model.note else []),
            files,
            "\n".join(table),
        ]
    )


def _result(loaded: LoadedRun) -> str:
    """The line that applies the model: what makes the task's probabilities of logits is found by trying both."""
    logits, task = torch.randn(8, len(loaded.classes), generator=torch.Generator().manual_seed(0)), loaded.bound_task
    expected = task.probabilities(task.average([logits.to(loaded.mean.device)])).cpu()
    for code, found in ((".softmax(1)", logits.softmax(1)), (".sigmoid()", logits.sigmoid())):
        if expected.shape == found.shape and torch.allclose(expected.float(), found, atol=1e-5):
            return f"probabilities = model(pixels){code}[0]  # in the order of class_map.json"
    meaning = f"{type(loaded.task).__name__} says what they mean"
    return f"logits = model(pixels)  # N x C, classes as in class_map.json; {meaning}"


def _unknown_images(loaded: LoadedRun) -> str:
    known = "It knows these classes only"
    return f"{known}: anything else gets one of them, too." if isinstance(loaded.task, Classification) else f"{known}."


def _preprocessing(card: Card) -> str:
    model = card.model
    return (
        f"RGB, EXIF rotation applied, mean {model.mean} and standard deviation {model.std} of pixels in [0, 1]. The "
        f"run was evaluated on the largest square in the middle, resized to {model.size} px (bilinear, antialiased)."
        f"\n\nThe lines above do that with PIL: {card.by_card}. {model.transform_of}'s transform alone, as config.json "
        f"describes it, resizes before it cuts out the square: {card.by_library}."
    ) + mapping_code(card.loaded.settings.range)


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
            "the dearest" if best is dearest else f"at {best.gmacs / dearest.gmacs:.0%} of the cost of {dearest.name}"
        )
        advice = f"Recommended test size: **{best.name}**, the best on validation images, {share}."
    if card.loaded.model.scale_norms:
        own = card.loaded.model.policy.scale_for(card.model.size)
        advice += (
            f" This export has the normalization of {own} px; the other rows are those of the run's own model, which "
            "has one for each scale: `recipes/export.py RUN --scale` exports another."
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
    """The settings that affect what was learned, without the path of the data."""
    settings = learned(loaded.directory.config())
    return {name: value for name, value in settings.items() if name != "data_root" and value is not None}


def _versions(loaded: LoadedRun) -> str:
    versions = loaded.directory.summary().get("versions", {}).items()
    packages = ", ".join(f"{package} {number}" for package, number in versions)
    now = f"torch {torch.__version__}, timm {timm.__version__}"
    return (f"Trained with {packages}. " if packages else "") + f"Exported with {now}."
