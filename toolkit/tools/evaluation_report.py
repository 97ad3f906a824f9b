"""The results of an evaluation."""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from toolkit.models.evaluator import Evaluation
from toolkit.strategies.base import EvalSpec
from toolkit.tools.cascade_report import CascadeReport
from toolkit.tools.inference import InferenceOptions
from toolkit.tools.inference_cost import InferenceCost
from toolkit.tools.loaded_run import LoadedRun


class Recalibration(NamedTuple):
    """The sizes with new statistics, px, and the number of training images that these are estimated on."""

    sizes: tuple[int, ...] = ()
    images: int = 0


@dataclass(frozen=True)
class EvaluationReport:
    """`costs` by the name of each of `specs`, `evaluations` by split; `folder` holds the files that were written.

    `cascade` None: none was asked for.
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
