"""One of two processes of `test_collectives.py`: gets the tensors of rank 0, in chunks of 256 bytes.

collectives_ranks.py FOLDER writes FOLDER/rank-R.safetensors, and FOLDER/chunks.json: the names that were sent together.
"""

import json
import sys
from pathlib import Path

import torch
from accelerate import PartialState
from safetensors.torch import save_file
from torch import Tensor

from toolkit.models import collectives

CHUNK_BYTES = 256
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.uint8, torch.bool)
SHAPES = {"image": (2, 3, 4, 4), "larger than a chunk": (50, 7), "row": (5,), "scalar": (), "empty": (0, 3)}


def tensors() -> dict[str, Tensor]:
    """Of every type and shape, with values that are not numbers among them; images are channels last."""
    draw = torch.Generator().manual_seed(0)
    found = {}
    for dtype in DTYPES:
        for name, shape in SHAPES.items():
            values = torch.randn(shape, generator=draw).mul(100).to(dtype)
            if dtype.is_floating_point and values.ndim == 1:
                values[:3] = torch.tensor([float("nan"), float("inf"), -0.0])
            found[f"{dtype} {name}"] = values
            if name == "image":
                found[f"{dtype} {name}"] = values.contiguous(memory_format=torch.channels_last)
    return found


def main(folder: Path) -> None:
    state, own = PartialState(cpu=True), tensors()
    collectives.CHUNK_BYTES = CHUNK_BYTES
    if state.is_main_process:
        (folder / "chunks.json").write_text(json.dumps([*collectives._chunks(own)]))
    else:
        own = {name: tensor.to("meta") for name, tensor in own.items()}
    found = collectives.tensors_from_main(own, state.device)
    save_file(
        {name: tensor.contiguous() for name, tensor in found.items()},
        folder / f"rank-{state.process_index}.safetensors",
    )
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
