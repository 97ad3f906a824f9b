"""Check a model at every size of a run and count its cost; timm's on the meta device: no memory, no arithmetic."""

import contextlib
import inspect
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from timm.data import resolve_model_data_config
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from toolkit.config.settings import Settings
from toolkit.models.create import accepted, check_name, construct, registered_by, timm_arguments
from toolkit.models.multiview import BATCH_NORMS
from toolkit.models.regularization import DropRates
from toolkit.system.errors import InputError, first_line

RESERVED = {  # arguments of timm's constructors that have a flag of their own, or are not supported
    "num_classes": "the data says how many classes there are",
    "drop_rate": "use --dropout-rate",
    "drop_path_rate": "use --drop-path",
    "pretrained": "use --pretrained",
    "in_chans": "images are RGB",
    "features_only": "a classifier needs its head",
}
REBUILT_PER_SIZE = "timm.models.swin"  # start of the modules whose models keep tables for one size
PADS = "dynamic_img_pad"  # argument of timm's transformers: pad images to a multiple of the patch
LIBRARIES = {"timm", "toolkit", "torch", *sys.stdlib_module_names}  # their versions are recorded, not their code


@dataclass(frozen=True)
class ModelPlan:
    """A model checked at every size: constructor arguments, cost, preprocessing.

    `mean` and `std`: 3 values each, for pixels in [0, 1]. `modules`: Python modules that hold the user's own code of
    it. `unused`: whether some of its parameters get no gradient at a size that is trained. `small_maps`: a line for the
    plan of a run, if the last feature map is below 2 x 2 at a size that is trained.
    """

    arguments: Mapping[str, Any]
    parameters: int
    batch_norms: int
    drop_rates: int  # layers with dropout or stochastic depth
    gmacs: Mapping[int, float]  # 10^9 multiply-adds of a forward pass of one image, by size
    overstrided: Mapping[int, str]  # by size, if there is one: the convolution whose stride exceeds its input
    last_maps: Mapping[int, tuple[int, int]]  # rows and columns of the last feature map, by size, if there is one
    mean: tuple[float, ...]
    std: tuple[float, ...]
    modules: tuple[str, ...] = ()
    unused: bool = False
    small_maps: str = ""


class Forward(NamedTuple):
    """A forward pass: what the model returned, 10^9 multiply-adds of an image, and as in `ModelPlan`."""

    output: Any
    gmacs: float
    overstrided: str
    last_map: tuple[int, int] | None


def plan_model(
    settings: Settings, classes: int, sizes: Sequence[int], micro_batch: int = 2, trained: Sequence[int] = ()
) -> ModelPlan:
    """Check an architecture at every size of a run, on the meta device; raises InputError naming the size.

    `trained`: the sizes at which it is trained.
    """
    check_name(settings.arch)
    for key in settings.model_kwargs:
        if key in RESERVED:
            raise InputError(f"--model-kwargs {key}: {RESERVED[key]}")
    arguments = timm_arguments(settings, classes, max(sizes))
    model = construct(settings, arguments).eval().requires_grad_(False)
    modules = own_modules(model, registered_by(settings.arch))
    if len(sizes) > 1 and type(model).__module__.startswith(REBUILT_PER_SIZE):
        given = ",".join(map(str, sizes))
        raise InputError(
            f"--arch {settings.arch} cannot change between {given} px: Swin rebuilds its tables for each size; "
            "train and evaluate it at one, or choose an architecture that takes any size, such as resnet18"
        )
    arguments, model, passes = _fitting(settings, arguments, model, sizes)
    unused = False
    if modules:  # timm's own return logits
        for size, found in passes.items():
            check_logits(f"--arch {settings.arch}", f"{size} px", found.output, (1, classes))
        training = construct(settings, arguments).train()
        for size in trained:
            unused |= _train_on_meta(settings, training, size, classes)
    if micro_batch == 1:
        _check_one_image_batches(settings, model, min(trained or sizes))
    data = resolve_model_data_config(model)
    return ModelPlan(arguments, *counts(model, passes), tuple(data["mean"]), tuple(data["std"]), modules, unused)


def _fitting(
    settings: Settings, arguments: dict[str, Any], model: nn.Module, sizes: Sequence[int]
) -> tuple[dict[str, Any], nn.Module, dict[int, Forward]]:
    """The model with a forward pass at every size; if one does not fit, made with PADS, if it takes that.

    Raises InputError naming the size.
    """
    try:
        return arguments, model, {size: _forward_on_meta(settings, model, size) for size in sizes}
    except InputError:
        if PADS not in accepted(type(model)) or PADS in arguments:
            raise
        padded = {**arguments, PADS: True}
        model = construct(settings, padded).eval().requires_grad_(False)
        return padded, model, {size: _forward_on_meta(settings, model, size) for size in sizes}


def _train_on_meta(settings: Settings, model: nn.Module, size: int, classes: int) -> bool:
    """Try a step of a model that a user registered with timm; returns whether some parameters got no gradient.

    Raises InputError if that fails.
    """
    where = f"{size} px in training"
    model.zero_grad()
    try:
        output = model(torch.empty(2, 3, size, size, device="meta"))
        check_logits(f"--arch {settings.arch}", where, output, (2, classes))
        output.sum().backward()
    except InputError:
        raise
    except Exception as error:  # a model that a user registered raises any type of exception
        raise InputError(f"--arch {settings.arch}: at {where} it fails: {first_line(error)}") from error
    return any(parameter.grad is None for parameter in model.parameters() if parameter.requires_grad)


def _forward_on_meta(settings: Settings, model: nn.Module, size: int) -> Forward:
    """Run an image of `size` px through timm's model; raises InputError if it fails."""
    try:
        return forward(model, torch.empty(1, 3, size, size, device="meta"))
    except Exception as error:  # a model that a user registered raises any type of exception
        raise InputError(
            f"--arch {settings.arch} cannot take {size} px images: {first_line(error)}; "
            "choose sizes that fit it, or an architecture that takes any size, such as resnet18"
        ) from None


def counts(
    model: nn.Module, passes: Mapping[int, Forward]
) -> tuple[int, int, int, Mapping[int, float], Mapping[int, str], Mapping[int, tuple[int, int]]]:
    """Parameters, BatchNorms, drop rates, multiply-adds, overstrided convolutions, last maps, as in `ModelPlan`."""
    return (
        sum(parameter.numel() for parameter in model.parameters()),
        sum(isinstance(module, BATCH_NORMS) for module in model.modules()),
        len(DropRates.of(model).built),
        {size: found.gmacs for size, found in passes.items()},
        {size: found.overstrided for size, found in passes.items() if found.overstrided},
        {size: found.last_map for size, found in passes.items() if found.last_map},
    )


def own_modules(model: nn.Module, *names: str) -> tuple[str, ...]:
    """Python modules that define the model's layers, and `names`, as far as they are no LIBRARIES."""
    kinds = {kind.__module__ for module in model.modules() for kind in type(module).__mro__}
    return tuple(sorted(name for name in kinds | {*names} if name and name.partition(".")[0] not in LIBRARIES))


def forward(model: nn.Module, images: Tensor) -> Forward:
    """Run N x 3 x S x S images through the model, without gradients."""
    counter, strides = FlopCounterMode(display=False), _Strides()
    with _features(model) as features, counter, strides, torch.no_grad():
        output = model(images)
    return Forward(output, counter.get_total_flops() / 2e9 / len(images), strides.too_long, _last_map(model, features))


@contextlib.contextmanager
def _features(model: Any) -> Iterator[list[Any]]:
    """What the method `forward_features` of timm's models returns while the model runs; empty if it is not called."""
    found: list[Any] = []
    method = getattr(model, "forward_features", None)
    if not inspect.ismethod(method):
        yield found
        return

    def recorded(*args: Any, **kwargs: Any) -> Any:
        found.append(method(*args, **kwargs))
        return found[-1]

    model.forward_features = recorded
    try:
        yield found
    finally:
        del model.forward_features


def _last_map(model: nn.Module, features: list[Any]) -> tuple[int, int] | None:
    """Rows and columns; None for tokens. Some of timm's models have channels last: `num_features` tells."""
    if not features or not isinstance(features[-1], Tensor) or features[-1].ndim != 4:
        return None
    _, first, second, last = features[-1].shape
    channels = getattr(model, "num_features", first)
    return (first, second) if last == channels != first else (second, last)


def check_logits(called: str, where: str, output: Any, shape: tuple[int, int]) -> None:
    """Raise InputError unless a model returned one tensor of images x classes; `called`: how to name it."""
    if not isinstance(output, Tensor):
        kind = type(output).__name__
        raise InputError(f"{called}: at {where} it returns {kind}: it must return one tensor, images x classes")
    if output.shape != shape:
        found, expected = (" x ".join(map(str, sizes)) or "one number" for sizes in (output.shape, shape))
        raise InputError(f"{called}: at {where} it returns {found}: it must be {expected}, images x classes")


class _Strides(TorchDispatchMode):
    """Records the first executed convolution whose stride exceeds its input, after explicit padding."""

    def __init__(self) -> None:
        super().__init__()
        self.too_long = ""  # description of the first one

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.convolution.default and not self.too_long:
            image, weight, _, stride = args[:4]
            kernel, given = weight.shape[2:], image.shape[2:]
            if max(kernel) > 1 and any(s > n for s, n in zip(stride, given, strict=True)):
                meets = " x ".join(map(str, given))
                side = " x ".join(map(str, kernel))
                self.too_long = f"a convolution of {side} with stride {stride[0]} meets {meets} pixels"
        return func(*args, **(kwargs or {}))


def _check_one_image_batches(settings: Settings, model: nn.Module, size: int) -> None:
    """Raise InputError if BatchNorm would get a single value per channel."""
    try:
        with torch.no_grad():
            model.train()(torch.empty(1, 3, size, size, device="meta"))
    except ValueError as error:
        raise InputError(one_value(settings.arch, size, error)) from None


def one_value(name: str, size: int, error: ValueError) -> str:
    """The message for a BatchNorm that gets a single value per channel."""
    return (
        f"--batch-size or --device-batch-size leaves 1 image per process and forward: at {size} px the BatchNorm "
        f"of {name} has nothing to average over ({error}); take 2 or more"
    )
