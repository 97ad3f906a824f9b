"""Results of an evaluation."""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from toolkit.models.evaluation import Evaluation
from toolkit.models.intervals import Interval
from toolkit.strategies.base import EvalSpec, Metric
from toolkit.system.result import Result
from toolkit.tools.cascade_report import CascadeReport
from toolkit.tools.inference import InferenceOptions
from toolkit.tools.inference_cost import InferenceCost
from toolkit.tools.loaded_run import LoadedRun

Intervals = dict[str, dict[str, dict[str, Interval]]]


class Recalibration(NamedTuple):
    """Sizes, px, whose normalization statistics were re-estimated, and the number of training images used."""

    sizes: tuple[int, ...] = ()
    images: int = 0


@dataclass(frozen=True, repr=False)
class EvaluationReport(Result):
    """`costs` by the name of each of `specs`, `evaluations` by split; `folder` holds the written files.

    `cascade` None: no cascade was requested. `extra`: metrics besides the task's. `intervals`: 95%, of `bootstrap`
    samples, by split, eval spec and metric, on the main process.
    """

    loaded: LoadedRun
    options: InferenceOptions
    folder: Path
    machine: str
    specs: tuple[EvalSpec, ...]
    costs: dict[str, InferenceCost]
    evaluations: dict[str, Evaluation]
    recalibrated: Recalibration
    cascade: CascadeReport | None
    extra: tuple[Metric, ...]
    intervals: Intervals
    bootstrap: int

    @property
    def text(self) -> str:
        """The tables of evaluation.txt."""
        from toolkit.tools.evaluate_outputs import table

        return table(self)
