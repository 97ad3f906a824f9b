"""The other processes of a run: how they are found, watched, and named when they fail. One group per process.

`process_group` gives Accelerate the arguments of the group; `watch` and `unwatch` enclose the time in which the others
are needed.
"""

import contextlib
import os
from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import cache
from urllib.parse import parse_qs, urlparse

from accelerate.utils import InitProcessGroupKwargs
from torch.distributed import PrefixStore, Store
from torch.distributed.rendezvous import register_rendezvous_handler

from toolkit.training.life_signs import LifeSigns, longest_collective_s
from toolkit.training.roll_call import Group, call_roll

SCHEME = "toolkit"

_group: Group | None = None
_signs: LifeSigns | None = None
_told: dict[str, str] = {}


def process_group(timeout_s: float) -> list[InitProcessGroupKwargs]:
    """For Accelerate, how the processes find each other; empty if it can only be one."""
    if "MASTER_ADDR" not in os.environ:
        return []
    _register()
    longest = timedelta(seconds=longest_collective_s(timeout_s))
    return [InitProcessGroupKwargs(init_method=f"{SCHEME}://?timeout_s={timeout_s}", timeout=longest)]


@cache
def _register() -> None:
    register_rendezvous_handler(SCHEME, _meet)


def _meet(url: str, **_: object) -> Iterator[tuple[Store, int, int]]:
    """The rendezvous of torch for `init_method`: the store of this start, rank and number of processes."""
    global _group, _told
    query = {name: values[0] for name, values in parse_qs(urlparse(url).query).items()}
    rank, count = (int(query.get(name.lower(), os.environ.get(name, "0"))) for name in ("RANK", "WORLD_SIZE"))
    timeout_s = float(query["timeout_s"])
    _group, _told = call_roll(rank, count, timeout_s), {}
    watch(timeout_s)
    yield PrefixStore("torch", _group.store), rank, count


def watch(timeout_s: float) -> None:
    """Watch the other processes, if there are any, until `unwatch`."""
    global _signs
    if _group is not None and len(_group.hosts) > 1 and _signs is None:
        _signs = LifeSigns(_group, timeout_s, _told)
        _signs.start()


def unwatch() -> None:
    """Tell the others that this process no longer needs them, nor they it."""
    global _signs, _told
    if _signs is not None:
        _signs.stop()
        _told, _signs = _signs.told, None


@contextlib.contextmanager
def naming() -> Iterator[None]:
    """Where a connection to another process breaks within, raise PeerError that names the process."""
    try:
        yield
    except Exception as error:
        cause = None if _signs is None else _signs.explain(error)
        if cause is None:
            raise
        raise cause from None


@contextlib.contextmanager
def last_words(work: Callable[[Exception], None]) -> Iterator[None]:
    """If this process ends within because another is gone, call `work` with the error before."""
    if _signs is not None:
        _signs.last_words = work
    yield
    if _signs is not None:
        _signs.last_words = lambda cause: None
