"""Fields and types that several tools have."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from toolkit.config.base import split_numbers
from toolkit.config.choices import Precision
from toolkit.config.urls import read_place


def as_paths(given: Any) -> tuple[str, ...]:
    """One path or several, as text; URLs stay as they are."""
    several = [given] if isinstance(given, str | Path) else given
    return tuple(read_place(str(path) if isinstance(path, Path) else path) for path in several)


Paths = Annotated[tuple[str, ...], BeforeValidator(as_paths)]
Precisions = Annotated[tuple[Precision, ...], BeforeValidator(split_numbers), Field(min_length=1)]

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
