"""Measure training speed and memory of a model on this machine, and find the bottleneck. Keeps no trained weights.

Measures each scale alone and all of them in one step, in every precision that the device supports, and the loader alone
on the data. One line per case names the bottleneck and the training flag to change.

Example: toolkit benchmark --arch resnet50 --scales 64,112,224 --batch-sizes 64,256
"""

import sys
import time
from collections.abc import Sequence
from pathlib import Path

from toolkit.config.cli import parse_section
from toolkit.config.data_roots import BUILT_IN
from toolkit.config.scales import default_scales
from toolkit.config.settings import make_settings
from toolkit.config.tool_settings import Benchmark
from toolkit.system import console
from toolkit.system.exit_codes import exit_code
from toolkit.system.host import is_main_process

PASSES = ("arch", "data_root", "num_workers", "cache", "compile", "alone")  # passed unchanged to the training settings


def benchmark_from(argv: Sequence[str] | None) -> None:
    flags = parse_section(argv, "toolkit benchmark", __doc__, Benchmark)

    from toolkit.system import files  # heavy imports come after parsing

    path = flags.output or Path(f"benchmark-{time.strftime('%Y%m%d-%H%M%S')}.json")
    files.check_output(path)
    values = {name: getattr(flags, name) for name in PASSES}
    if flags.data_root in BUILT_IN:  # few images, so that drawing them takes no time
        values["synthetic_count"] = max(200, 2 * max(flags.batch_sizes))
    settings = make_settings({**values, "batch_size": max(flags.batch_sizes), "log_with": "none"})

    from toolkit.strategies import Simultaneous, SingleScale
    from toolkit.tools.benchmark import benchmark

    scales = flags.scales or default_scales(flags.data_root)
    strategy = Simultaneous(scales) if len(scales) > 1 else SingleScale(scales[0])
    report = benchmark(
        settings, strategy, precisions=flags.precisions or (), batch_sizes=flags.batch_sizes, steps=flags.steps
    )
    if is_main_process():
        files.write_json(path, report.to_json())
        console.say(f"wrote     {path}", sys.stdout)


def main(argv: Sequence[str] | None = None) -> int:
    return exit_code(lambda: benchmark_from(argv))
