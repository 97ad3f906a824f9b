"""The flags from which a recipe builds its strategy. Imports no torch."""

from collections.abc import Mapping
from typing import Any

from pydantic import Field, PositiveInt

from toolkit.config.base import KeyValues, Numbers, Section, frozen
from toolkit.config.choices import BatchGrowth, ConsistencyForm, ConsistencyTeacher, NormMode
from toolkit.config.data_roots import BUILT_IN


class Scales(Section):
    """Scales"""

    strategy: str | None = Field(
        None,
        description="simultaneous: all scales in each step; progressive: one after another; progressive-compute: the "
        "same with stages of equal compute; progressive-simultaneous: the small scales in turn, then all in each step; "
        "sampled: one scale a step, at random; sandwich: the largest teaches the smallest and one other (default: "
        "simultaneous)",
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
    regularization_from: float | None = Field(
        None,
        ge=0,
        le=1,
        description="share of the regularization at the smallest size of --progressive, 0 to 1; it grows linearly with "
        "the size to all of it at the largest (default: 1, no growth)",
    )
    grow_batch: BatchGrowth | None = Field(
        None,
        description="progressive: batches grow as the size shrinks, to as many pixels, at most 8 times; the learning "
        "rate grows as the batch (linear, for sgd) or its square root (sqrt, for adamw) (default: off)",
    )
    consistency_share: float | None = Field(
        None,
        description="share of the loss of a scale, 0 to 1, that comes from the predictions of larger ones, the rest "
        "from the labels (default: 0; 1 for sandwich)",
    )
    consistency_ramp: bool | None = Field(
        None,
        description="let the share grow from 0, at a tenth of the steps with several sizes, to all of it at their "
        "end (default: on)",
    )
    consistency_gate: bool | None = Field(
        None, description="learn only from predictions of the larger scale that are right (default: off)"
    )
    consistency_teacher: ConsistencyTeacher | None = Field(
        None, description="larger: each larger scale; mean: the mean of the logits of all scales (default: larger)"
    )
    consistency_temperature: float | None = Field(
        None, description="temperature of the predictions that are compared, above 0 (default: 1)"
    )
    consistency: ConsistencyForm | None = Field(
        None,
        description="how predictions are compared; kl, js (Jensen-Shannon), mse (logits), standardized (kl of logits "
        "of mean 0 and deviation 1), dkd (decoupled kl), alpha (the larger of two divergences) (default: kl)",
    )
    consistency_weight: float | None = Field(
        None, ge=0, description="older form: weight of a loss beside that of the labels, 0 or more (default: 0, off)"
    )
    norm_per_scale: NormMode | None = Field(
        None,
        description="what each scale owns of normalization layers; full: statistics and affine parameters; statistics: "
        "statistics only; off: nothing (default: off where sizes come one after another, else full)",
    )
    head_epochs: int | None = Field(
        None,
        ge=0,
        description="epochs, of --epochs, in which only the classifier learns before all does, at twice the peak rate "
        "without a schedule (default: 0; a tenth of the epochs for `train finetune`)",
    )
    finish_size: PositiveInt | None = Field(
        None,
        description="train the classifier and last normalization at this larger size at the end, px (unset: none)",
    )
    finish_epochs: PositiveInt | None = Field(None, description="epochs of that, of --epochs (default: 1)")
    eval_scales: Numbers | None = Field(None, description="sizes to evaluate, px (default: the training scales)")
    strategy_kwargs: KeyValues | None = Field(
        None, description="fields of a strategy of your own that have no flag, as key=value (unset: none)"
    )


def default_scales(data_root: str) -> tuple[int, ...]:
    return (20, 32, 64) if data_root in BUILT_IN else (64, 112, 224)


def make_scales(values: Mapping[str, Any]) -> dict[str, Any]:
    """Convert the given flags of `Scales` to their types, lists to tuples; raises InputError with one line."""
    given = Scales(**values).model_dump(exclude_none=True)
    own = {name: frozen(value) for name, value in given.get("strategy_kwargs", {}).items()}
    return {**given, "strategy_kwargs": own} if own else given
