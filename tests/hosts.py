"""Hosts on one machine: network namespaces joined by a bridge, each with a name, an address and links that can be cut.

Only root may make them, on Linux with iproute2: `CAN` says whether this machine can.
"""

import contextlib
import itertools
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

NOBODY = "02:00:00:00:00:99"  # an address of no card: what is sent there is lost without a word
SETTINGS = Path("/etc/netns")  # `ip netns exec` puts the files of /etc/netns/NAME/ over those of /etc


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


def _can() -> bool:
    if not hasattr(os, "geteuid") or os.geteuid() or shutil.which("ip") is None or shutil.which("unshare") is None:
        return False
    name = f"toolkit-try-{os.getpid()}"
    try:
        ip("netns", "add", name)
        ip("netns", "exec", name, "ip", "link", "set", "lo", "up")
        ip("netns", "del", name)
    except (OSError, subprocess.CalledProcessError):
        return False
    return True


CAN = _can()


class Hosts:
    """Hosts by their names, such as `a`: "host a" is called `hosta`, its address ends with its place, from 1 on."""

    made = itertools.count()

    def __init__(self, names: Sequence[str]) -> None:
        self.names, self._mark = names, f"{os.getpid()}-{next(Hosts.made)}"
        self._switch = f"tk{self._mark}-switch"
        self._started: list[subprocess.Popen[bytes]] = []

    def space(self, name: str) -> str:
        return f"tk{self._mark}-{name}"

    def address(self, name: str) -> str:
        return f"10.66.77.{self.names.index(name) + 1}"

    def up(self) -> None:
        ip("netns", "add", self._switch)
        ip("-n", self._switch, "link", "add", "br0", "type", "bridge")
        ip("-n", self._switch, "link", "set", "br0", "up")
        known = "".join(f"{self.address(name)} host{name}\n" for name in self.names)
        for name in self.names:
            space = self.space(name)
            ip("netns", "add", space)
            (SETTINGS / space).mkdir(parents=True, exist_ok=True)
            (SETTINGS / space / "hosts").write_text(f"127.0.0.1 localhost\n{known}")
            pair = ["eth0", "netns", space, "type", "veth", "peer", "name", f"to-{name}", "netns", self._switch]
            ip("link", "add", *pair)
            ip("-n", self._switch, "link", "set", f"to-{name}", "master", "br0", "up")
            ip("-n", space, "addr", "add", f"{self.address(name)}/24", "dev", "eth0")
            for link in ("lo", "eth0"):
                ip("-n", space, "link", "set", link, "up")

    def down(self) -> None:
        self.clear()
        for space in (*map(self.space, self.names), self._switch):
            with contextlib.suppress(subprocess.CalledProcessError):
                ip("netns", "del", space)
            shutil.rmtree(SETTINGS / space, ignore_errors=True)

    def cut(self, source: str, target: str) -> None:
        """Lose all that one host sends to another, as a broken cable does: nobody is told."""
        ip("-n", self.space(source), "neigh", "replace", self.address(target), "lladdr", NOBODY, "dev", "eth0",
           "nud", "permanent")  # fmt: skip

    def mend(self) -> None:
        for name in self.names:
            with contextlib.suppress(subprocess.CalledProcessError):  # not up, or nothing was cut
                ip("-n", self.space(name), "neigh", "flush", "dev", "eth0", "nud", "permanent")

    def kill(self, name: str) -> None:
        """End all processes of a host at once."""
        found = subprocess.run(["ip", "netns", "pids", self.space(name)], capture_output=True, text=True, check=False)
        for pid in found.stdout.split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)

    def clear(self) -> None:
        """End all that was started, and mend all links."""
        for name in self.names:
            self.kill(name)
        for process in self._started:
            process.kill()
            process.wait()
        self._started = []
        self.mend()

    def start(
        self, name: str, command: Sequence[str], env: Mapping[str, str], out: IO[Any], disk: Path | None = None
    ) -> subprocess.Popen[bytes]:
        """A process on a host. `disk`: a folder in whose place the host has an empty one of its own."""
        own = f"mount -t tmpfs own {disk} && " if disk else ""
        shell = ["unshare", "--uts", "--mount", "sh", "-c", f'hostname "$0" && {own}exec "$@"', f"host{name}"]
        words = ["ip", "netns", "exec", self.space(name), *shell, *command]
        self._started.append(subprocess.Popen(words, env={**os.environ, **env}, stdout=out, stderr=subprocess.STDOUT))
        return self._started[-1]


@contextlib.contextmanager
def hosts(*names: str) -> Iterator[Hosts]:
    made = Hosts(names)
    try:
        made.up()
        yield made
    finally:
        made.down()
