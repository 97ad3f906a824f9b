"""All settings of a run, checked against each other. Imports no torch.

`Settings` is flat, so a flag, a YAML key and a Python keyword have the same name; its sections group the flags in
`--help`. A strategy object defines the scales and how they are trained; `Scales` only describes the flags from which a
recipe builds one.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

from pydantic import model_validator

from toolkit.config.base import Section
from toolkit.config.data_roots import BUILT_IN, is_url
from toolkit.config.metrics import Metrics
from toolkit.config.output import Output
from toolkit.config.sampling import Sampling
from toolkit.config.scales import Scales
from toolkit.config.sections import (
    WANDB_PROJECT,
    Augmentation,
    Data,
    Machine,
    Model,
    Objective,
    Optimization,
)
from toolkit.config.tuning import Tuning
from toolkit.config.urls import NO_SECRETS, check_resume, holds_secret
from toolkit.system.errors import InputError
from toolkit.system.run_urls import run_url


class Settings(Output, Machine, Tuning, Optimization, Model, Metrics, Objective, Augmentation, Sampling, Data):
    """All settings of one run except the strategy."""

    elsewhere: ClassVar = dict.fromkeys(
        Scales.model_fields,
        "it belongs to the strategy, such as SingleScale(img_size=64) or Progressive(scales=(64, 112))",
    )

    @model_validator(mode="after")
    def _cross_check(self) -> Self:
        builtin = self.data_root in BUILT_IN
        if holds_secret(self.data_root):
            raise InputError(f"--data-root: {NO_SECRETS}")
        if is_url(self.resume):
            check_resume(self.resume)
        if self.upload_wait_s != Settings.model_fields["upload_wait_s"].default and not self.run_url:
            raise InputError("--upload-wait-s would be ignored: it needs a URL as --output-dir")
        own = [name for name in ("size", "count", "classes") if getattr(self, f"synthetic_{name}") is not None]
        if not builtin and own:
            raise InputError(f"--synthetic-{own[0]} would be ignored with --data-root {self.data_root}: drop it")
        if builtin and self.range != "16bit":
            raise InputError(f"--range {self.range} would be ignored with --data-root {self.data_root}: drop it")
        if self.num_workers == 0 and (self.rand_augment or self.color_jitter or self.transform):
            raise InputError(
                "--num-workers 0: --rand-augment, --color-jitter and --transform draw from global generators and so "
                "need a worker process: give 1 or more"
            )
        if self.min_delta and self.patience is None and self.scheduler != "plateau":
            raise InputError("--min-delta would be ignored: it needs --patience or --scheduler plateau")
        if self.class_weights_power != 1 and self.class_weights == "none":
            raise InputError("--class-weights-power would be ignored: it needs --class-weights inverse or effective")
        if self.sampling_power != 1 and self.sampling == "plain":
            raise InputError(f"--sampling-power {self.sampling_power:g} would be ignored: it needs --sampling balanced")
        if self.pretrained and self.weights:
            raise InputError(f"--pretrained would be ignored: the run starts from --weights {self.weights}; drop one")
        if self.weights_sha256 and not self.weights:
            raise InputError("--weights-sha256 would be ignored: it needs --weights")
        if self.cost_matrix_sha256 and not self.cost_matrix:
            raise InputError("--cost-matrix-sha256 would be ignored: it needs --cost-matrix")
        if self.freeze and self.unfreeze_from is not None:
            raise InputError(f"--unfreeze-from {self.unfreeze_from} contradicts --freeze: drop one of them")
        rates = [name for name in ("layer_decay", "backbone_lr_scale") if getattr(self, name) is not None]
        if self.freeze and rates:
            flag = f"--{rates[0].replace('_', '-')} {getattr(self, rates[0]):g}"
            raise InputError(f"{flag} would be ignored: with --freeze only the classifier learns; drop one of them")
        if self.freeze_bn and self.sync_bn:
            raise InputError("--sync-bn would be ignored: --freeze-bn keeps the statistics; drop one of them")
        if self.ema_warmup and self.ema_decay is None:
            raise InputError("--ema-warmup would be ignored: it needs --ema-decay")
        if self.log_with != "wandb" and (self.wandb_mode != "auto" or self.wandb_artifact):
            raise InputError(f"--wandb-mode and --wandb-artifact would be ignored with --log-with {self.log_with}")
        if self.log_with in ("tensorboard", "none") and self.wandb_project not in (None, WANDB_PROJECT):
            raise InputError(f"--wandb-project would be ignored with --log-with {self.log_with}")
        if self.warmup_epochs >= self.epochs:
            raise InputError(
                f"--warmup-epochs {self.warmup_epochs:g} must be smaller than --epochs {self.epochs}, "
                "or the learning rate never reaches its peak"
            )
        return self

    @property
    def run_url(self) -> str | None:
        """Where the run lives, if that is an object store."""
        return run_url(self.output_dir, self.resume)

    @property
    def model_name(self) -> str:
        """Short name of the model: the architecture, or the function or class of `model_from`."""
        return self.arch if self.model_from is None else re.sub(r"\W", "", re.split("[:. ]", self.model_from)[-1])


SECTIONS: tuple[type[Section], ...] = (
    Data,
    Sampling,
    Augmentation,
    Objective,
    Metrics,
    Model,
    Optimization,
    Tuning,
    Machine,
    Output,
)

# Settings that may differ on a resume: they change where and how fast a run trains, not what it learns.
NOT_LEARNED = frozenset(
    {
        "data_root",  # where the images are; the checkpoint stores which they are
        "num_workers",
        "on_bad_sample",  # with a bad sample, the run would have stopped
        "cache_dir",
        "loader_timeout_s",
        "device_batch_size",
        "compile",
        "alone",
        "peer_timeout_s",
        "cloud",
        "on_divergence",
        *Output.__annotations__,
    }
)


# Settings whose default is not what earlier versions did -> what they did. Those of a run of theirs lack them.
CHANGED_DEFAULTS: dict[str, Any] = {"ema_warmup": False}

# Settings of timm's architectures, without effect on a model of the user's own; its config.yaml lacks them.
OF_TIMM = ("arch", "pretrained", "dropout_rate", "drop_path")


def named_weights(config: Mapping[str, Any]) -> dict[str, Any]:
    """The same settings with a file of weights in timm's `pretrained_cfg_overlay` named as --weights names it.

    Empty if there is none, or if it has a format that only timm reads.
    """
    kwargs = config.get("model_kwargs") or {}
    overlay = kwargs.get("pretrained_cfg_overlay")
    if not config.get("pretrained") or not isinstance(overlay, Mapping) or not overlay.get("file"):
        return {}
    if overlay.get("custom_load"):
        return {}
    rest = {name: value for name, value in overlay.items() if name != "file"}
    others = {name: value for name, value in kwargs.items() if name != "pretrained_cfg_overlay"}
    kept = {**others, **({"pretrained_cfg_overlay": rest} if rest else {})}
    return {"pretrained": False, "weights": str(Path(overlay["file"])), "model_kwargs": kept}


def beside_flags(values: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a --config file that count beside the flags: --weights and --pretrained replace each other.

    Nor does the warm-up of an average that the file does not have.
    """
    rivals = {"pretrained", "weights", "weights_sha256"}
    replaced = rivals if given.get("weights") or given.get("pretrained") else set()
    if given.get("ema_decay") and values.get("ema_decay") is None:  # without an average its warm-up is off
        replaced |= {"ema_warmup"}
    return {name: value for name, value in values.items() if name not in replaced}


def as_recorded(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a YAML file; that of a run lists all settings, so one that it lacks did not exist yet."""
    by_a_run = {"strategy", "seed", "keep"} <= values.keys()
    return {**(CHANGED_DEFAULTS if by_a_run else {}), **values}


def default_of(name: str, known: Mapping[str, Any]) -> Any:
    """The default of a setting, which may depend on others, by name in `known`."""
    return Settings.model_fields[name].get_default(call_default_factory=True, validated_data=dict(known))


def make_settings(values: Mapping[str, Any]) -> Settings:
    """Settings from names and values; raises InputError with one line."""
    return Settings(**values)
