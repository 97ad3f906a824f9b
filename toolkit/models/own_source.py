"""A network of the user's own: a function that makes it, or an object. Checked by running it on the CPU."""

import contextlib
import copy
import functools
import inspect
import random
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.parameter import is_lazy

from toolkit.config.settings import Settings
from toolkit.models.create import channels_last, prepare
from toolkit.models.feature_maps import describe, small_sizes
from toolkit.models.initial_weights import StoredWeights
from toolkit.models.inspection import Forward, ModelPlan, check_logits, counts, forward, one_value, own_modules
from toolkit.models.multiview import MultiView
from toolkit.models.portable import OwnModel, PortableModel, written
from toolkit.strategies.base import NormPolicy
from toolkit.system.errors import InputError, first_line

TRIED = 2  # images of each trial


@dataclass(frozen=True)
class OwnModelSource:
    """A model of the user's own. `text`: module:function, or words for an object; `target`: what was found or given."""

    text: str
    target: Any  # an nn.Module, of which each use gets a copy; or a function that makes one

    @property
    def name(self) -> str:
        return self.text

    @property
    def _called(self) -> str:
        return f"--model-from {self.text}" if ":" in self.text else f"model ({self.text})"

    def recorded(self) -> dict[str, Any]:
        return {"model_from": self.text}

    def own_size(self) -> int:
        raise InputError(f"--img-size is missing: {self._called} has no default size")

    def plan(
        self,
        settings: Settings,
        classes: int,
        sizes: Sequence[int],
        policy: NormPolicy,
        *,
        micro_batch: int | None = None,
        trained: Sequence[int] = (),
        further: Sequence[int] = (),
    ) -> ModelPlan:
        """As `ModelSource.plan`; runs two random images of each size, and trains on them at `trained`."""
        arguments = self._arguments(settings, classes)
        model = self._seeded(settings.seed, arguments)
        model.eval()
        passes = {size: self._evaluate(model, size, classes) for size in sorted({*sizes, *further})}
        counted, (mean, std) = counts(model, passes), self._statistics(model)
        modules = own_modules(model, *_code_of(self.target))
        unused = False
        if micro_batch is not None:
            views = _prepared(model, policy, sync_bn=False)
            unused = self._train(views, sorted({*trained}), classes, min(micro_batch, TRIED))
        plan = ModelPlan(arguments, *counted, mean, std, modules, unused)
        small = small_sizes(plan, trained)
        return replace(plan, small_maps=describe(self.name, plan, small)) if small else plan

    def create(self, settings: Settings, plan: ModelPlan, policy: NormPolicy) -> MultiView:
        return _prepared(self._seeded(settings.seed, plan.arguments), policy, settings.sync_bn)

    def network(self, settings: Settings, plan: ModelPlan) -> nn.Module:
        return self._make(plan.arguments)

    def pretrained(self, settings: Settings, plan: ModelPlan) -> StoredWeights:
        raise InputError(f"--pretrained would be ignored: the model is {self.text}")

    def notes(self, plan: ModelPlan) -> list[str]:
        mean, std = (", ".join(f"{value:g}" for value in values) for values in (plan.mean, plan.std))
        usual = ", those of ImageNet" if plan.mean == IMAGENET_DEFAULT_MEAN and plan.std == IMAGENET_DEFAULT_STD else ""
        lines = [f"pixels    mean {mean}, standard deviation {std}{usual}"]
        lines += [plan.small_maps] if plan.small_maps else []
        if ":" not in self.text:
            reopens = "evaluate(run, model=...), likewise predict and export"
            lines.append(f"reopen    {reopens}: config.yaml can only say that the model is {self.text}")
        return lines

    def portable(self, network: nn.Module, plan: ModelPlan, size: int, classes: Sequence[str]) -> PortableModel:
        arguments = plan.arguments
        made = (self.text, lambda: self._make(arguments))
        return OwnModel(arguments, size, plan.mean, plan.std, tuple(classes), *made)

    def _arguments(self, settings: Settings, classes: int) -> dict[str, Any]:
        """Arguments of the function; none for an object. Raises InputError if --model-kwargs do not fit."""
        given = settings.model_kwargs
        if isinstance(self.target, nn.Module):
            if given:
                raise InputError(f"--model-kwargs {written(given)} would be ignored: the model is {self.text}; drop it")
            return {}
        if "num_classes" in given:
            raise InputError("--model-kwargs num_classes: the data says how many classes there are")
        return {"num_classes": classes, **given}

    def _make(self, arguments: Mapping[str, Any]) -> nn.Module:
        """A fresh copy of the model on the CPU; raises InputError if it cannot be made."""
        model = self.target if isinstance(self.target, nn.Module) else self._call(arguments)
        if not isinstance(model, nn.Module):
            raise InputError(f"{self._called}: returned {type(model).__name__}, must return a torch.nn.Module")
        if any(map(is_lazy, model.parameters())):
            raise InputError(f"{self._called}: has lazy layers, which have no weights yet: give their sizes")
        try:
            return copy.deepcopy(model).cpu()  # a function may return the same object each time
        except Exception as error:  # a module of the user's own raises any type of exception
            raise InputError(f"{self._called}: cannot be copied: {_reason(error)}") from error

    def _call(self, arguments: Mapping[str, Any]) -> Any:
        if not callable(self.target):
            kind = type(self.target).__name__
            raise InputError(f"{self._called}: of type {kind}, must be a function that makes a torch.nn.Module")
        try:
            signature = inspect.signature(self.target)
        except ValueError:  # compiled code has none
            signature = inspect.signature(lambda **_: None)
        try:
            signature.bind(**arguments)
        except TypeError as error:
            given = f"{written(arguments)} (num_classes and --model-kwargs)"
            raise InputError(f"{self._called}: cannot be called with {given}: {error}") from None
        try:
            return self.target(**arguments)
        except Exception as error:  # a function of the user's own raises any type of exception
            raise InputError(f"{self._called}: failed with {_reason(error)}") from error

    def _seeded(self, seed: int, arguments: Mapping[str, Any]) -> nn.Module:
        """The model with its initial weights, which depend only on the seed."""
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.manual_seed(seed)
        return self._make(arguments)

    def _evaluate(self, model: nn.Module, size: int, classes: int) -> Forward:
        try:
            with _all_counted():
                found = forward(model, _images(TRIED, size))
        except Exception as error:  # a module of the user's own raises any type of exception
            raise InputError(f"{self._called} cannot take {size} px images: {_reason(error)}") from error
        check_logits(self._called, f"{size} px", found.output, (TRIED, classes))
        return found

    def _train(self, views: MultiView, sizes: Sequence[int], classes: int, count: int) -> bool:
        """A step at each size, without an update; returns whether some parameters got no gradient at one of them.

        Raises InputError if a step fails.
        """
        learning = {parameter for parameter in views.train().parameters() if parameter.requires_grad}
        if not learning:
            raise InputError(f"{self._called}: has no parameters to train")
        unused = False
        for size in sizes:
            views.zero_grad()
            try:
                (output,) = views(_images(count, size))
                check_logits(self._called, f"{size} px in training", output, (count, classes))
                output.float().sum().backward()
            except InputError:
                raise
            except Exception as error:  # a module of the user's own raises any type of exception
                if count == 1 and isinstance(error, ValueError):
                    raise InputError(one_value(self.text, size, error)) from None
                hint = "; BatchNorm layers may only be called, except with --norm-per-scale off"
                reason = _reason(error) + (hint if "'ScaleNorm'" in str(error) else "")
                raise InputError(f"{self._called} cannot be trained at {size} px: {reason}") from error
            unused |= any(parameter.grad is None for parameter in learning - views.of_other_scales(size))
        return unused

    def _statistics(self, model: nn.Module) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation of its pixels: those of its pretrained_cfg, else ImageNet's."""
        for name in ("pretrained_cfg", "default_cfg"):
            config = getattr(model, name, None)
            config = config if isinstance(config, Mapping) else getattr(config, "__dict__", {})
            if config.get("mean") and config.get("std"):
                mean, std = (tuple(map(float, config[key])) for key in ("mean", "std"))
                if not len(mean) == len(std) == 3 or min(std) <= 0:
                    raise InputError(
                        f"{self._called}: {name} has mean {mean} and std {std}: 3 values each, std above 0"
                    )
                return mean, std
        return IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD


def model_name(model: Any) -> str:
    """How config.yaml names a model that was passed from Python.

    module:function if that finds the same function again, else words such as `an object of module.Class`.
    """
    if isinstance(model, functools.partial):
        return f"a partial of {model_name(model.func).rpartition(' ')[2].replace(':', '.')}"
    if isinstance(model, nn.Module) or not hasattr(model, "__qualname__"):
        return f"an object of {type(model).__module__}.{type(model).__qualname__}"
    module, name = model.__module__, model.__qualname__
    found = module != "__main__" and getattr(sys.modules.get(module), name, None) is model
    return f"{module}:{name}" if found else f"a function {module}.{name}"


def _code_of(target: Any) -> tuple[str, ...]:
    """The Python module of a function; none for an object, whose class tells."""
    function = target.func if isinstance(target, functools.partial) else target
    return () if isinstance(target, nn.Module) else (getattr(function, "__module__", None) or "__main__",)


def _prepared(model: nn.Module, policy: NormPolicy, sync_bn: bool) -> MultiView:
    views = prepare(model, policy, sync_bn)
    for module in views.modules():
        if isinstance(module, nn.Conv2d):
            channels_last([module.weight])
    return views


def _images(count: int, size: int) -> Tensor:
    """N x 3 x S x S of noise, channels last, as a run's images are."""
    noise = torch.randn(count, size, size, 3, generator=torch.Generator().manual_seed(0))
    return noise.permute(0, 3, 1, 2)


@contextlib.contextmanager
def _all_counted() -> Iterator[None]:
    """Attention by plain matrix products, since torch counts no multiply-adds of its fused kernels for CPUs."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {first_line(error)}"
