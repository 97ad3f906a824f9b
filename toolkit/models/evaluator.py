"""Exact evaluation: each sample counts once on any number of processes; counts are summed, then divided once."""

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from toolkit.data.images.views import views
from toolkit.data.loading.batches import EvalBatch, EvalBatchBuilder, empty_batch
from toolkit.data.loading.reader import ImageReader
from toolkit.data.loading.workers import by_need
from toolkit.data.sources.index import Index
from toolkit.models.collectives import overwrite_from_main
from toolkit.models.evaluation import ByClass, Evaluation, Score, chosen_task, measured
from toolkit.models.gathered import Gathered, scores_fit
from toolkit.models.metrics import UNREADABLE, PredictionTable
from toolkit.models.multiview import MultiView, copy_state
from toolkit.models.xla import end_step
from toolkit.strategies.base import BoundTask, EvalSpec, Metric, Task
from toolkit.strategies.measures import ImageValues
from toolkit.system.errors import InputError, naming_memory

WARM_UPS, LEAST_RUNS, MOST_RUNS = 3, 5, 100  # forward passes of each timing
LATENCY_S = 0.3  # time spent on measuring one latency at a run's end


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
    those of the mirrored image. `extra`: metrics to measure besides the task's; `costs`: C x C of --cost-matrix;
    `each_class`: measure each class too; `keep`: keep the values of each image (on the main process).
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
    extra: tuple[Metric, ...] = ()
    costs: np.ndarray | None = None
    each_class: bool = False
    keep: bool = False

    @cached_property
    def bound(self) -> BoundTask:
        """The task's computations on the device; weights of classes do not matter in an evaluation."""
        return self.task.bind(np.ones(len(self.classes)), self.accelerator.device)

    def choosing(self, chosen: Mapping[str, Any]) -> "Evaluator":
        """An evaluator of the same model whose task has the fields that were chosen on validation images."""
        return replace(self, task=chosen_task(self.task, chosen))

    def measuring_all(self, images: int, specs: int, keep: bool = False) -> "Evaluator":
        """An evaluator that measures every metric that this task has, and each class.

        But none of the probabilities of all classes if memory is short for `images` at so many specs; a line says so.
        """
        own = {metric.name for metric in self.task.metrics}
        extra = [metric for metric in self.task.extra_metrics if metric.name not in own]
        extra = [metric for metric in extra if self.costs is not None or not metric.costs]
        if any(metric.scores for metric in extra):
            fits = scores_fit(images, len(self.classes), specs, self.accelerator, keep)
            extra = [metric for metric in extra if fits or not metric.scores]
        return replace(self, extra=tuple(extra), each_class=True, keep=keep)

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Load parameters and buffers; buffers from rank 0, because BatchNorm statistics differ between ranks."""
        copy_state(state, self.model)
        overwrite_from_main(self.model.buffers())

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
        device, count, kept = self.accelerator.device, len(images.index), self.task.summed if self.keep else ()
        rows, classes = len(self.task.columns(self.classes)), len(self.classes)
        needs_scores = any(metric.scores for metric in self.extra)
        gathered = Gathered(self.accelerator, count, len(specs), rows, len(kept), classes if needs_scores else None)
        sums = torch.zeros(len(specs), len(self.task.summed), dtype=gathered.exact, device=device)
        for batch in self.batches(images, sorted({size for spec in specs for size in spec.sizes})):
            if not len(batch.ids):
                continue
            targets, logits = batch.targets.to(device), self.logits(batch.images)
            for row, spec in enumerate(specs):
                averaged = self.bound.average([logits[size] for size in spec.sizes])
                sums[row] += self.bound.sums(averaged, targets, gathered.exact)
                gathered.add(row, batch.ids, self.bound, averaged, targets)
            end_step()
        return self._evaluation(images.index, specs, choose_at, sums, gathered)

    def _evaluation(
        self, index: Index, specs: Sequence[EvalSpec], choose_at: EvalSpec | None, sums: Tensor, gathered: Gathered
    ) -> Evaluation:
        """Scores and predictions from the sums per spec, and the values of each image, of all ranks."""
        totals = self.accelerator.reduce(sums, "sum").tolist()
        whole = gathered.records()
        there, columns = whole[0, 0] > 0, self.task.columns(self.classes)
        read, count = int(there.sum()), len(index)
        if not read:
            raise InputError(f"{index.root}: none of the {count} images to evaluate can be read")
        task, chosen = self.task, dict[str, Any]()
        if choose_at is not None:
            chosen = task.choices(index.labels[there], whole[specs.index(choose_at)][1 : 1 + len(columns), there])
            task = chosen_task(task, chosen)
        scores, by_class, kept = {}, dict[str, ByClass](), dict[str, ImageValues]()
        for row, (spec, summed) in enumerate(zip(specs, totals, strict=True)):
            images = gathered.values(row, whole[row], index.labels, len(self.classes), self.costs)
            found = task.measure(
                dict(zip(task.summed, summed, strict=True)), images.labels, images.record, images.classes
            )
            extra, undefined = measured(task, self.extra, images)
            scores[spec.name] = Score({**found, **extra}, read, self._norm_from(spec), count - read, undefined)
            if self.each_class and (values := task.of_each_class(images)):
                by_class[spec.name] = ByClass(task.class_counts(images.labels, images.classes), values)
            if self.keep and self.accelerator.is_main_process:
                kept[spec.name] = images
        records = whole[:, 1 : 1 + len(columns)]
        records[:, 0, ~there] = UNREADABLE
        table = PredictionTable(tuple(spec.name for spec in specs), index.labels, columns, records)
        return Evaluation(scores, table, chosen, by_class, kept)

    def latency_ms(self, specs: Sequence[EvalSpec]) -> dict[str, float]:
        """Median milliseconds from one uint8 image to its prediction on the host, on this rank; quick to measure.

        Empty on devices that recompile for each shape.
        """
        if self.accelerator.device.type not in ("cpu", "cuda", "mps", "xpu"):
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
