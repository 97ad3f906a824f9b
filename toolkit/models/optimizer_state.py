"""Convert an optimizer's state to named tensors and JSON, and back."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def on_cpu(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies in host memory, which training no longer changes."""
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}


def split_optimizer(state: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Split an optimizer's state_dict into copied, named tensors and JSON with the names in place of the tensors.

    Raises TypeError for a value that is neither a tensor nor plain data.
    """
    tensors: dict[str, Tensor] = {}
    rest = _plain(dict(state), "", tensors)
    return on_cpu(tensors), rest


def join_optimizer(tensors: Mapping[str, Tensor], rest: Mapping[str, Any]) -> dict[str, Any]:
    return _whole(rest, tensors)


def _plain(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    """`value` as JSON, where an object of one key names a type that JSON lacks; its tensors go into `tensors`."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Tensor) and path not in tensors:
        tensors[path] = value
        return {"tensor": path}
    if isinstance(value, torch.dtype):
        return {"dtype": str(value).removeprefix("torch.")}
    below = f"{path}." if path else ""
    if isinstance(value, list | tuple):
        items = [_plain(item, f"{below}{i}", tensors) for i, item in enumerate(value)]
        return items if isinstance(value, list) else {"tuple": items}
    if isinstance(value, dict) and all(isinstance(key, str | int) for key in value):  # JSON allows only string keys
        return {"dict": [[key, _plain(item, f"{below}{key}", tensors)] for key, item in value.items()]}
    raise TypeError(f"{path} is a {type(value).__name__}")


def _whole(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The inverse of `_plain`."""
    if isinstance(value, list):
        return [_whole(item, tensors) for item in value]
    match value:
        case {"tensor": path}:
            return tensors[path]
        case {"dtype": name}:
            return getattr(torch, name)
        case {"tuple": items}:
            return tuple(_whole(items, tensors))
        case {"dict": items}:
            return {key: _whole(item, tensors) for key, item in items}
    return value
