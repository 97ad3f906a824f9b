"""CPU quota and memory of this machine. Imports no torch."""

import contextlib
import math
import os
import sys
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")


def _cgroup_cpus(cgroup: Path) -> float:
    """CPUs in the cgroup's quota, v2 first, then v1; infinite without a quota."""
    try:
        quota, period = (cgroup / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            quota = (cgroup / "cpu/cpu.cfs_quota_us").read_text().strip()
            period = (cgroup / "cpu/cpu.cfs_period_us").read_text().strip()
        except OSError:
            return math.inf
    return math.inf if quota in ("max", "-1") else int(quota) / int(period)


def cpu_quota(cgroup: Path = CGROUP) -> int:
    """CPUs available to this process: the smaller of its affinity and its cgroup's quota, at least 1."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, int(min(affinity, _cgroup_cpus(cgroup))))


def free_memory_gb(cgroup: Path = CGROUP, meminfo: Path = Path("/proc/meminfo")) -> float:
    """Free memory, GB: the smaller of the machine's and the cgroup's; infinite if unknown.

    Page cache counts as free in both.
    """
    try:
        lines = dict(line.split(":") for line in meminfo.read_text().splitlines())
        free = int(lines["MemAvailable"].split()[0]) * 1024 / 1e9
    except (OSError, ValueError, KeyError):
        free = math.inf
    try:
        limit, used = ((cgroup / name).read_text().strip() for name in ("memory.max", "memory.current"))
        counters = dict(line.split() for line in (cgroup / "memory.stat").read_text().splitlines())
        return min(free, (int(limit) - int(used) + int(counters.get("inactive_file", 0))) / 1e9)
    except (OSError, ValueError):  # no cgroup v2, or no limit in it
        return free


def reset_peak_memory() -> None:
    """Reset the peak; only Linux supports it."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # see proc_pid_clear_refs(5)


def peak_memory_gb(status: Path = Path("/proc/self/status")) -> float:
    """Peak resident memory of this process since the last reset, GB.

    Read from /proc on Linux, elsewhere from `getrusage`, whose peak can include that of the program's launcher.
    """
    with contextlib.suppress(OSError, StopIteration):
        peak = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(peak.split()[1]) / 2**20
    import resource  # not on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**30 if sys.platform == "darwin" else 2**20)


def local_processes() -> int:
    """Number of processes of this run on this machine, from the launcher's environment."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def is_main_process() -> bool:
    """Whether this is rank 0, from the launcher's environment; works before any process group exists."""
    return os.environ.get("RANK", "0") == "0"


def loader_threads() -> int:
    """Decoding threads per process: the CPU quota divided by local processes, 1 to 16."""
    return min(16, max(1, cpu_quota() // local_processes()))
