"""The start of several processes: all report to rank 0 through a store, so that one that does not come is named.

Each start has keys of its own in the store. Those of torch are the same for every start, and the store of torchrun
outlives a restart (--max-restarts): a process would read where its peers of the start before could be reached.
"""

import contextlib
import json
import logging
import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta

from torch.distributed import PrefixStore, Store, TCPStore

from toolkit.system.errors import PeerError, first_line
from toolkit.system.exit_codes import FAILED, report_once

log = logging.getLogger(__name__)

START, MEMBERS, VERDICT, FIRST = "toolkit/start", "members", "verdict", "first"
POLL_S = 0.1
RANKS_PER_S = 4000  # of thousands of ranks each asks less often
NOTICE_S = 15.0  # after so long a line says who is waited for
LINGER_S = 2.0  # how long rank 0, which may serve the store, stays after it gave up, so that the others read why
FROZEN_S = 5.0  # beyond the timeout: then the store itself does not answer


@dataclass(frozen=True)
class Group:
    """The processes that found each other: the store of this start, this rank, the host of every rank."""

    store: Store
    rank: int
    hosts: tuple[str, ...]

    def named(self, ranks: Sequence[int]) -> str:
        """`rank 1 on host b`; `ranks 1, 2 on host b and 3 on host c`."""
        by_host: dict[str, list[str]] = {}
        for rank in ranks:
            by_host.setdefault(self.hosts[rank], []).append(str(rank))
        parts = [f"{', '.join(numbers)} on host {host}" for host, numbers in by_host.items()]
        return ("rank " if len(ranks) == 1 else "ranks ") + " and ".join(parts)


def sign_key(rank: int) -> str:
    """The key of a rank's life sign."""
    return f"alive/{rank}"


def call_roll(rank: int, count: int, timeout_s: float) -> Group:
    """Wait until all processes are there; raises PeerError, naming those that are not after `timeout_s`."""
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    silent = PeerError(
        f"no answer from rank 0 at {address}:{port} for {timeout_s:g} s: network or machine, or not started "
        "(--peer-timeout-s waits longer)"
    )
    deadline = time.monotonic() + timeout_s
    with _ending(silent, timeout_s + FROZEN_S):
        try:
            served = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
            if rank or served:
                _reach(address, port, deadline)
            store = _open_store(address, port, count, timeout_s, serve=not (rank or served))
            if rank == 0:
                return _lead(store, count, deadline, timeout_s)
            found = _answer(store, rank, count, deadline)
        except PeerError:
            raise
        except (OSError, RuntimeError) as error:  # RuntimeError: of the store
            silent.args = (f"{silent} (here: {first_line(error)})",)
            raise silent from None
    if found is None:
        raise silent
    return found


def _reach(address: str, port: int, deadline: float) -> None:
    """Wait until somebody listens there; raises OSError after `deadline`."""
    while True:
        try:
            socket.create_connection((address, port), max(POLL_S, deadline - time.monotonic())).close()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
        time.sleep(POLL_S)


def _open_store(address: str, port: int, count: int, timeout_s: float, serve: bool) -> TCPStore:
    """The store of the run, which torchrun's agent serves, or rank 0."""
    return TCPStore(
        address,
        port,
        count,
        is_master=serve,
        timeout=timedelta(seconds=timeout_s),
        wait_for_workers=False,
        multi_tenant=True,
        use_libuv=os.environ.get("USE_LIBUV", "0" if sys.platform == "win32" else "1") == "1",
    )


def _lead(store: TCPStore, count: int, deadline: float, timeout_s: float) -> Group:
    """On rank 0: begin a start, wait for the answer of each rank, and tell all of them who takes part."""
    own = uuid.uuid4().hex
    start = PrefixStore(f"toolkit/{own}", store)
    for key, value in ((VERDICT, ""), (FIRST, ""), (sign_key(0), "0")):
        start.set(key, value)
    store.set(START, own)
    keys = [f"here/{rank}" for rank in range(1, count)]
    notice = time.monotonic() + NOTICE_S
    while not start.check(keys):
        now = time.monotonic()
        if now > min(deadline, notice):
            there = [start.check([key]) for key in keys]
            missing = [rank for rank, here in enumerate(there, 1) if not here]
            names = f"rank{'s' if len(missing) > 1 else ''} {', '.join(map(str, missing))}"
            if now > deadline:
                hosts = {json.loads(start.get(key))[1] for key, here in zip(keys, there, strict=True) if here}
                error = PeerError(
                    f"no answer from {names} for {timeout_s:g} s: network or machine, or not started (present: "
                    f"{', '.join(sorted({socket.gethostname(), *hosts}))}; --peer-timeout-s waits longer)"
                )
                start.set(VERDICT, str(error))
                time.sleep(LINGER_S)
                raise error
            log.warning("waiting   for %s to start, for another %.0f s at most", names, deadline - now)
            notice = deadline
        time.sleep(POLL_S)
    answers = start.multi_get(keys) if keys else []
    members = [(own, socket.gethostname()), *map(json.loads, answers)]
    start.set(MEMBERS, json.dumps(members))
    return Group(start, 0, tuple(host for _, host in members))


def _answer(store: TCPStore, rank: int, count: int, deadline: float) -> Group | None:
    """On another rank: answer each start that rank 0 begins, until one has this very answer among its members.

    The first that it sees may be of the past.
    """
    own, begun = uuid.uuid4().hex, ""
    start: Store = store
    while time.monotonic() < deadline:
        time.sleep(max(POLL_S, count / RANKS_PER_S))
        if not store.check([START]):
            continue
        if (now := store.get(START).decode()) != begun:
            start, begun = PrefixStore(f"toolkit/{now}", store), now
            past = start.get(VERDICT)
            start.set(sign_key(rank), "0")
            start.set(f"here/{rank}", json.dumps((own, socket.gethostname())))
        if start.check([MEMBERS]):
            members = json.loads(start.get(MEMBERS))
            if len(members) == count and members[rank][0] == own:
                return Group(start, rank, tuple(host for _, host in members))
        elif (verdict := start.get(VERDICT)) != past:
            raise PeerError(verdict.decode())
    return None


@contextlib.contextmanager
def _ending(error: PeerError, seconds: float) -> Iterator[None]:
    """End the process if what is within takes longer: a call of a store that was stopped never ends."""

    def end() -> None:
        report_once(error)
        os._exit(FAILED)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
