"""The start of several processes: all report to rank 0 through a store, so that one that does not come is named.

Each start has keys of its own in the store. Those of torch are the same for every start, and the store of torchrun
outlives a restart (--max-restarts): a process would read where its peers of the start before could be reached.
"""

import json
import logging
import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import NoReturn

from torch.distributed import PrefixStore, Store, TCPStore

from toolkit.system.errors import InputError, PeerError, first_line
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


class _Patience:
    """How long the roll call may still take: `timeout_s` since it began, or since rank 0 was last heard.

    Ends the process some time later if it is still going on: a call of a store that was stopped never returns.
    """

    def __init__(self, timeout_s: float, silent: PeerError) -> None:
        self.timeout_s, self._silent = timeout_s, silent
        self.renew()
        self._over = threading.Event()
        threading.Thread(target=self._guard, daemon=True, name="roll call").start()

    def renew(self) -> None:
        self.ends = time.monotonic() + self.timeout_s

    @property
    def left_s(self) -> float:
        return self.ends - time.monotonic()

    def _guard(self) -> None:
        while not self._over.wait(max(POLL_S, self.left_s + FROZEN_S)):
            if self.left_s < -FROZEN_S:
                report_once(self._silent)
                os._exit(FAILED)

    def over(self) -> None:
        self._over.set()


def call_roll(rank: int, count: int, timeout_s: float) -> Group:
    """Wait until all processes are there; raises PeerError, naming those that are not after `timeout_s`."""
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    silent = PeerError(
        f"no answer from rank 0 at {address}:{port} for {timeout_s:g} s: network or machine, or not started "
        "(--peer-timeout-s waits longer)"
    )
    patience = _Patience(timeout_s, silent)
    try:
        served = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"  # by torchrun's agent, else by rank 0
        if rank or served:
            _reach(address, port, patience)
        store = _open_store(address, port, count, timeout_s, serve=not (rank or served))
        found = _answer(store, rank, count, patience) if rank else _lead(store, count, patience)
    except (InputError, PeerError):
        raise
    except (OSError, RuntimeError) as error:  # RuntimeError: of the store
        silent.args = (f"{silent} (here: {first_line(error)})",)
        raise silent from None
    finally:
        patience.over()
    if found is None:
        raise silent
    return found


def _reach(address: str, port: int, patience: _Patience) -> None:
    """Wait until somebody listens there; raises OSError if nobody does for too long."""
    while True:
        try:
            socket.create_connection((address, port), max(POLL_S, patience.left_s)).close()
            return
        except OSError:
            if patience.left_s < 0:
                raise
        time.sleep(POLL_S)


def _open_store(address: str, port: int, count: int, timeout_s: float, serve: bool) -> TCPStore:
    """The store of the run; raises InputError if this process is to serve it and cannot."""
    try:
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
    except RuntimeError as error:
        if not serve:
            raise
        raise InputError(f"port {port} (MASTER_PORT) of rank 0 cannot be used: {first_line(error)}") from None


def _lead(store: TCPStore, count: int, patience: _Patience) -> Group:
    """On rank 0: begin a start, wait for the answer of each rank, and tell all of them who takes part."""
    own = uuid.uuid4().hex
    start = PrefixStore(f"toolkit/{own}", store)
    for key in (VERDICT, FIRST):
        start.set(key, "")
    start.set(sign_key(0), "0")
    store.set(START, own)
    keys = [f"here/{rank}" for rank in range(1, count)]
    noticed, signs = False, 0
    while not start.check(keys):
        if patience.left_s < 0:
            _give_up(start, keys, patience.timeout_s)
        if not noticed and patience.left_s < patience.timeout_s - NOTICE_S:
            noticed = True
            names = _named(_missing(start, keys))
            log.warning("waiting   for %s to start, for another %.0f s at most", names, patience.left_s)
        time.sleep(POLL_S)
        signs += 1
        start.set(sign_key(0), str(signs))
    answers = start.multi_get(keys) if keys else []
    members = [(own, socket.gethostname()), *map(json.loads, answers)]
    start.set(MEMBERS, json.dumps(members))
    return Group(start, 0, tuple(host for _, host in members))


def _missing(start: Store, keys: Sequence[str]) -> list[int]:
    return [rank for rank, key in enumerate(keys, 1) if not start.check([key])]


def _named(ranks: Sequence[int]) -> str:
    return f"rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))}"


def _give_up(start: Store, keys: Sequence[str], timeout_s: float) -> NoReturn:
    """Raise the PeerError that names the missing ranks, once the others can have read it."""
    missing = _missing(start, keys)
    answers = [json.loads(start.get(key)) for rank, key in enumerate(keys, 1) if rank not in missing]
    present = sorted({socket.gethostname(), *(host for _, host in answers)})
    error = PeerError(
        f"no answer from {_named(missing)} for {timeout_s:g} s: network or machine, or not started (present: "
        f"{', '.join(present)}; --peer-timeout-s waits longer)"
    )
    start.set(VERDICT, str(error))
    time.sleep(LINGER_S)
    raise error


def _answer(store: TCPStore, rank: int, count: int, patience: _Patience) -> Group | None:
    """On another rank: answer each start that rank 0 begins, until one has this very answer among its members.

    The first that it sees may be of the past. None if rank 0 is not heard for too long; it waits for the others.
    """
    own, begun, heard = uuid.uuid4().hex, "", b""
    start: Store = store
    while patience.left_s > 0:
        time.sleep(max(POLL_S, count / RANKS_PER_S))
        if not store.check([START]):
            continue
        if (now := store.get(START).decode()) != begun:
            start, begun = PrefixStore(f"toolkit/{now}", store), now
            past, heard = start.get(VERDICT), start.get(sign_key(0))
            start.set(sign_key(rank), "0")
            start.set(f"here/{rank}", json.dumps((own, socket.gethostname())))
        if start.check([MEMBERS]):
            members = json.loads(start.get(MEMBERS))
            if len(members) == count and members[rank][0] == own:
                return Group(start, rank, tuple(host for _, host in members))
        elif (verdict := start.get(VERDICT)) != past:
            raise PeerError(verdict.decode())
        elif (sign := start.get(sign_key(0))) != heard:
            heard = sign
            patience.renew()
    return None
