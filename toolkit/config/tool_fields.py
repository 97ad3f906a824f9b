"""Fields and types that several tools have."""

from functools import partial
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field

from toolkit.config.base import split_numbers
from toolkit.config.choices import Precision
from toolkit.config.metrics import COST_MATRIX
from toolkit.config.tables import CLASSIFICATION, check_entry
from toolkit.config.urls import read_place


def as_paths(given: Any) -> tuple[str, ...]:
    """One path or several, as text; URLs stay as they are."""
    several = [given] if isinstance(given, str | Path) else given
    return tuple(read_place(str(path) if isinstance(path, Path) else path) for path in several)


Paths = Annotated[tuple[str, ...], BeforeValidator(as_paths)]
Precisions = Annotated[tuple[Precision, ...], BeforeValidator(split_numbers), Field(min_length=1)]

TaskName = Annotated[str, AfterValidator(partial(check_entry, "task", "--task"))]

TASK = Field(
    CLASSIFICATION,
    description="as for training; classification: one label per image; multilabel: any number of them",
)
MODEL_FROM = Field(
    None,
    description="module:function of your own that makes the run's model, if it was trained with --model-from; the flag "
    "allows running it (unset: the module must be in --import)",
)
ALONE = Field(
    False,
    description="the tasks that srun, mpirun, SageMaker or SkyPilot start are independent; without it, several tasks "
    "that do not work together are refused",
)
BOOTSTRAP = Field(
    1000,
    ge=0,
    description="bootstrap samples of the images for 95% intervals of all metrics; 0 or more, 0: no intervals "
    "(default: 1000)",
)
COST_MATRIX_FILE = Field(None, description=f"{COST_MATRIX} (unset: the run's, if it was trained with one)")
