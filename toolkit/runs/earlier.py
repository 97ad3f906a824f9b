"""Names that earlier versions wrote into a run's files, as they are called now; readers see the new ones only."""

from collections.abc import Mapping
from typing import Any

COLUMNS = {"strength": "regularization"}  # of metrics.csv
KEYS = {"borrowed": "norm_from", **COLUMNS}  # of summary.json
VALUES = {("cache", "tier"): "disk"}  # of settings in config.yaml and in a checkpoint's manifest


def columns_now(row: Mapping[str, str]) -> dict[str, str]:
    """A row of metrics.csv."""
    return {COLUMNS.get(name, name): cell for name, cell in row.items()}


def keys_now(value: Any) -> Any:
    """What a JSON file holds, at any depth."""
    if isinstance(value, dict):
        return {KEYS.get(name, name): keys_now(below) for name, below in value.items()}
    return value


def settings_now(config: Mapping[str, Any]) -> dict[str, Any]:
    """Settings by name."""
    return {
        name: VALUES.get((name, value), value) if isinstance(value, str) else value for name, value in config.items()
    }
