"""Tensors that rank 0 sends to another process arrive bit for bit, in chunks."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import PATIENCE_S
from tests.distributed.collectives_ranks import CHUNK_BYTES, tensors
from tests.forkserver import run_ranks

WORKER = Path(__file__).with_name("collectives_ranks.py")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("collectives")
    done = run_ranks([str(WORKER), str(folder)], timeout=PATIENCE_S)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.reshape(-1).view(torch.uint8)


@pytest.mark.parametrize("rank", [0, 1])
def test_tensors_of_rank_0_arrive_bit_for_bit(folder: Path, rank: int):
    sent, found = tensors(), load_file(folder / f"rank-{rank}.safetensors")
    assert found.keys() == sent.keys()
    for name, tensor in sent.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape), name
        assert torch.equal(bits(found[name]), bits(tensor)), name


def test_chunks_hold_what_fits_and_a_larger_tensor_goes_alone(folder: Path):
    sent, chunks = tensors(), json.loads((folder / "chunks.json").read_text())
    assert [name for names in chunks for name in names] == [*sent]
    larger = [names for names in chunks if sum(sent[name].nbytes for name in names) > CHUNK_BYTES]
    assert {len(names) for names in larger} == {1}
    assert any(len(names) > 1 for names in chunks)
