"""What a machine says of itself: CPU quota and memory, from files as the kernel writes them."""

import mmap
import os
import subprocess
import sys
from pathlib import Path

import pytest

from toolkit.system.host import cpu_quota, is_main_process, loader_threads, local_processes, peak_memory_gb

AFFINITY = len(os.sched_getaffinity(0))


def written(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


@pytest.mark.parametrize(
    ("files", "cpus"),
    [
        ({"cpu.max": "100000 100000\n"}, 1),
        ({"cpu.max": "150000 100000\n"}, 1),
        ({"cpu.max": "25000 100000\n"}, 1),  # a quarter of a CPU is still one thread
        ({"cpu.max": "max 100000\n"}, AFFINITY),
        ({"cpu.max": "99900000 100000\n"}, AFFINITY),
        ({"cpu/cpu.cfs_quota_us": "100000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 1),
        ({"cpu/cpu.cfs_quota_us": "50000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 1),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, AFFINITY),
        ({"cpu/cpu.cfs_quota_us": "100000\n"}, AFFINITY),
        ({"cpu.max": ""}, AFFINITY),
        ({}, AFFINITY),
    ],
)
def test_the_quota_is_the_smaller_of_cgroup_and_affinity_when_either_is_set(tmp_path: Path, files, cpus: int):
    assert cpu_quota(written(tmp_path, files)) == cpus


@pytest.mark.skipif(AFFINITY < 2, reason="needs two CPUs")
def test_the_quota_follows_the_affinity_when_it_is_narrowed(tmp_path: Path):
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert cpu_quota(tmp_path) == 1
    finally:
        os.sched_setaffinity(0, before)
    assert cpu_quota(tmp_path) == AFFINITY


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere getrusage is all there is")
def test_memory_is_a_program_s_own_when_what_started_it_has_more():
    """`accelerate launch` imports torch, and then starts a process for the script."""
    program = """if True:
        import resource
        from toolkit.system.host import peak_memory_gb
        print(peak_memory_gb(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)"""
    with mmap.mmap(-1, 2**29) as block:  # 0.5 GB here
        block.write(b"x" * 2**29)
        own, inherited = map(float, subprocess.check_output([sys.executable, "-c", program]).split())
    assert own < 0.3
    assert inherited > 0.5  # control: the other count does have it


def test_memory_is_known_when_the_system_keeps_no_count(tmp_path: Path):
    (tmp_path / "status").write_text("Name:\tpython\n")
    for name in ("status", "none"):
        assert peak_memory_gb(tmp_path / name) >= peak_memory_gb() - 0.01


def test_processes_are_known_when_a_launcher_set_its_variables(monkeypatch):
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    monkeypatch.delenv("RANK", raising=False)
    assert local_processes() == 1
    assert is_main_process()
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    monkeypatch.setenv("RANK", "2")
    assert local_processes() == 4
    assert not is_main_process()


def test_decoding_threads_share_the_quota_when_there_are_several_processes(monkeypatch):
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    alone = loader_threads()
    assert 1 <= alone <= min(16, AFFINITY)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "64")
    assert loader_threads() == 1
