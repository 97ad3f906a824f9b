"""Rename keys and values that earlier versions wrote into a run's files, so that readers see only the current ones."""

from collections.abc import Mapping
from typing import Any

from toolkit.config.choices import FORMER_CACHES

KEYS = {"borrowed": "norm_from", "strength": "regularization"}  # of summary.json and columns of metrics.csv
VALUES = {"cache": FORMER_CACHES}  # of settings in config.yaml


def keys_now(value: Any) -> Any:
    """A JSON value with the current keys, in nested objects too."""
    if isinstance(value, dict):
        return {KEYS.get(name, name): keys_now(below) for name, below in value.items()}
    return value


def settings_now(config: Mapping[str, Any]) -> dict[str, Any]:
    """Settings by name, with the current values."""
    return {
        name: VALUES.get(name, {}).get(value, value) if isinstance(value, str) else value
        for name, value in config.items()
    }
