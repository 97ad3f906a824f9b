"""The costs of --cost-matrix in a run: from its file, or from the run's own copy where the file is gone."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator

from toolkit.config.settings import Settings
from toolkit.models.collectives import from_main
from toolkit.models.cost_matrix import read_costs
from toolkit.system import files
from toolkit.system.errors import InputError


def costs_of(
    settings: Settings, classes: Sequence[str], accelerator: Accelerator
) -> tuple[str | None, np.ndarray | None]:
    """SHA-256 and costs of the file as rank 0 sees it; no costs if there is none now, which a resumed run has itself.

    Raises InputError, on all ranks.
    """
    found: list[Any] = [settings.cost_matrix_sha256, None, None]
    if accelerator.is_main_process and settings.cost_matrix is not None and settings.cost_matrix.is_file():
        try:
            found[:2] = _checked(settings, settings.cost_matrix, classes)
        except (InputError, OSError) as error:
            found[2] = str(error)
    digest, costs, refusal = from_main(found)
    if refusal is not None:
        raise InputError(refusal)
    return digest, costs


def _checked(settings: Settings, path: Path, classes: Sequence[str]) -> tuple[str, np.ndarray]:
    now, wanted = files.sha256(path), settings.cost_matrix_sha256
    if wanted and now != wanted.lower():
        raise InputError(f"--cost-matrix {path}: its SHA-256 is {now}, not {wanted} (--cost-matrix-sha256)")
    return now, read_costs(path, classes)
