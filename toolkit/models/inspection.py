"""Check an architecture at every size of a run and count its cost, on the meta device: no memory, no arithmetic."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from toolkit.config.settings import Settings
from toolkit.models.create import check_name, construct, timm_arguments
from toolkit.models.multiview import BATCH_NORMS
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


@dataclass(frozen=True)
class ModelPlan:
    """A model checked at every size on the meta device: constructor arguments and cost."""

    arguments: Mapping[str, Any]
    parameters: int
    batch_norms: int
    gmacs: Mapping[int, float]  # 10^9 multiply-adds of a forward pass of one image, by size
    overstrided: Mapping[int, str]  # by size, if there is one: the convolution whose stride exceeds its input


def plan_model(settings: Settings, classes: int, sizes: Sequence[int], micro_batch: int = 2) -> ModelPlan:
    """Check an architecture at every size of a run, on the meta device; raises InputError naming the size."""
    check_name(settings.arch)
    for key in settings.model_kwargs:
        if key in RESERVED:
            raise InputError(f"--model-kwargs {key}: {RESERVED[key]}")
    arguments = timm_arguments(settings, classes, max(sizes))
    model = construct(settings, arguments).eval().requires_grad_(False)
    if len(sizes) > 1 and type(model).__module__.startswith(REBUILT_PER_SIZE):
        given = ",".join(map(str, sizes))
        raise InputError(
            f"--arch {settings.arch} cannot change between {given} px: Swin rebuilds its tables for each size; "
            "train and evaluate it at one, or choose an architecture that takes any size, such as resnet18"
        )
    gmacs, overstrided = {}, {}
    for size in sizes:
        try:
            with FlopCounterMode(display=False) as counter, _Strides() as strides, torch.no_grad():
                model(torch.empty(1, 3, size, size, device="meta"))
        except (RuntimeError, AssertionError, ValueError, IndexError, ZeroDivisionError) as error:
            reason = first_line(error)
            raise InputError(
                f"--arch {settings.arch} cannot take {size} px images: {reason}; "
                "choose sizes that fit it, or an architecture that takes any size, such as resnet18"
            ) from None
        gmacs[size] = counter.get_total_flops() / 2e9
        if strides.too_long:
            overstrided[size] = strides.too_long
    if micro_batch == 1:
        _check_one_image_batches(settings, model, min(sizes))
    batch_norms = sum(isinstance(module, BATCH_NORMS) for module in model.modules())
    return ModelPlan(arguments, sum(p.numel() for p in model.parameters()), batch_norms, gmacs, overstrided)


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
        raise InputError(
            f"--batch-size or --device-batch-size leaves 1 image per process and forward: at {size} px the BatchNorm "
            f"of {settings.arch} has nothing to average over ({error}); take 2 or more"
        ) from None
