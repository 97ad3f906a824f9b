"""Exact evaluation: each sample counts once on any number of processes; counts are summed, then divided once."""

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import Tensor

from toolkit.config.base import frozen
from toolkit.data.images.views import views
from toolkit.data.loading.batches import EvalBatch, EvalBatchBuilder, empty_batch
from toolkit.data.loading.reader import ImageReader
from toolkit.data.loading.workers import by_need
from toolkit.data.sources.index import Index
from toolkit.models.metrics import UNREADABLE, PredictionTable, class_metrics
from toolkit.models.multiview import MultiView, copy_state
from toolkit.strategies.base import BoundTask, EvalSpec, Metric, Task
from toolkit.system.errors import InputError, naming_memory

WARM_UPS, LEAST_RUNS, MOST_RUNS = 3, 5, 100  # forward passes of each timing
LATENCY_S = 0.3  # time spent on measuring one latency at a run's end


@dataclass(frozen=True)
class Score:
    """The metrics of a task for one eval spec, by name.

    `norm_from`: the scale whose normalization was used; None if the size has its own or all share one.
    """

    values: Mapping[str, float]
    images: int
    norm_from: int | None = None
    unreadable: int = 0  # images excluded from all values above

    def __getitem__(self, metric: str) -> float:
        return self.values[metric]

    def metrics(self) -> dict[str, float]:
        """The values recorded at each evaluation."""
        masked = {"unreadable": self.unreadable} if self.unreadable else {}
        return {**self.values, **masked}

    def to_json(self) -> dict[str, Any]:
        rest = {"images": self.images, "norm_from": self.norm_from, "unreadable": self.unreadable}
        return {**self.values, **rest}

    def line(self, metrics: Sequence[Metric]) -> str:
        """The given metrics as text for the console."""
        mark = f" (normalization of {self.norm_from} px)" if self.norm_from else ""
        mark += f" ({self.unreadable} unreadable left out)" if self.unreadable else ""
        return "  ".join(f"{metric.title} {metric.text(self[metric.name])}" for metric in metrics) + mark


def brief(scores: Mapping[str, Score], metric: Metric) -> str:
    """One metric at each eval spec."""

    def one(score: Score) -> str:
        left_out = f" ({score.unreadable} unreadable left out)" if score.unreadable else ""
        return metric.text(score[metric.name]).strip() + left_out

    return "  ".join(f"{name} {one(score)}" for name, score in scores.items())


@dataclass(frozen=True)
class Evaluation:
    """Scores by name of the eval spec, and the predictions for each image; `chosen`: fields of the task, by name."""

    scores: dict[str, Score]
    predictions: PredictionTable
    chosen: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self, classes: Sequence[str]) -> dict[str, dict[str, Any]]:
        """Each score, with the class metrics if each image has one class; metrics of the task replace these."""
        table = self.predictions
        return {
            spec: {**(class_metrics(table.of(spec), classes) if table.has_classes else {}), **score.to_json()}
            for spec, score in self.scores.items()
        }


def chosen_task(task: Task, chosen: Mapping[str, Any]) -> Task:
    """The task with the fields that were chosen on validation images, as JSON holds them."""
    return replace(task, **{name: frozen(value) for name, value in chosen.items()}) if chosen else task


class BadImages(Protocol):
    """A list of images that cannot be read."""

    def add(self, bad: Sequence[tuple[str, str]]) -> None:
        """Add the (name, reason) of each image."""


@dataclass(frozen=True)
class Evaluator:
    """Evaluates a copy of the model, so that evaluation does not change the training state.

    `model`: that copy; `batch_size`: images per process and batch, decoded by `threads` threads. `quarantine`: lists
    unreadable images, which are excluded and counted; without it they raise BadSampleError. `between`: called between
    batches, equally often on every rank; it may raise to stop the evaluation. `flip`: average the probabilities with
    those of the mirrored image.
    """

    accelerator: Accelerator
    model: MultiView
    task: Task
    classes: tuple[str, ...]
    mean: Tensor
    std: Tensor
    batch_size: int
    threads: int
    timeout_s: float = 300.0
    quarantine: BadImages | None = None
    between: Callable[[], None] = lambda: None
    flip: bool = False

    @cached_property
    def bound(self) -> BoundTask:
        """The task's computations on the device; weights of classes do not matter in an evaluation."""
        return self.task.bind(np.ones(len(self.classes)), self.accelerator.device)

    def choosing(self, chosen: Mapping[str, Any]) -> "Evaluator":
        """An evaluator of the same model whose task has the fields that were chosen on validation images."""
        return replace(self, task=chosen_task(self.task, chosen))

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Load parameters and buffers; buffers from rank 0, because BatchNorm statistics differ between ranks."""
        copy_state(state, self.model)
        if self.accelerator.num_processes > 1:
            for buffer in self.model.buffers():
                buffer.copy_(broadcast(buffer, from_process=0))

    def batches(self, images: ImageReader, sizes: Sequence[int]) -> Iterator[EvalBatch]:
        """This rank's share of the images, each decoded once for all sizes; unreadable ones go to the quarantine."""
        own = np.arange(self.accelerator.process_index, len(images.index), self.accelerator.num_processes)
        batch_specs = [own[first : first + self.batch_size] for first in range(0, len(own), self.batch_size)]
        in_common = -(-(len(images.index) // self.accelerator.num_processes) // self.batch_size)
        builder = EvalBatchBuilder(images, tuple(sizes), leave_out=self.quarantine is not None)
        load = by_need(images.index)
        for i, batch in enumerate(load(batch_specs, builder, self.threads, self.timeout_s)):
            if i < in_common:
                self.between()
            if self.quarantine is not None:
                self.quarantine.add(batch.bad)
            yield batch

    def views(self, images: Mapping[int, Tensor]) -> list[Tensor]:
        """The model's input views, from uint8 N x 3 x S x S images of each size."""
        return [
            views(batch.to(self.accelerator.device), (size,), self.mean, self.std)[0] for size, batch in images.items()
        ]

    @torch.no_grad()
    def logits(self, images: Mapping[int, Tensor]) -> dict[int, Tensor]:
        """N x C float32 logits for each size, from uint8 N x 3 x S x S images."""
        sizes, count = "+".join(map(str, images)), len(next(iter(images.values())))
        with naming_memory(f"in the evaluation of {count} images at {sizes} px"):
            pixels = self.views(images)
            if self.flip:
                pixels += [view.flip(-1) for view in pixels]
            with self.accelerator.autocast():
                logits = [predicted.float() for predicted in self.model.eval()(*pixels)]
        if self.flip:
            logits = [
                self.bound.average(pair) for pair in zip(logits[: len(images)], logits[len(images) :], strict=True)
            ]
        return dict(zip(images, logits, strict=True))

    def score(self, images: ImageReader, specs: Sequence[EvalSpec]) -> dict[str, Score]:
        """Scores of all `specs` on all images; raises the same errors as `evaluate`."""
        return self.evaluate(images, specs).scores

    def evaluate(self, images: ImageReader, specs: Sequence[EvalSpec], choose_at: EvalSpec | None = None) -> Evaluation:
        """Scores of all `specs` and the predictions for each image; raises InputError if no image can be read.

        `choose_at`: one of `specs`, by whose predictions the task chooses its fields, such as thresholds, before it
        measures.
        """
        device, count = self.accelerator.device, len(images.index)
        # Counts are exact in float64, and up to 2^24 in float32.
        exact = torch.float64 if device.type in ("cpu", "cuda") else torch.float32
        columns = self.task.columns(self.classes)
        sums = torch.zeros(len(specs), len(self.task.summed), dtype=exact, device=device)
        # Of each image: 1 if it was read, and the task's columns.
        packed = torch.zeros(len(specs), 1 + len(columns), count, dtype=exact, device=device)
        for batch in self.batches(images, sorted({size for spec in specs for size in spec.sizes})):
            if not len(batch.ids):
                continue
            targets, logits = batch.targets.to(device), self.logits(batch.images)
            places = torch.from_numpy(batch.ids).to(device)
            for row, spec in enumerate(specs):
                averaged = self.bound.average([logits[size] for size in spec.sizes])
                sums[row] += self.bound.sums(averaged, targets, exact)
                packed[row, 0, places] = 1
                packed[row, 1:, places] = self.bound.record(averaged, targets).to(exact)
        return self._evaluation(images.index, specs, choose_at, sums, packed)

    def _evaluation(
        self, index: Index, specs: Sequence[EvalSpec], choose_at: EvalSpec | None, sums: Tensor, packed: Tensor
    ) -> Evaluation:
        """Scores and predictions from the sums per spec, and the values of each image, of all ranks."""
        totals = self.accelerator.reduce(sums, "sum").tolist()
        values = self.accelerator.reduce(packed, "sum").cpu().numpy()
        there = values[0, 0] > 0
        read, count, labels = int(there.sum()), len(index), index.labels
        if not read:
            raise InputError(f"{index.root}: none of the {count} images to evaluate can be read")
        task, chosen = self.task, dict[str, Any]()
        if choose_at is not None:
            chosen = task.choices(labels[there], values[specs.index(choose_at)][1:, there])
            task = chosen_task(task, chosen)
        scores = {}
        for spec, summed, of_spec in zip(specs, totals, values, strict=True):
            named = dict(zip(task.summed, summed, strict=True))
            found = task.measure(named, labels[there], of_spec[1:, there], len(self.classes))
            scores[spec.name] = Score(found, read, self._norm_from(spec), count - read)
        values[:, 1, ~there] = UNREADABLE
        columns = task.columns(self.classes)
        table = PredictionTable(tuple(spec.name for spec in specs), labels, columns, values[:, 1:])
        return Evaluation(scores, table, chosen)

    def latency_ms(self, specs: Sequence[EvalSpec]) -> dict[str, float]:
        """Median milliseconds from one uint8 image to its prediction on the host, on this rank; quick to measure.

        Empty on devices that recompile for each shape.
        """
        if self.accelerator.device.type not in ("cpu", "cuda", "mps"):
            return {}
        return {spec.name: 1000 * statistics.median(self.seconds(spec, 1, LATENCY_S)) for spec in specs}

    def seconds(self, spec: EvalSpec, count: int, longest_s: float) -> list[float]:
        """Time of each of several forward passes of `count` uint8 images on this rank, up to the result on the host.

        As many as fit into `longest_s`, within LEAST_RUNS and MOST_RUNS.
        """
        noise = torch.Generator().manual_seed(0)
        images = {size: empty_batch(count, size).random_(0, 256, generator=noise) for size in spec.sizes}
        times: list[float] = []
        while len(times) < WARM_UPS + LEAST_RUNS or (len(times) < MOST_RUNS and sum(times) < longest_s):
            started = time.perf_counter()
            self.bound.average([*self.logits(images).values()]).cpu()
            times.append(time.perf_counter() - started)
        return times[WARM_UPS:]

    def _norm_from(self, spec: EvalSpec) -> int | None:
        return next((scale for size in spec.sizes if (scale := self.model.norm_from(size))), None)
