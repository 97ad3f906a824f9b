"""What this machine offers: CPU quota, cloud provider and instance type. Free of torch."""

import math
import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from urllib.request import ProxyHandler, Request, build_opener

DMI = Path("/sys/class/dmi/id")
CGROUP = Path("/sys/fs/cgroup")
AZURE_CHASSIS = "7783-7084-3265-9085-8269-3286-77"
METADATA_TIMEOUT_S = 1.0  # the services answer from the same host within milliseconds
# Where a virtual machine asks for its type: host, path, and the header that proves the request is meant.
METADATA = {
    "gcp": ("http://metadata.google.internal", "/computeMetadata/v1/instance/machine-type", "Metadata-Flavor: Google"),
    "azure": (
        "http://169.254.169.254",
        "/metadata/instance/compute/vmSize?api-version=2021-02-01&format=text",
        "Metadata: true",
    ),
}


def _cgroup_cpus(cgroup: Path) -> float:
    """CPUs that the cgroup's quota grants, v2 first, then v1; infinite where none is set."""
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
    """CPUs this process may really use: the smaller of its affinity and its cgroup's quota, at least 1."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, int(min(affinity, _cgroup_cpus(cgroup))))


def free_memory_gb(cgroup: Path = CGROUP, meminfo: Path = Path("/proc/meminfo")) -> float:
    """Memory that this process could still get, GB: the smaller of the machine's and the cgroup's; infinite if unknown.

    Page cache counts as free, in both.
    """
    try:
        lines = dict(line.split(":") for line in meminfo.read_text().splitlines())
        free = int(lines["MemAvailable"].split()[0]) * 1024 / 1e9
    except (OSError, ValueError, KeyError):
        free = math.inf
    try:
        limit, used = ((cgroup / name).read_text().strip() for name in ("memory.max", "memory.current"))
        facts = dict(line.split() for line in (cgroup / "memory.stat").read_text().splitlines())
        return min(free, (int(limit) - int(used) + int(facts.get("inactive_file", 0))) / 1e9)
    except (OSError, ValueError):  # no cgroup v2, or no limit in it
        return free


def local_processes() -> int:
    """Processes of this run on this machine, as the launcher says."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def is_main_process() -> bool:
    """Whether this is rank 0; known from the launcher's environment, before any process group exists."""
    return os.environ.get("RANK", "0") == "0"


@dataclass(frozen=True)
class Cloud:
    """Where a run takes place; `instance` is the machine type, empty where neither firmware nor provider tells it."""

    provider: str
    instance: str = ""

    def __str__(self) -> str:
        return f"{self.provider} {self.instance}".strip()


def detect_cloud(dmi: Path = DMI) -> Cloud:
    """The provider that the firmware's DMI strings name, and on AWS the machine type; "none" elsewhere."""

    def read(name: str) -> str:
        try:
            return (dmi / name).read_text().strip()
        except OSError:
            return ""

    if read("sys_vendor") == "Amazon EC2":
        return Cloud("aws", read("product_name"))
    if read("product_name") == "Google Compute Engine":
        return Cloud("gcp")
    if read("chassis_asset_tag") == AZURE_CHASSIS:
        return Cloud("azure")
    return Cloud("none")


def cloud(choice: str, dmi: Path = DMI) -> Cloud:
    """The cloud to record: detected for "auto"; a provider named by the user stands even where DMI is silent.

    Google Cloud and Azure are asked for the machine type, on their own machines only.
    """
    found = detect_cloud(dmi)
    if choice not in ("auto", found.provider):
        return Cloud(choice)
    return found if found.instance else Cloud(found.provider, instance_type(found.provider))


@cache
def instance_type(provider: str) -> str:
    """The machine type as the provider's metadata service says, e.g. "a2-highgpu-8g"; empty where it does not answer.

    $TOOLKIT_METADATA_URL names another service, for tests.
    """
    if provider not in METADATA:
        return ""
    host, path, header = METADATA[provider]
    name, value = header.split(": ")
    request = Request(os.environ.get("TOOLKIT_METADATA_URL", host) + path, headers={name: value})
    try:
        with build_opener(ProxyHandler({})).open(request, timeout=METADATA_TIMEOUT_S) as answer:  # never by a proxy
            return answer.read(200).decode().strip().rsplit("/", 1)[-1]
    except (OSError, ValueError):
        return ""


def loader_threads() -> int:
    """Decoding threads for each process: the CPU quota shared by the local processes, at most 16."""
    return min(16, max(1, cpu_quota() // local_processes()))
