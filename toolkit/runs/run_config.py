"""config.yaml: the settings and the strategy of a run, and which of them affect the trained model."""

from collections.abc import Mapping
from typing import Any

from toolkit.config.settings import NOT_LEARNED, Settings
from toolkit.strategies.base import Strategy


def learned(config: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a configuration that affects the trained model."""
    return {name: value for name, value in config.items() if name not in NOT_LEARNED}


def config_of(settings: Settings, strategy: Strategy) -> dict[str, Any]:
    """All resolved settings except `output_dir` and `resume`, and the strategy, as stored in config.yaml."""
    return {**settings.model_dump(mode="json", exclude={"output_dir", "resume"}), **strategy.to_dict()}
