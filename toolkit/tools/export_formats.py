"""How a timm model is written in each format, and opened again. All take normalized float32 N x 3 x S x S."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from toolkit.config.choices import Format
from toolkit.system.errors import ExportError
from toolkit.tools.timm_model import TimmModel

TOLERANCE = 1e-4  # largest difference of a logit
OPSET = 18  # the one that torch's ops are written in; newer ones it converts to, and fewer runtimes take them
ONE_FILE_BYTES = 1.9e9  # ONNX cannot hold 2 GiB in one file: above, the weights get a file of their own
INPUT, OUTPUT = "pixels", "logits"

Say = Callable[[Tensor], Tensor]  # N x 3 x S x S to N x C


@dataclass(frozen=True)
class Source:
    """What is written: `plain` is the model as timm builds it; `example` are the images that a graph is made from."""

    model: TimmModel
    plain: nn.Module
    example: Tensor

    @cached_property
    def program(self) -> ExportedProgram:
        """The model as a graph for batches of any size."""
        program = torch.export.export(self.plain, (self.example,), dynamic_shapes=({0: Dim("batch")},))
        for node in program.graph.nodes:
            node.meta.pop("stack_trace", None)  # paths of this machine
        return program

    @property
    def metadata(self) -> dict[str, str]:
        """What stands in the files of graphs: the classes by number, and the preprocessing."""
        parts = {"class_map": dict(enumerate(self.model.classes)), "preprocessing": self.model.preprocessing()}
        return {name: json.dumps(part) for name, part in parts.items()}


def write_safetensors(source: Source, path: Path) -> Say:
    """Weights under timm's own names."""
    weights = source.plain.state_dict()
    contiguous = {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in weights.items()}
    path.write_bytes(save(contiguous))  # its own file would be for this user's eyes only
    return source.model.create(path)


def write_onnx(source: Source, path: Path) -> Say:
    import onnxruntime  # the extra may not be installed

    program = torch.onnx.export(
        source.program, input_names=[INPUT], output_names=[OUTPUT], opset_version=OPSET, dynamo=True, verbose=False
    )
    assert program is not None
    program.model.metadata_props.update(source.metadata)
    size = sum(tensor.nbytes for tensor in source.plain.state_dict().values())
    program.save(path, external_data=size > ONE_FILE_BYTES)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda pixels: torch.from_numpy(session.run(None, {INPUT: pixels.numpy()})[0])


def write_pt2(source: Source, path: Path) -> Say:
    """A torch.export program; its classes and preprocessing are extra files in it."""
    torch.export.save(source.program, path, extra_files=source.metadata)
    return torch.export.load(path).module()


WRITERS: Mapping[Format, Callable[[Source, Path], Say]] = {
    "safetensors": write_safetensors,
    "onnx": write_onnx,
    "pt2": write_pt2,
}
FILES: Mapping[Format, str] = {"safetensors": "model.safetensors", "onnx": "model.onnx", "pt2": "model.pt2"}
WEIGHTS_BESIDE = "model.onnx.data"  # of a model that one ONNX file cannot hold
NEEDS: Mapping[Format, tuple[str, ...]] = {"onnx": ("onnx", "onnxscript", "onnxruntime")}  # the pip extra `onnx`


@torch.no_grad()
def answer(say: Say, pixels: Tensor) -> Tensor:
    """N x C logits, said in batches of 1, 5 and the rest."""
    return torch.cat([say(part) for part in (pixels[:1], pixels[1:6], pixels[6:]) if len(part)])


def difference(name: str, said: Tensor, expected: Tensor) -> float:
    """The largest difference of a logit; raises ExportError where it is too large, or not a number."""
    largest = float((said - expected).abs().max())
    if not largest <= TOLERANCE:  # also where there is a NaN
        raise ExportError(
            f"{name}: refused, nothing was written: its logits of {len(expected)} images differ by {largest:.3g} from "
            f"those of the run's own model; at most {TOLERANCE:g} is allowed"
        )
    return largest
