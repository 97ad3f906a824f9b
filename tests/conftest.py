"""What all tests share: one cache of built-in data, capped threads, no dashboard unless asked for."""

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests import forkserver
from toolkit.data.sources.files import index_files
from toolkit.data.sources.index import Index

ROOT = Path(__file__).parent.parent
TINY = ("--synthetic-count", "120", "--synthetic-size", "32", "--batch-size", "24", "--log-with", "none")

# Columns of metrics.csv that tell what a clock or the memory says: no two runs agree in them.
TIMES = {
    *(
        "train_seconds",
        "wall_seconds",
        "eval_seconds",
        "save_seconds",
        "cost",
        "data_wait_share",
        "step_p50_ms",
        "step_p95_ms",
    ),
    *("images_per_s", "images_per_s_per_device", "tflops", "share_of_peak", "peak_memory_gb"),
}

ALL = os.environ.get("FAULTS") == "all"  # `make faults`; else the quick part
PATIENCE_S = 600  # after so long a process hangs; one on a busy machine may take minutes
SLOW = pytest.mark.skipif(not ALL, reason="`make faults` runs it")

WORKER = os.environ.get("PYTEST_XDIST_WORKER")  # of several processes that test, such as "gw0"
if WORKER and hasattr(os, "sched_setaffinity"):
    # Each keeps to one core, with all that it starts: models this small take 1.7 times the CPU time with two threads.
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[int(WORKER.removeprefix("gw")) % len(cores)]})
    os.environ["PYTHONWARNINGS"] = "ignore:This DataLoader will create:UserWarning"  # more processes than that core
os.environ.setdefault("OMP_NUM_THREADS", "1" if WORKER else "2")
# Threads that wait by spinning take the cores from those that work: 10x the time where anything else runs beside.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TORCH_CPP_LOG_LEVEL"] = "ERROR"  # as commands set it, but a forked process has torch already


def pytest_configure(config: pytest.Config) -> None:
    if WORKER:
        config.addinivalue_line("filterwarnings", "ignore:This DataLoader will create:UserWarning")


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built-in data is drawn once for the whole test run, whatever the number of its processes."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if WORKER else base) / "toolkit-cache"
    folder.mkdir(exist_ok=True)
    os.environ["TOOLKIT_CACHE"] = str(folder)
    return folder


@pytest.fixture(scope="session", autouse=True)
def forks() -> Iterator[None]:
    """Processes of plain Python start in no time: see tests/forkserver.py."""
    with forkserver.serving():
        yield


@pytest.fixture(scope="module", autouse=True)
def brief(request: pytest.FixtureRequest) -> Iterator[None]:
    """Training in this process leaves out a second of each run's end that few tests look at.

    No page is written, unless the module is marked `pages`; times of a forward are those of as few as may be.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("toolkit.models.evaluator.LATENCY_S", 0.0)
        patch.setattr("toolkit.tools.inference_cost.TIMED_S", 0.0)
        if request.node.get_closest_marker("pages") is None:
            patch.setattr(
                "toolkit.runs.report.write_report", lambda directory, errors_on="val": directory / "report.html"
            )
        yield


Runner = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run(tmp_path: Path) -> Runner:
    """Run a command line as a user would, in an empty directory; `launcher` words stand before the script's path."""

    def start(script: str, *words: str, launcher: tuple[str, ...] = (sys.executable,), **env: str):
        command = [*launcher, str(ROOT / script), *words]
        environment = {**os.environ, **env}
        environment.pop("WANDB_SERVICE", None)  # of another test in this process
        return forkserver.run(command, cwd=tmp_path, env=environment, timeout=PATIENCE_S)

    return start


ACCELERATE = (str(Path(sys.executable).with_name("accelerate")), "launch", "--quiet")
TORCHRUN = (str(Path(sys.executable).with_name("torchrun")), "--standalone", "--nproc-per-node", "2")


def recipe(name: str) -> Callable[[Sequence[str]], int]:
    """`main(argv)` of a recipe, to be called in this process: it returns the exit code."""
    spec = importlib.util.spec_from_file_location(f"recipe_{name}", ROOT / "recipes" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


def contents(folder: Path) -> dict[str, bytes]:
    """Every file under a folder, by its path there."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def write_image(path: Path, size: tuple[int, int] = (24, 24), seed: int = 0) -> Path:
    """An image of noise, width x height, in the format of the path's ending."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def index_of(root: Path, names: Sequence[str], labels: Sequence[int]) -> Index:
    """An index of files under a folder."""
    return index_files(root, names, labels, root.parent / "index-cache")


def paths_of(index: Index) -> list[Path]:
    """The files of an index, each image being one of its own."""
    return [Path(index.place(i).path) for i in range(len(index))]


def write_folders(
    root: Path, counts: dict[str, int], classes: Sequence[str] = ("cat", "dog"), size: tuple[int, int] = (24, 24)
) -> Path:
    """A data set: so many images of each class in each split, no two alike in one call."""
    paths = [Path(split, name, f"{i}.png") for split in counts for name in classes for i in range(counts[split])]
    for seed, path in enumerate(paths):
        write_image(root / path, size, seed)
    return root


def write_manifest(root: Path, name: str, rows: Sequence[tuple[str, object]]) -> Path:
    """`NAME.csv` of (file, label), and the files; a label is written as it stands."""
    for path, _ in rows:
        write_image(root / path)
    text = "".join(f"{path},{label}\n" for path, label in rows)
    (root / f"{name}.csv").write_text("filepath,label\n" + text)
    return root
