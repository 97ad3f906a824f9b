"""Orders that are files, which the processes of a machine share: the same training, on two processes and resumed."""

import shutil
from pathlib import Path

import pytest

from tests.conftest import PATIENCE_S, recipe
from tests.distributed.test_remote_shards import data, delivered, words  # noqa: F401
from tests.forkserver import run_ranks

SCRIPT = Path(__file__).with_name("shared_orders.py")


@pytest.mark.slow
def test_training_is_the_same_when_orders_are_shared_files(data: Path, tmp_path: Path):  # noqa: F811
    assert recipe("single_scale")(words(data, str(data), tmp_path / "alone")) == 0
    wanted = delivered(tmp_path / "alone")
    command = [str(SCRIPT), *words(data, str(data), tmp_path / "shared")]
    done = run_ranks(command, timeout=PATIENCE_S)
    assert done.returncode == 0, done.stderr[-3000:]
    assert delivered(tmp_path / "shared") == wanted
    drawn = {path.name.split("-")[1] for path in (tmp_path / "cache-shared/orders").glob("*.npy")}
    assert drawn == {"000000", "000001"}

    *_, last = sorted((tmp_path / "shared/checkpoints").glob("step-*"))
    shutil.rmtree(last)
    (tmp_path / "shared/summary.json").unlink()
    done = run_ranks(command, timeout=PATIENCE_S)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "resume" in done.stderr + done.stdout
    assert delivered(tmp_path / "shared") == wanted
