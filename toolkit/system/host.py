"""CPU quota and memory of this machine. Imports no torch."""

import contextlib
import ctypes
import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")
RANKS = ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK")  # the order of accelerate.PartialState
SPINNING = {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"}  # how long a waiting thread of GNU OpenMP spins


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


class _MallInfo(ctypes.Structure):
    """glibc's struct mallinfo2: ten counts of bytes or blocks."""

    _fields_ = (("others", ctypes.c_size_t * 8), ("fordblks", ctypes.c_size_t), ("keepcost", ctypes.c_size_t))


def bytes_left(heap: bool) -> float:
    """What this process can allocate within its own limit (RLIMIT_DATA). `heap`: with what its heap has free.

    Infinite without a limit, or where it is unknown.
    """
    try:
        import resource  # not on Windows

        limit = resource.getrlimit(resource.RLIMIT_DATA)[0]
        if limit == resource.RLIM_INFINITY:
            return math.inf
        pages = int(Path("/proc/self/statm").read_text().split()[5])  # data and stack
        return limit - pages * resource.getpagesize() + (_free_in_heap() if heap else 0)
    except (ImportError, OSError, IndexError):
        return math.inf


def _free_in_heap() -> int:
    """Bytes that malloc has from the kernel and not given out; 0 where it cannot tell (glibc before 2.33)."""
    ask = getattr(ctypes.CDLL(None), "mallinfo2", None)
    if ask is None:
        return 0
    ask.restype = _MallInfo
    return ask().fordblks


@contextlib.contextmanager
def within_free_memory(kept_gb: float = 0.0) -> Iterator[None]:
    """Make an allocation beyond this process's share of free memory, less `kept_gb`, fail; only Linux supports it.

    Otherwise the kernel grants it, and kills the process without a word once the memory is used.
    """
    try:
        import resource  # not on Windows

        status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        meminfo = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        used, swap = (1024 * int(text.split()[0]) for text in (status["VmData"], meminfo["SwapFree"]))
        before = resource.getrlimit(resource.RLIMIT_DATA)
        limit = used + swap + int(1e9 * (free_memory_gb() / local_processes() - kept_gb))
        if before[0] != resource.RLIM_INFINITY:
            limit = min(limit, before[0])
        resource.setrlimit(resource.RLIMIT_DATA, (limit, before[1]))
    except (ImportError, OSError, KeyError, OverflowError, ValueError):  # ValueError: a sandbox forbids it
        yield
        return
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


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


def leave_idle_cores() -> None:
    """Make torch's threads sleep while they wait, unless the user chose otherwise; call it before torch is imported.

    By default GNU OpenMP's threads spin, and while another process needs their cores, training slows down many times.
    """
    if not SPINNING & {*os.environ}:
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"


def local_processes() -> int:
    """Number of processes of this run on this machine, from the launcher's environment."""
    count = os.environ.get("LOCAL_WORLD_SIZE", "")
    return max(1, int(count)) if count.isdecimal() else 1


def processes() -> int:
    """Number of processes of this run on all machines, from the launcher's environment."""
    count = os.environ.get("WORLD_SIZE", "")
    return max(1, int(count)) if count.isdecimal() else 1


def is_main_process(alone: bool = False) -> bool:
    """Whether this is rank 0, from the launcher's environment; works before any process group exists.

    `alone`: the tasks of an MPI launcher are runs of their own (`--alone`).
    """
    names = RANKS[:1] if alone else RANKS
    return next((os.environ[name] for name in names if name in os.environ), "0") == "0"


def loader_threads() -> int:
    """Decoding threads per process: the CPU quota divided by local processes, 1 to 16."""
    return min(16, max(1, cpu_quota() // local_processes()))
