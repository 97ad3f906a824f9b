"""Cloud providers: the provider and type of this machine, and preemption notices. Imports no torch."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple
from urllib.request import ProxyHandler, Request, build_opener

DMI = Path("/sys/class/dmi/id")
AZURE_CHASSIS = "7783-7084-3265-9085-8269-3286-77"
METADATA_TIMEOUT_S = 1.0  # the services answer from the same host within milliseconds
# Metadata services, and in TYPES the path of the machine type with the header that the service requires.
HOSTS = {
    "aws": "http://169.254.169.254",
    "gcp": "http://metadata.google.internal",
    "azure": "http://169.254.169.254",
}
TYPES = {
    "gcp": ("/computeMetadata/v1/instance/machine-type", {"Metadata-Flavor": "Google"}),
    "azure": ("/metadata/instance/compute/vmSize?api-version=2021-02-01&format=text", {"Metadata": "true"}),
}
AWS_TOKEN_S = 21600  # the longest lifetime of a token


class Notice(NamedTuple):
    """A provider's preemption notice: path and headers, polling interval in s, and what a positive answer contains."""

    path: str
    headers: Mapping[str, str]
    every_s: float
    holds: str


NOTICES = {  # they come two minutes ahead on AWS, half a minute on the others
    "aws": Notice("/latest/meta-data/spot/instance-action", {}, 5.0, '"action"'),
    "gcp": Notice("/computeMetadata/v1/instance/preempted", {"Metadata-Flavor": "Google"}, 1.0, "TRUE"),
    "azure": Notice("/metadata/scheduledevents?api-version=2020-07-01", {"Metadata": "true"}, 1.0, "Preempt"),
}


@dataclass(frozen=True)
class Cloud:
    """Where a run takes place; `instance`: the machine type, empty if neither firmware nor provider reports it."""

    provider: str
    instance: str = ""

    def __str__(self) -> str:
        return f"{self.provider} {self.instance}".strip()


def detect_cloud(dmi: Path = DMI) -> Cloud:
    """The provider named by the firmware's DMI strings, on AWS with the machine type; "none" elsewhere."""

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
    """The cloud to record: detected for "auto"; a provider given by the user is kept even if DMI names none.

    On machines of Google Cloud and Azure, requests the machine type from the metadata service.
    """
    found = detect_cloud(dmi)
    if choice not in ("auto", found.provider):
        return Cloud(choice)
    return found if found.instance else Cloud(found.provider, instance_type(found.provider))


@cache
def instance_type(provider: str) -> str:
    """The machine type from the provider's metadata service, e.g. "a2-highgpu-8g"; empty without an answer."""
    if provider not in TYPES:
        return ""
    return _ask(provider, *TYPES[provider]).strip().rsplit("/", 1)[-1]


def is_preempted(provider: str) -> bool:
    """Whether the provider's metadata service announces the preemption of this machine."""
    notice = NOTICES[provider]
    headers = {**notice.headers, **({"X-aws-ec2-metadata-token": _aws_token()} if provider == "aws" else {})}
    answer = _ask(provider, notice.path, headers)
    return notice.holds in answer and (provider != "azure" or _is_meant(answer))


def _is_meant(answer: str) -> bool:
    """Whether Azure's notice names this machine: it lists all machines of a scale set."""
    try:
        taken = {
            name
            for event in json.loads(answer)["Events"]
            if event["EventType"] == "Preempt"
            for name in event["Resources"]
        }
    except (ValueError, KeyError, TypeError):  # malformed document
        return False
    own = _ask("azure", "/metadata/instance/compute/name?api-version=2021-02-01&format=text", {"Metadata": "true"})
    return own.strip() in taken


def _aws_token() -> str:
    return _ask("aws", "/latest/api/token", {"X-aws-ec2-metadata-token-ttl-seconds": str(AWS_TOKEN_S)}, "PUT")


def _ask(provider: str, path: str, headers: Mapping[str, str], method: str = "GET") -> str:
    """The metadata service's answer; empty if there is none. $TOOLKIT_METADATA_URL sets another service."""
    url = os.environ.get("TOOLKIT_METADATA_URL", HOSTS[provider]) + path
    try:
        request = Request(url, headers=dict(headers), method=method)
        with build_opener(ProxyHandler({})).open(request, timeout=METADATA_TIMEOUT_S) as answer:  # without a proxy
            return answer.read(1_000_000).decode(errors="replace")
    except (OSError, ValueError):
        return ""
