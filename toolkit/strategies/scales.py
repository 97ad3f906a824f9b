"""What several strategies share: checks of scales, eval specs, phases and loss of one size, growth with the size."""

import math
from collections.abc import Sequence
from dataclasses import fields
from itertools import accumulate
from numbers import Integral, Real
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

import numpy as np
from torch import Tensor

from toolkit.config.choices import BATCH_GROWTHS, BatchGrowth, NormMode, check_ascending
from toolkit.strategies.base import BoundTask, Budget, EvalSpec, Loss, NormPolicy, Phase, Step, at_size
from toolkit.system.errors import InputError

ORDER_SEED = 20  # of the order of sizes that are drawn


RULES: dict[Any, tuple[type, str]] = {  # of a declared type: what a value is, and the words of the command line for it
    int: (Integral, "must be a whole number"),
    float: (Real, "must be a number"),
    bool: (bool, "must be true or false"),
}


def check_fields(strategy: Any, own: Sequence[str] = ()) -> None:
    """Raise InputError unless each field has a value of its declared type; `own`: fields without a flag.

    Types other than those of the strategies here are left to the subclass that declares them.
    """
    try:
        declared = get_type_hints(type(strategy))
    except (NameError, TypeError, AttributeError):
        return
    for field in fields(strategy):
        name = f"--strategy-kwargs {field.name}=" if field.name in own else f"--{field.name.replace('_', '-')} "
        _check_type(name, getattr(strategy, field.name), declared[field.name])


def _check_type(name: str, value: Any, declared: Any) -> None:
    origin, parts = get_origin(declared), get_args(declared)
    if len(parts) == 2 and parts[1] is NoneType:
        if value is not None:
            _check_type(name, value, parts[0])
    elif origin is tuple and parts[1:] == (...,):
        if not isinstance(value, list | tuple):
            raise InputError(f"{name}{value}: must be a list of numbers in brackets, such as [1,2]")
        for part in value:
            _check_type(name, part, parts[0])
    elif origin is Literal and value not in parts:
        raise InputError(f"{name}{value}: must be one of {', '.join(map(repr, parts[:-1]))} or {parts[-1]!r}")
    elif declared in RULES:
        kind, rule = RULES[declared]
        if not isinstance(value, kind) or isinstance(value, bool) != (declared is bool):
            raise InputError(f"{name}{value}: {rule}")


def check_several(flag: str, sizes: Sequence[int]) -> None:
    """Raise InputError unless there are at least two ascending sizes."""
    check_ascending(flag, sizes)
    if len(sizes) < 2:
        raise InputError(f"{flag} {sizes[0]}: one size is single-scale training: use `toolkit train single`")


def eval_specs(sizes: Sequence[int], eval_scales: Sequence[int] | None) -> tuple[EvalSpec, ...]:
    """An eval spec for each of `eval_scales`, or of the training `sizes`; always includes the last training size."""
    return tuple(at_size(size) for size in sorted({*(eval_scales or sizes), sizes[-1]}))


def regularization_at(size: int, sizes: Sequence[int], start: float) -> float:
    """The share of the run's regularization at `size`: `start` at the smallest of `sizes`, 1 at the largest.

    It grows linearly with the size: larger images need more of it (EfficientNetV2, arXiv:2104.00298).
    """
    smallest, largest = min(sizes), max(sizes)
    return start + (1 - start) * (size - smallest) / (largest - smallest) if smallest < largest else 1.0


def one_phase(sizes: tuple[int, ...], budget: Budget) -> tuple[Phase]:
    """All of training as one phase."""
    return (Phase(0, budget.epochs, budget.epochs * budget.steps_per_epoch, sizes, budget.batch_size),)


def drawn(values: Sequence[int], i: int) -> int:
    """The value of step `i`: in every round of as many steps each of them once, in random order, alike in every run."""
    number, place = divmod(i, len(values))
    return values[np.random.default_rng((ORDER_SEED, number)).permutation(len(values))[place]]


def one_size_loss(logits: Sequence[Tensor], targets: Tensor, task: BoundTask, step: Step) -> Loss:
    """The loss of a step at one size."""
    total = task.loss(logits[0], targets)
    return Loss(total, {f"loss/{step.sizes[0]}px": total})


def norm_in_turn(mode: NormMode, scales: tuple[int, ...]) -> NormPolicy:
    """The normalization of scales that are trained one after another; shared, it ends as that of the last."""
    return NormPolicy(mode, scales[-1:] if mode == "off" else scales)


def join(values: Sequence[float]) -> str:
    return "/".join(map(str, values))


def share_out(epochs: int, weights: Sequence[float]) -> tuple[int, ...]:
    """Whole epochs in proportion to `weights`, which sum to `epochs`; each part gets at least one."""
    spare, total = epochs - len(weights), sum(weights)
    wanted = [max(0.0, epochs * weight / total - 1) for weight in weights]
    ends = [round(spare * end / sum(wanted)) if spare else 0 for end in accumulate(wanted)]
    return tuple(1 + end - start for start, end in zip([0, *ends], ends, strict=False))


def check_growth(growth: str, regularization_from: float) -> None:
    if growth not in BATCH_GROWTHS:
        raise InputError(f"--grow-batch {growth}: one of {', '.join(BATCH_GROWTHS)}")
    if not 0 <= regularization_from <= 1:
        raise InputError(f"--regularization-from {regularization_from:g}: must be between 0 and 1")


MOST_GROWTH = 8  # a larger batch would leave too few steps


def one_size_phase(
    index: int, epochs: int, size: int, budget: Budget, largest: int, growth: BatchGrowth = "off"
) -> Phase:
    """A phase at one size; with `growth` its batches have about as many pixels as those at the largest size.

    A batch k times as large has k times the learning rate ("linear", for SGD) or its square root ("sqrt", for Adam).
    """
    times = 1 if growth == "off" else min(MOST_GROWTH, int((largest / size) ** 2), budget.steps_per_epoch)
    steps = epochs * (budget.steps_per_epoch // times)
    rate = float(times) if growth == "linear" else math.sqrt(times)
    return Phase(index, epochs, steps, (size,), times * budget.batch_size, lr_scale=rate)
