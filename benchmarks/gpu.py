"""Training throughput and memory on this machine's GPU, per scale, architecture and precision.

python benchmarks/gpu.py [--arch resnet18 resnet50] [--batch-size 256]          prints Markdown with the GPU's name
"""

import argparse

import torch

from toolkit.config.settings import Settings
from toolkit.strategies import Simultaneous
from toolkit.tools.benchmark import benchmark

SCALES = (64, 112, 224)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", nargs="+", default=["resnet18", "resnet50"])
    parser.add_argument("--batch-size", type=int, default=256)
    options = parser.parse_args()
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {options.batch_size} images per step\n")
    print("| architecture | precision | px | images/s | ms/step | peak memory GB |\n|---|---|---|---|---|---|")
    for arch in options.arch:
        settings = Settings(arch=arch, batch_size=options.batch_size, synthetic_count=512, log_with="none")
        for case in benchmark(settings, Simultaneous(SCALES)).cases:
            print(
                f"| {arch} | {case.precision} | {'+'.join(map(str, case.sizes))} | {case.images_per_s:.0f} | "
                f"{case.step_p50_ms:.1f} | {case.peak_memory_gb:.2f} |"
            )


if __name__ == "__main__":
    main()
