"""Rename keys and values that earlier versions wrote into a run's files, so that readers see only the current ones."""

from collections.abc import Mapping
from typing import Any

from toolkit.config.choices import FORMER_CACHES
from toolkit.config.settings import CHANGED_DEFAULTS, named_weights

KEYS = {"borrowed": "norm_from", "strength": "regularization"}  # of summary.json and columns of metrics.csv
# Settings that did not exist in earlier versions -> the value that means what those did.
AS_BEFORE: dict[str, Any] = {
    "model_from": None,
    "transform": None,
    "task": "classification",
    "task_kwargs": {},
    "loss": "ce",
    "class_weights": "none",
    "class_weights_power": 1.0,
    "sampling": "plain",
    "sampling_power": 1.0,
    "select_by": "top1",
    "scheduler_kwargs": {},
    "synthetic_classes": None,
    "weights": None,
    "weights_sha256": None,
    "range": "16bit",
    "fit": "crop",
    **CHANGED_DEFAULTS,
    "layer_decay": None,
    "backbone_lr_scale": None,
    "freeze": False,
    "unfreeze_from": None,
    "freeze_bn": False,
    "label_column": None,
    "hf_config": None,
    "cost_matrix": None,
    "cost_matrix_sha256": None,
}
OF_STRATEGY: dict[str, dict[str, Any]] = {  # the same of its fields
    "progressive": {"regularization_from": 1.0, "grow_batch": "off"},
    "simultaneous": {
        "consistency_share": 0.0,
        "consistency_ramp": True,
        "consistency_gate": False,
        "consistency_teacher": "larger",
        "consistency_temperature": 1.0,
    },
}
FIELDS = {"best_top1": "best_score", "reference_top1": "reference_score"}  # of trainer.json's progress
VALUES = {"cache": FORMER_CACHES}  # of settings in config.yaml


def keys_now(value: Any) -> Any:
    """A JSON value with the current keys, in nested objects too."""
    if isinstance(value, dict):
        return {KEYS.get(name, name): keys_now(below) for name, below in value.items()}
    return value


def settings_now(config: Mapping[str, Any]) -> dict[str, Any]:
    """Settings by name, with the current values; one that did not exist yet has the value that means as before."""
    renamed = {
        name: VALUES.get(name, {}).get(value, value) if isinstance(value, str) else value
        for name, value in config.items()
    }
    renamed |= named_weights(renamed)
    return {**AS_BEFORE, **OF_STRATEGY.get(renamed.get("strategy", ""), {}), **renamed} if renamed else {}


def progress_now(progress: Mapping[str, Any]) -> dict[str, Any]:
    """The progress in trainer.json, with the current names."""
    return {FIELDS.get(name, name): value for name, value in progress.items()}
