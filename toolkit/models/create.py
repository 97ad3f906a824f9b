"""Create timm models: names, constructor arguments, pretrained weights; prepare any model for training."""

import inspect
import logging
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import timm
import torch
from timm.layers import convert_sync_batchnorm
from torch import Tensor, nn

from toolkit.config.settings import Settings
from toolkit.models.hub import label_names
from toolkit.models.initial_weights import StoredWeights
from toolkit.models.multiview import MultiView, replace_norms
from toolkit.strategies.base import NormPolicy
from toolkit.system.errors import InputError, first_line, nearest

SAFE_CHANNELS = 16  # per group; see `_skip_pixels_first`
# What timm and its hub client raise for a missing network, hub or file; it differs between their releases.
UNREACHABLE = (OSError, RuntimeError, ValueError)


def own_size(arch: str) -> int:
    """The default input size of an architecture, px, 224 if timm has none; raises InputError for an unknown name."""
    check_name(arch)
    try:
        config = timm.get_pretrained_cfg(arch)
    except RuntimeError as error:  # an unknown tag after the name
        raise InputError(f"--arch {arch}: {error}") from None
    return config.input_size[-1] if config is not None else 224


def check_name(arch: str) -> None:
    """Raise InputError with the nearest name unless timm has the architecture."""
    if not timm.is_model(arch):
        known = nearest(arch, timm.list_models())
        raise InputError(f"--arch {arch}: timm has no such architecture{known}; one of your own: --import its module")


def registered_by(arch: str) -> str:
    """The user's own module that registered an architecture of this name with timm; empty for timm's own."""
    module = timm.models.model_entrypoint(arch).__module__
    return "" if module.partition(".")[0] == "timm" else module


def timm_arguments(settings: Settings, classes: int, largest: int) -> dict[str, Any]:
    """Arguments of timm's constructor, including the image size if it takes one."""
    arguments: dict[str, Any] = {"num_classes": classes, "drop_rate": settings.dropout_rate}
    if settings.drop_path:
        arguments["drop_path_rate"] = settings.drop_path
    taken = accepted(type(construct(settings, arguments)))
    if "img_size" in taken:
        arguments["img_size"] = largest
    if "dynamic_img_size" in taken:
        arguments["dynamic_img_size"] = True
    return {**arguments, **settings.model_kwargs}


def accepted(kind: type) -> set[str]:
    """Names of the arguments of a class's constructor, with those of its parents' that it passes on as **kwargs."""
    names: set[str] = set()
    for owner in kind.__mro__:
        if "__init__" in vars(owner):
            parameters = inspect.signature(vars(owner)["__init__"]).parameters
            names |= parameters.keys()
            if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
                break
    return names


def construct(settings: Settings, arguments: Mapping[str, Any], device: str = "meta") -> nn.Module:
    """Create timm's model without pretrained weights; raises InputError if the arguments do not fit."""
    try:
        with torch.device(device):
            return timm.create_model(settings.arch, **{**arguments, **settings.model_kwargs})
    except Exception as error:  # a function that a user registered raises any type of exception
        if "drop_path_rate" in str(error):
            raise InputError(f"--drop-path: {settings.arch} has no stochastic depth; drop the flag") from None
        reason = f"there is no {error}" if isinstance(error, KeyError) else error
        given = " ".join(f"{k}={v}" for k, v in settings.model_kwargs.items()) or "none given"
        raise InputError(f"--arch {settings.arch} (--model-kwargs {given}): {reason}") from None


def create(settings: Settings, arguments: Mapping[str, Any], policy: NormPolicy) -> MultiView:
    """Create the model on the CPU; its random initial weights depend only on the seed."""
    torch.manual_seed(settings.seed)
    model = timm.create_model(settings.arch, **arguments)
    views = prepare(model, policy, settings.sync_bn)
    channels_last(views.parameters())
    return views


def prepare(model: nn.Module, policy: NormPolicy, sync_bn: bool) -> MultiView:
    """The model as it is trained: normalization synchronized or per scale, convolutions that are safe on a CPU."""
    if sync_bn:
        replace_norms(model, convert_sync_batchnorm)
    _skip_pixels_first(model)
    return MultiView(model, policy)


def channels_last(parameters: Iterable[Tensor]) -> None:
    """Lay out weights of 2D convolutions channels last; those of more dimensions have no such format."""
    for parameter in parameters:
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)


def _skip_pixels_first(model: nn.Module) -> None:
    """Make strided 1x1 convolutions of few channels subsample their input first; the result is the same.

    oneDNN computes a wrong gradient of such weights in float32, channels last, and writes out of bounds (torch 2.14;
    docs/log.md), which crashes at best.
    """
    for module in model.modules():
        if (
            isinstance(module, nn.Conv2d)
            and module.kernel_size == (1, 1)
            and max(module.stride) > 1
            and module.in_channels // module.groups < SAFE_CHANNELS
        ):
            module.register_forward_pre_hook(partial(_every, module.stride))
            module.stride = (1, 1)


def _every(stride: tuple[int, ...], _: nn.Module, images: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    rows, columns = stride
    return (images[0][..., ::rows, ::columns], *images[1:])


def pretrained(settings: Settings, arguments: Mapping[str, Any]) -> StoredWeights:
    """timm's pretrained weights, with their own head; raises InputError if they cannot be loaded."""
    arch = settings.arch
    own_head = {} if registered_by(arch) else {"num_classes"}  # a user's function may have no default
    given = {name: value for name, value in arguments.items() if name not in own_head}
    hub_log = logging.getLogger("huggingface_hub")
    level = hub_log.level
    hub_log.setLevel(logging.ERROR)  # hides messages of its retries: the error below suffices
    try:
        model = timm.create_model(arch, pretrained=True, **given)
    except UNREACHABLE as error:
        reason = first_line(error)
        raise InputError(
            f"--pretrained: the weights of {arch} could not be loaded ({reason}); without a network, fetch them once "
            "on a machine that has one and copy its Hugging Face cache (HF_HOME), set HF_HUB_OFFLINE=1, or give a "
            "file: --weights weights.safetensors"
        ) from None
    finally:
        hub_log.setLevel(level)
    about = settings.model_kwargs.get("pretrained_cfg")  # timm also takes a tag
    hub = about.get("hf_hub_id") if isinstance(about, Mapping) else None
    name, classes = (f"hf-hub:{hub}", label_names(hub)) if hub else (arch, None)
    return StoredWeights(f"--pretrained {name}", model.state_dict(), classes)
