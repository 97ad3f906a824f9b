"""The flags from which a recipe builds its strategy. Imports no torch."""

from collections.abc import Mapping
from typing import Any

from pydantic import Field, PositiveInt, ValidationError

from toolkit.config.base import KeyValues, Numbers, Section, explain
from toolkit.config.choices import ConsistencyForm, NormMode
from toolkit.config.data_roots import SYNTHETIC
from toolkit.system.errors import InputError


class Scales(Section):
    """Scales"""

    strategy: str | None = Field(
        None,
        description="simultaneous: all scales in each step; progressive: one after another (default: simultaneous)",
    )
    progressive: bool | None = Field(None, description="the same as --strategy progressive")
    img_size: PositiveInt | None = Field(None, description="training size, px (unset: the architecture's default size)")
    scales: Numbers | None = Field(
        None, description="ascending sizes, px (default: 64,112,224; 20,32,64 on the built-in data)"
    )
    scale_epochs: Numbers | None = Field(
        None,
        description="epochs at every scale except the last, which gets the rest; or a list that sums to --epochs "
        "(unset: equal parts)",
    )
    ramp: bool | None = Field(
        None,
        description="increase the size smoothly instead of in stages: half the largest size for the first half of the "
        "epochs, the largest for the last fifth",
    )
    consistency_weight: float | None = Field(
        None, ge=0, description="weight of the cross-scale consistency loss, 0 or more (default: 0, off)"
    )
    consistency: ConsistencyForm | None = Field(
        None, description="consistency loss: KL divergence, squared error of logits, Jensen-Shannon (default: kl)"
    )
    norm_per_scale: NormMode | None = Field(
        None,
        description="what each scale owns of normalization layers; full: statistics and affine parameters; statistics: "
        "statistics only; off: nothing (default: full for simultaneous, off for progressive)",
    )
    eval_scales: Numbers | None = Field(None, description="sizes to evaluate, px (default: the training scales)")
    strategy_kwargs: KeyValues | None = Field(
        None, description="fields of a strategy of your own that have no flag, as key=value (unset: none)"
    )


def default_scales(data_root: str) -> tuple[int, ...]:
    return (20, 32, 64) if data_root == SYNTHETIC else (64, 112, 224)


def make_scales(values: Mapping[str, Any]) -> dict[str, Any]:
    """Convert the given flags of `Scales` to their types; raises InputError with one line."""
    try:
        return Scales(**values).model_dump(exclude_none=True)
    except ValidationError as error:
        raise InputError(explain(error)) from None
