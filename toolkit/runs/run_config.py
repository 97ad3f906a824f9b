"""config.yaml: the settings and the strategy of a run, and the part of them that decides what is learned."""

from collections.abc import Mapping
from typing import Any

from toolkit.config.settings import NOT_LEARNED, Settings
from toolkit.strategies.base import Strategy


def learned(config: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a configuration that decides what is learned."""
    return {name: value for name, value in config.items() if name not in NOT_LEARNED}


def config_of(settings: Settings, strategy: Strategy) -> dict[str, Any]:
    """Everything resolved but the directory itself, as it stands in config.yaml."""
    return {**settings.model_dump(mode="json", exclude={"output_dir", "resume"}), **strategy.to_dict()}
