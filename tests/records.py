"""The records of a run that was never trained: what report.html is made from, in any size and at any stage."""

import csv
import json
import re
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
from PIL import Image

from toolkit import Settings
from toolkit.config.yaml_values import to_yaml
from toolkit.runs.directory import RunDirectory
from toolkit.runs.run_config import config_of
from toolkit.strategies import build

SHAPES = tuple(f"{shape}-{pattern}" for shape in ("disc", "star", "cross") for pattern in ("stripes", "checks"))


def write_records(
    folder: Path,
    epochs: int = 9,
    scales: Sequence[int] = (16, 32, 64),
    classes: Sequence[str] = SHAPES,
    strategy: str = "progressive",
    **settings: object,
) -> Path:
    """A run that goes on: config.yaml, class_map.json and a row of metrics.csv an epoch, with every column there is."""
    folder.mkdir(parents=True)
    flags = {"img_size": scales[-1]} if strategy == "single" else {"scales": tuple(scales)}
    chosen = Settings(epochs=max(epochs, 3), log_with="none", **settings)
    (folder / "config.yaml").write_text(to_yaml(config_of(chosen, build(strategy, flags))))
    (folder / "class_map.json").write_text(json.dumps(dict(enumerate(classes))))
    rows = [_row(epoch, epochs, scales, strategy) for epoch in range(epochs)]
    if rows:
        with (folder / "metrics.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(dict.fromkeys(name for row in rows for name in row)))
            writer.writeheader()
            writer.writerows(rows)
    return folder


def _row(epoch: int, epochs: int, scales: Sequence[int], strategy: str) -> dict[str, object]:
    phase = epoch * len(scales) // epochs if strategy == "progressive" else 0
    closes = epoch == epochs - 1 or ((epoch + 1) * len(scales) // epochs > phase and strategy == "progressive")
    trained = [scales[phase]] if strategy == "progressive" else list(scales)
    done, wobble = (epoch + 1) / epochs, float(np.sin(3.1 * epoch))
    row: dict[str, object] = {"epoch": epoch, "step": 40 * (epoch + 1), "images_seen": 2560 * (epoch + 1)}
    row |= {"phase": phase, "sizes": "+".join(map(str, trained)), "train_loss": 1.9 - 1.4 * done}
    row |= {f"train_loss/{size}px": 2.0 - 1.5 * done - size / 400 for size in trained}
    row |= {"lr": 0.004 * (1 - done) + 1e-5, "regularization": 0.3 + 0.7 * done}
    for size in scales if closes else scales[-1:]:
        top1 = 88 * done**0.4 + size / 10 + 1.5 * wobble
        row |= {f"{size}px/top1": top1, f"{size}px/top5": 99.0, f"{size}px/loss": 2.0 - 1.3 * done - size / 300}
    pixels = sum(size**2 for size in trained)
    row |= {"images_per_s": 4e6 / (pixels + 2000), "train_seconds": 30.0 * (epoch + 1)}
    row |= {"wall_seconds": 37.0 * (epoch + 1), "eval_seconds": 4.0, "save_seconds": 1.5, "data_wait_share": 0.12}
    row |= {"tflops": 0.02 + pixels / 1e6, "share_of_peak": 0.3 + 0.02 * wobble}
    row |= {"step_p50_ms": 20 + pixels / 90, "step_p95_ms": 31 + pixels / 70 + 3 * wobble}
    row |= {"peak_memory_gb": 0.5 + pixels / 9000, "gradient_norm": 2.5 - done + 0.3 * wobble, "clipped_share": 0.04}
    return row | {"skipped_steps": 2}


def end(folder: Path, reason: str = "done", splits: Sequence[str] = ("val", "test"), latency: bool = True) -> Path:
    """Write the summary.json of a run that ended so; with `splits`, as one that evaluated its best model there."""
    rows = [row.columns() for row in RunDirectory(folder).metrics()]
    names = [name.removesuffix("/top1") for name in (rows[-1] if rows else ()) if name.endswith("/top1")]
    names.sort(key=lambda name: int(name.removesuffix("px")))
    summary = {"exit_reason": reason, "strategy": "progressive 16 -> 32 -> 64 px", "wall_seconds": 41.5 * len(rows)}
    summary |= {
        "steps": 40 * len(rows),
        "images_seen": 2560 * len(rows),
        "images_per_s": 85.3 if rows else 0.0,
        "rollbacks": 0,
    }
    summary |= {"processes": 1, "device": "cpu", "precision": "no", "cloud": "none", "peak_memory_gb": 0.94}
    summary |= {"versions": {"python": "3.11.7", "toolkit": "0.1.0", "torch": "2.9.0"}}
    if rows:
        summary |= {"best_epoch": len(rows) - 1, "selection": names[-1]}
        for points, split in enumerate(splits):
            summary[split] = {
                name: {
                    "top1": float(rows[-1][f"{name}/top1"]) - points,
                    "top5": 99.0 - points,
                    "loss": 0.6,
                    "images": 60,
                    "norm_from": None,
                    "unreadable": 0,
                }
                for name in names
            }
        if latency and splits:
            summary["latency_ms"] = {name: 1.2 + int(name.removesuffix("px")) ** 2 / 900 for name in names}
    (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def answer(folder: Path, images: int = 240, split: str = "val", hardest: int = 24, name: str = "val/{}.jpg") -> Path:
    """Write the predictions of a run: about four of five right, less at smaller sizes."""
    classes = len(json.loads((folder / "class_map.json").read_text()))
    selected = json.loads((folder / "summary.json").read_text())
    figures, dice = list(selected["val"]), np.random.default_rng(0)
    labels = np.arange(images) % classes
    folder = folder / "predictions"
    (folder / f"{split}-hardest").mkdir(parents=True, exist_ok=True)
    with (folder / f"{split}.csv").open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.writer(file)
        parts = ("predicted", "confidence", "p_label")
        writer.writerow(["name", "label", *(f"{figure}/{part}" for figure in figures for part in parts)])
        for i, label in enumerate(labels.tolist()):
            row: list[object] = [name.format(i), label]
            for place in range(len(figures)):
                sure = float(dice.beta(4, 1.2))
                right = i >= hardest and dice.random() < sure * (0.8 + 0.1 * place)
                said = label if right else (label + 1 + int(dice.integers(2))) % classes
                row += [said, f"{sure:.6g}", f"{sure if right else (1 - sure) / 9 if i >= hardest else 0:.6g}"]
            writer.writerow(row)
    for i in range(hardest):
        pixels = np.kron(dice.integers(60, 200, (8, 8, 3)), np.ones((16, 16, 1))).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{split}-hardest" / f"{i:09d}.jpg", quality=85)
    return folder.parent


class Page(HTMLParser):
    """Every element with its attributes, headings, and all text, as a browser would read them."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.headings: dict[str, list[str]] = {"h1": [], "h2": [], "h3": []}
        self.words: list[str] = []
        self._open = ""
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        self._open = tag

    def handle_data(self, data: str) -> None:
        if self._open != "style":
            self.words.append(data)
        if self._open in self.headings and data.strip():
            self.headings[self._open].append(data.strip())

    def handle_endtag(self, tag: str) -> None:
        self._open = ""

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def empty_frames(self) -> list[str]:
        figures = re.findall(r"<figure.*?</figure>", self.source, re.DOTALL)
        return [figure for figure in figures if "<path" not in figure and "<td" not in figure] + re.findall(
            r"<(?:table|ul|ol|dl|tbody)[^>]*>\s*</", self.source
        )
