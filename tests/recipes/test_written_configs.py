"""Files as `accelerate config` writes them: carried out, or refused in one line that says what to change."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from accelerate.commands.config.config_args import ClusterConfig
from accelerate.commands.config.default import write_basic_config
from accelerate.utils import DistributedType

from tests.conftest import ACCELERATE, SLOW, Runner

WORDS = ("--synthetic-count", "60", "--batch-size", "12", "--epochs", "1", "--log-with", "none", "--dry-run")
DYNAMO = {
    "dynamo_backend": "AOT_EAGER",
    "dynamo_mode": "default",
    "dynamo_use_dynamic": False,
    "dynamo_use_fullgraph": False,
}


def written(kind: DistributedType, processes: int, precision: str = "no", **more: Any) -> Callable[[Path], object]:
    """What the questions of `accelerate config` end in, for one machine."""
    usual = {"compute_environment": "LOCAL_MACHINE", "num_machines": 1, "debug": False, "use_cpu": True}
    answers = {**usual, "distributed_type": kind, "num_processes": processes, "mixed_precision": precision, **more}
    return lambda file: ClusterConfig(**answers).to_yaml_file(file)


def basic(file: Path) -> None:
    """`accelerate config default`."""
    write_basic_config(save_location=str(file))


ONE, CPUS, SHARDED = DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.FSDP
FSDP = {"fsdp_version": 2}
CASES = [
    pytest.param(basic, "1 process(es)", id="default", marks=SLOW),
    pytest.param(written(CPUS, 2), "was asked for several processes or machines, but starts one", id="two processes"),
    pytest.param(written(ONE, 1, "bf16"), "bfloat16 mixed (launcher)", id="bf16", marks=SLOW),
    pytest.param(written(ONE, 1, "fp16"), "fp16, which CPUs do not train in", id="fp16", marks=SLOW),
    pytest.param(written(ONE, 1, dynamo_config=DYNAMO), "give the recipe --compile", id="dynamo"),
    pytest.param(
        written(SHARDED, 1, use_cpu=False, fsdp_config=FSDP), "the launcher asks for FSDP", id="FSDP", marks=SLOW
    ),
]


@pytest.mark.slow
@pytest.mark.parametrize(("write", "told"), CASES)
def test_a_config_is_carried_out_or_refused_in_one_line(
    run: Runner, tmp_path: Path, write: Callable[[Path], object], told: str
):
    file = tmp_path / ("config.json" if write is basic else "config.yaml")
    write(file)
    done = run("recipes/multiscale.py", *WORDS, launcher=(*ACCELERATE, "--config_file", str(file)))
    refused = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert told in (refused[0] if done.returncode else done.stdout)
    assert len(refused) == (1 if done.returncode else 0)
