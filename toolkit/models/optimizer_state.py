"""An optimizer's state as named tensors and JSON, and back."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def on_cpu(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies in host memory, which training does not touch any more."""
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}


def split_optimizer(state: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """An optimizer's state_dict as named tensors, copied, and the JSON that is left, with their names in their places.

    Raises TypeError on what is neither a tensor nor plain data.
    """
    tensors: dict[str, Tensor] = {}
    rest = _plain(dict(state), "", tensors)
    return on_cpu(tensors), rest


def join_optimizer(tensors: Mapping[str, Tensor], rest: Mapping[str, Any]) -> dict[str, Any]:
    return _whole(rest, tensors)


def _plain(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    """`value` as JSON, where an object is a word for one thing that JSON lacks; its tensors go into `tensors`."""
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
    if isinstance(value, dict) and all(isinstance(key, str | int) for key in value):  # JSON's own keys are all strings
        return {"dict": [[key, _plain(item, f"{below}{key}", tensors)] for key, item in value.items()]}
    raise TypeError(f"{path} is a {type(value).__name__}")


def _whole(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """What `_plain` was given."""
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
