"""Names that earlier versions wrote into a run's files, as they are called now; readers see the new ones only."""

from collections.abc import Mapping
from typing import Any

KEYS = {"borrowed": "norm_from", "strength": "regularization"}  # of summary.json
VALUES = {("cache", "tier"): "disk"}  # of settings in config.yaml and in a checkpoint's manifest


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
