"""Exchange of objects and of many small tensors between the processes of a run, on every kind of device."""

import pickle
from collections.abc import Iterable, Iterator, Mapping
from typing import TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast, broadcast_object_list, gather_object
from torch import Tensor

from toolkit.models import xla

CHUNK_BYTES = 256 * 2**20  # that are sent at a time

T = TypeVar("T")


def gather_objects(own: T) -> list[T]:
    """The picklable objects of all processes, by rank; every process must call it."""
    if PartialState().num_processes == 1:
        return [own]
    return _over_xla(own) if xla.on_xla() else gather_object([own])


def from_main(own: T) -> T:
    """The picklable object of the main process, on all processes; every process must call it."""
    if PartialState().num_processes == 1:
        return own
    return _over_xla(own)[0] if xla.on_xla() else broadcast_object_list([own])[0]


@torch.no_grad()
def overwrite_from_main(tensors: Iterable[Tensor]) -> None:
    """Overwrite tensors with those of the main process, in one message for each type; every process must call it."""
    if PartialState().num_processes == 1:
        return
    by_type: dict[torch.dtype, list[Tensor]] = {}
    for tensor in tensors:
        by_type.setdefault(tensor.dtype, []).append(tensor)
    for alike in by_type.values():
        whole = broadcast(torch.cat([tensor.reshape(-1) for tensor in alike]), from_process=0)
        for tensor, part in zip(alike, whole.split([tensor.numel() for tensor in alike]), strict=True):
            tensor.copy_(part.view(tensor.shape))


def tensors_from_main(own: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """The main process's tensors in host memory, by way of `device`; every process must call it.

    Elsewhere `own` tells their names, shapes and types only.
    """
    state = PartialState()
    found = dict(own)
    if state.num_processes == 1:
        return found
    for names in _chunks(own):
        if state.is_main_process:
            sent = {name: own[name].to(device) for name in names}
        else:
            sent = {name: torch.empty_like(own[name], device=device) for name in names}
        overwrite_from_main(sent.values())
        if not state.is_main_process:  # which has them, and no memory to spare for a copy
            found |= {name: tensor.cpu() for name, tensor in sent.items()}
    return found


def _chunks(tensors: Mapping[str, Tensor]) -> Iterator[list[str]]:
    """Names of tensors that together have CHUNK_BYTES, or one that has more."""
    names: list[str] = []
    size = 0
    for name, tensor in tensors.items():
        if names and size + tensor.nbytes > CHUNK_BYTES:
            yield names
            names, size = [], 0
        names.append(name)
        size += tensor.nbytes
    if names:
        yield names


def _over_xla(own: T) -> list[T]:
    """The same as `gather_objects` on TPUs, for which Accelerate exchanges tensors only."""
    return [pickle.loads(other) for other in xla.model().rendezvous("toolkit", pickle.dumps(own))]
