"""A transform of the user's own: one image in and out, exact because all that it draws from is seeded before each call.

torchvision's transforms work on tensors, albumentations' on a keyword and with generators of their own: both are
called as they want it.
"""

import functools
import hashlib
import random
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from toolkit.config.tables import import_named, named
from toolkit.data.images.seeding import TRANSFORM_STREAM, seed_globals
from toolkit.system.errors import InputError, first_line

FLAG = "--transform"


@dataclass(frozen=True)
class Transform:
    """A function of an S x S x 3 uint8 array, and what config.yaml calls it."""

    name: str
    function: Callable[..., Any]

    @property
    def module(self) -> str:
        """The module that defines it, whose file is part of a run's identity."""
        if ":" in self.name:
            return self.name.partition(":")[0]
        function = self.function
        while isinstance(function, functools.partial):
            function = function.func
        return str(getattr(function, "__module__", None) or type(function).__module__)

    def apply(self, pixels: np.ndarray, seed: int, epoch: int, key: int) -> np.ndarray:
        """The transformed image; `pixels` stay as they are. Moves the global generators.

        Raises InputError if the function raises or returns anything but an array of the same shape and type.
        """
        seed_globals(seed, TRANSFORM_STREAM, epoch, key)
        try:
            changed = self._call(np.array(pixels, order="C"))  # a copy: the pixels may be those of a cache
        except Exception as error:  # a user's code raises any type of exception
            reason = f"{type(error).__name__}: {first_line(error)}"
            raise InputError(f"{FLAG} {self.name}: failed on an array of shape {pixels.shape}: {reason}") from error
        if isinstance(changed, np.ndarray) and (changed.shape, changed.dtype) == (pixels.shape, pixels.dtype):
            return changed
        kind = (
            f"{changed.dtype} of shape {tuple(changed.shape)}" if hasattr(changed, "shape") else type(changed).__name__
        )
        raise InputError(f"{FLAG} {self.name}: must return uint8 of shape {pixels.shape}, as it was given, not {kind}")

    def _call(self, pixels: np.ndarray) -> Any:
        if isinstance(self.function, nn.Module):  # arrays would go through torchvision's unchanged
            changed = self.function(torch.from_numpy(pixels).permute(2, 0, 1))
            return changed.permute(1, 2, 0).numpy() if isinstance(changed, torch.Tensor) else changed
        if type(self.function).__module__.startswith("albumentations."):
            self.function.set_random_seed(random.getrandbits(32))  # type: ignore[attr-defined]
            return self.function(image=pixels)["image"]
        return self.function(pixels)


def make_transform(text: str | None, given: Callable[..., Any] | str | None) -> Transform | None:
    """The transform `given`, which may be called module:function, else the one that the settings call `text`.

    A module:function in `given` is imported; one of the settings only if its module was imported already, since they
    may come from a run. Raises InputError.
    """
    if given is None and text is None:
        return None
    if given is None and ":" not in str(text) and " " in str(text):
        raise InputError(f"{text}: pass it again as transform=..., or give {FLAG} with a function")
    if given is None:
        made = Transform(str(text), named(FLAG, str(text)))
    elif isinstance(given, str):
        made = Transform(given, import_named(FLAG, given))
    else:
        made = Transform(transform_name(given), given)
    if not callable(made.function):
        raise InputError(f"{FLAG} {made.name}: must be a function of an image, not a {type(made.function).__name__}")
    if text not in (None, made.name):
        raise InputError(f"{FLAG} {text} would be ignored: {made.name} was passed; drop one of them")
    return made


def transform_name(function: Any) -> str:
    """How config.yaml names a transform that was passed from Python.

    module:function if that finds the same again, else words such as `an object of module.Class (0a1b2c3d)`, with a
    digest of how the object is printed.
    """
    if not hasattr(function, "__qualname__"):
        kind, printed = type(function), re.sub(r" at 0x[0-9a-f]+", "", repr(function))
        digest = hashlib.sha256(printed.encode()).hexdigest()[:8]
        return f"an object of {kind.__module__}.{kind.__qualname__} ({digest})"
    module, name = function.__module__, function.__qualname__
    found = module != "__main__" and getattr(sys.modules.get(module), name, None) is function
    return f"{module}:{name}" if found else f"a function {module}.{name}"
