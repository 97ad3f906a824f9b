"""Exchange of objects and of many small tensors between the processes of a run, on every kind of device."""

import pickle
from collections.abc import Iterable
from typing import TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import DistributedType, broadcast, broadcast_object_list, gather_object
from torch import Tensor

T = TypeVar("T")


def gather_objects(own: T) -> list[T]:
    """The picklable objects of all processes, by rank; every process must call it."""
    state = PartialState()
    if state.num_processes == 1:
        return [own]
    return _over_xla(own) if state.distributed_type == DistributedType.XLA else gather_object([own])


def from_main(own: T) -> T:
    """The picklable object of the main process, on all processes; every process must call it."""
    state = PartialState()
    if state.num_processes == 1:
        return own
    return _over_xla(own)[0] if state.distributed_type == DistributedType.XLA else broadcast_object_list([own])[0]


def end_step() -> None:
    """On TPUs, carry out what was requested since the last call, as one graph; does nothing elsewhere."""
    if PartialState().distributed_type == DistributedType.XLA:
        import torch_xla

        torch_xla.sync()


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


def _over_xla(own: T) -> list[T]:
    """The same as `gather_objects` on TPUs, for which Accelerate exchanges tensors only."""
    import torch_xla.core.xla_model as xm  # installed only where there is a TPU

    return [pickle.loads(other) for other in xm.rendezvous("toolkit", pickle.dumps(own))]
