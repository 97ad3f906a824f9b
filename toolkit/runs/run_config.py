"""config.yaml: the settings and the strategy of a run, and which of them affect the trained model."""

from collections.abc import Mapping
from typing import Any

from toolkit.config.settings import NOT_LEARNED, OF_TIMM, Settings
from toolkit.strategies.base import Strategy


def learned(config: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a configuration that affects the trained model."""
    return {name: value for name, value in config.items() if name not in NOT_LEARNED}


def config_of(settings: Settings, strategy: Strategy) -> dict[str, Any]:
    """The resolved settings that have an effect, except where and how it was started, and the strategy: config.yaml."""
    left_out = {
        "output_dir",
        "resume",
        "alone",
        "take_over",
        "upload_wait_s",
        *(OF_TIMM if settings.model_from else ()),
    }
    return {**settings.model_dump(mode="json", exclude=left_out), **strategy.to_dict()}
