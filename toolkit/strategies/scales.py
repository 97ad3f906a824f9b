"""Checks of scales and eval specs, shared by all strategies."""

from collections.abc import Sequence

from toolkit.config.choices import check_ascending
from toolkit.strategies.base import EvalSpec, at_size
from toolkit.system.errors import InputError


def check_several(flag: str, sizes: Sequence[int]) -> None:
    """Raise InputError unless there are at least two ascending sizes."""
    check_ascending(flag, sizes)
    if len(sizes) < 2:
        raise InputError(f"{flag} {sizes[0]}: one size is single-scale training: use recipes/single_scale.py")


def eval_specs(sizes: Sequence[int], eval_scales: Sequence[int] | None) -> tuple[EvalSpec, ...]:
    """An eval spec for each of `eval_scales`, or of the training `sizes`; always includes the last training size."""
    return tuple(at_size(size) for size in sorted({*(eval_scales or sizes), sizes[-1]}))


def join(values: Sequence[int]) -> str:
    return "/".join(map(str, values))
