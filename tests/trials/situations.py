"""Runs recipes, or a few lines of Python, one after the other in one process, each in its own situation.

Told and tells in JSON. Started with LD_PRELOAD of shim.c, which reads its variables at each call; importing torch once
for all of them saves seconds each.
"""

import contextlib
import io
import json
import os
import resource
import subprocess
import sys
import time
import traceback
from typing import Any

from tests.conftest import recipe


def begin(situation: dict[str, Any]) -> int:
    """Run the recipe or the lines of a situation, with few files left to open where it says so; its exit code."""
    if "files" in situation:
        opened = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
        resource.setrlimit(
            resource.RLIMIT_NOFILE, (opened + situation["files"], resource.getrlimit(resource.RLIMIT_NOFILE)[1])
        )
    if "lines" in situation:
        exec(situation["lines"], {})
        return 0
    return recipe(situation["recipe"])(situation["words"])


def tell(situation: dict[str, Any]) -> dict[str, Any]:
    """Exit code, None after a traceback, what was printed, and the seconds it took."""
    out, err, code = io.StringIO(), io.StringIO(), None
    for words in situation.get("mounts", ()):
        subprocess.run(["mount", *words], check=True, capture_output=True)
    environment = situation.get("environment", {})
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    os.environ.update(environment)
    began = time.monotonic()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = begin(situation)
        except BaseException:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
            traceback.print_exc()
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    for name in environment:
        del os.environ[name]
    return {"code": code, "out": out.getvalue(), "err": err.getvalue(), "seconds": time.monotonic() - began}


if __name__ == "__main__":
    answer = os.dup(1)
    told = {name: tell(situation) for name, situation in json.load(sys.stdin).items()}
    os.write(answer, json.dumps(told).encode())
