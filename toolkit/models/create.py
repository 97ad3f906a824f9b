"""timm models that run at several sizes: creation, one forward over all views, normalization per scale."""

import copy
import inspect
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import timm
import torch
from timm.layers import convert_sync_batchnorm
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from toolkit.config.base import nearest
from toolkit.config.settings import Settings
from toolkit.strategies.base import NormPolicy
from toolkit.system.errors import InputError, first_line

# timm's BatchNormAct2d is a BatchNorm2d; RepViT, LeViT and others have the one of vectors before their classifiers
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.SyncBatchNorm)
RESERVED = {  # arguments of timm's constructors that have a flag, or none on purpose
    "num_classes": "the data says how many classes there are",
    "drop_rate": "use --dropout-rate",
    "drop_path_rate": "use --drop-path",
    "pretrained": "use --pretrained",
    "in_chans": "images are RGB",
    "features_only": "a classifier needs its head",
}
SAFE_CHANNELS = 16  # per group
REBUILT_PER_SIZE = "timm.models.swin"  # modules whose models keep tables for one size
# What a missing network, hub or file raises from inside timm and its hub client; it differs between their releases.
UNREACHABLE = (OSError, RuntimeError, ValueError)


class ScaleNorm(nn.Module):
    """BatchNorm with private copies per scale; `active` is set by MultiView before each view."""

    def __init__(self, norm: nn.Module, policy: NormPolicy) -> None:
        super().__init__()
        self.norms = nn.ModuleDict({str(scale): copy.deepcopy(norm) for scale in policy.scales})
        if policy.mode == "statistics":
            for own in self.norms.values():
                own.weight, own.bias = norm.weight, norm.bias
        self.active = str(policy.scales[-1])

    def forward(self, x: Tensor) -> Tensor:
        return self.norms[self.active](x)


class MultiView(nn.Module):
    """A model and its normalization policy: one forward over the views of a batch.

    `forward(*views)`, each N x 3 x S x S, returns one N x C tensor of logits per view.
    """

    def __init__(self, model: nn.Module, policy: NormPolicy) -> None:
        super().__init__()
        self.model, self.policy = model, policy
        if policy.mode != "off":
            _replace_norms(model, policy)
        self.scale_norms = [module for module in model.modules() if isinstance(module, ScaleNorm)]

    def forward(self, *views: Tensor) -> list[Tensor]:
        logits = []
        for view in views:
            scale = str(self.policy.scale_for(view.shape[-1]))
            for norm in self.scale_norms:
                norm.active = scale
            logits.append(self.model(view))
        return logits

    def norm_from(self, size: int) -> int | None:
        """The scale whose normalization `size` borrows; None where it has its own or all are shared."""
        own = not self.scale_norms or size in self.policy.scales
        return None if own else self.policy.scale_for(size)

    def own_norms(self, sizes: Sequence[int]) -> list[nn.Module]:
        """Give further sizes normalization of their own, copied from what each used so far; returns those copies."""
        scales = tuple(sorted({*self.policy.scales, *sizes}))
        if self.scale_norms:
            for norm in self.scale_norms:
                lent = {str(size): norm.norms[str(self.policy.scale_for(size))] for size in sizes}
                norm.norms.update({size: copy.deepcopy(own) for size, own in lent.items()})
            self.policy = NormPolicy(self.policy.mode, scales)
        else:
            self.policy = NormPolicy("full", scales)
            _replace_norms(self.model, self.policy)
            self.scale_norms = [module for module in self.model.modules() if isinstance(module, ScaleNorm)]
        return [norm.norms[str(size)] for norm in self.scale_norms for size in sizes]


def _replace_norms(module: nn.Module, policy: NormPolicy) -> None:
    for name, child in module.named_children():
        if isinstance(child, BATCH_NORMS):
            setattr(module, name, ScaleNorm(child, policy))
        else:
            _replace_norms(child, policy)


def state_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Every parameter and buffer once, by name: shared ones do not stand twice, as in `state_dict`."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


@torch.no_grad()
def copy_state(source: Mapping[str, Tensor], target: nn.Module) -> None:
    """Set every parameter and buffer of `target`; raises RuntimeError unless names and shapes agree exactly."""
    copy_tensors(source, state_tensors(target))


@torch.no_grad()
def copy_tensors(source: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    """Set `tensors` by name; raises RuntimeError unless names and shapes agree exactly."""
    if source.keys() != tensors.keys():
        raise RuntimeError(f"state does not fit the model: {sorted(source.keys() ^ tensors.keys())[:4]} ...")
    for name, tensor in tensors.items():
        if tensor.shape != source[name].shape:
            raise RuntimeError(f"{name}: shape {tuple(source[name].shape)} does not fit {tuple(tensor.shape)}")
        tensor.copy_(source[name])


def own_size(arch: str) -> int:
    """The size an architecture was made for, px; raises InputError on an unknown name."""
    check_name(arch)
    try:
        config = timm.get_pretrained_cfg(arch)
    except RuntimeError as error:  # an unknown tag after the name
        raise InputError(f"--arch {arch}: {error}") from None
    return config.input_size[-1] if config is not None else 224


def check_name(arch: str) -> None:
    """Raises InputError with the nearest name unless timm knows the architecture."""
    if not timm.is_model(arch):
        raise InputError(f"--arch {arch}: timm has no such architecture{nearest(arch, timm.list_models())}")


def _arguments(settings: Settings, classes: int, largest: int) -> dict[str, Any]:
    """What timm's constructor is given: sizes too, where it wants to know them."""
    arguments: dict[str, Any] = {"num_classes": classes, "drop_rate": settings.dropout_rate}
    if settings.drop_path:
        arguments["drop_path_rate"] = settings.drop_path
    probe = _construct(settings, arguments)
    accepted = inspect.signature(type(probe).__init__).parameters
    if "img_size" in accepted:
        arguments["img_size"] = largest
    if "dynamic_img_size" in accepted:
        arguments["dynamic_img_size"] = True
    return {**arguments, **settings.model_kwargs}


def _construct(settings: Settings, arguments: Mapping[str, Any], device: str = "meta") -> nn.Module:
    """timm's model without weights from elsewhere; raises InputError where the arguments do not fit."""
    try:
        with torch.device(device):
            return timm.create_model(settings.arch, **{**arguments, **settings.model_kwargs})
    except (TypeError, AssertionError, ValueError, RuntimeError, KeyError) as error:
        if "drop_path_rate" in str(error):
            raise InputError(f"--drop-path: {settings.arch} has no stochastic depth; drop the flag") from None
        reason = f"there is no {error}" if isinstance(error, KeyError) else error
        given = " ".join(f"{k}={v}" for k, v in settings.model_kwargs.items()) or "none given"
        raise InputError(f"--arch {settings.arch} (--model-kwargs {given}): {reason}") from None


@dataclass(frozen=True)
class ModelPlan:
    """A model that was tried out at every size without computing: what to build, and its cost."""

    arguments: Mapping[str, Any]
    parameters: int
    batch_norms: int
    gmacs: Mapping[int, float]  # multiply-adds of one forward of one image, in 10^9, per size
    overstrided: Mapping[int, str]  # per size, where one has, the convolution whose stride is longer than its input


def plan_model(settings: Settings, classes: int, sizes: Sequence[int], micro_batch: int = 2) -> ModelPlan:
    """Check an architecture at every size it will meet, on the meta device; raises InputError naming the size."""
    check_name(settings.arch)
    for key in settings.model_kwargs:
        if key in RESERVED:
            raise InputError(f"--model-kwargs {key}: {RESERVED[key]}")
    arguments = _arguments(settings, classes, max(sizes))
    model = _construct(settings, arguments).eval().requires_grad_(False)
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
    """Notes, of each convolution that is really done, padding included, whether its stride is longer than its input."""

    def __init__(self) -> None:
        super().__init__()
        self.too_long = ""  # the first one

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
    """Raises InputError where BatchNorm would meet a single value per channel."""
    try:
        with torch.no_grad():
            model.train()(torch.empty(1, 3, size, size, device="meta"))
    except ValueError as error:
        raise InputError(
            f"--batch-size or --device-batch-size leaves 1 image per process and forward: at {size} px the BatchNorm "
            f"of {settings.arch} has nothing to average over ({error}); take 2 or more"
        ) from None


def create(settings: Settings, plan: ModelPlan, policy: NormPolicy) -> MultiView:
    """The model on the CPU, its initial weights a function of the seed; raises InputError where a hub is needed."""
    torch.manual_seed(settings.seed)
    if settings.pretrained:
        model = _pretrained(settings.arch, plan.arguments)
    else:
        model = timm.create_model(settings.arch, **plan.arguments)
    if settings.sync_bn:
        model = convert_sync_batchnorm(model)
    _skip_pixels_first(model)
    views = MultiView(model, policy)
    for parameter in views.parameters():
        if parameter.ndim == 4:  # convolutions of images; those of more dimensions have no such format
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    return views


def _skip_pixels_first(model: nn.Module) -> None:
    """Have 1x1 convolutions of few channels skip the pixels of their stride beforehand: the same sums.

    oneDNN's gradient of such a weight in float32, channels last, is wrong, and writes where it must not (torch 2.14;
    docs/log.md): a crash, at best.
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


def _pretrained(arch: str, arguments: Mapping[str, Any]) -> nn.Module:
    hub_log = logging.getLogger("huggingface_hub")
    level = hub_log.level
    hub_log.setLevel(logging.ERROR)  # its retries say what the error below says in one line
    try:
        return timm.create_model(arch, pretrained=True, **arguments)
    except UNREACHABLE as error:
        reason = first_line(error)
        raise InputError(
            f"--pretrained: the weights of {arch} could not be loaded ({reason}); without a network, fetch them once "
            "on a machine that has one and copy its Hugging Face cache (HF_HOME), set HF_HUB_OFFLINE=1, or give a "
            "file: --model-kwargs 'pretrained_cfg_overlay={file: weights.safetensors}'"
        ) from None
    finally:
        hub_log.setLevel(level)
