"""Write a model in each export format and load it back. All take normalized float32 N x 3 x S x S."""

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
from toolkit.models.portable import PortableModel
from toolkit.system.errors import ExportError

TOLERANCE = 1e-4  # largest allowed absolute difference of a logit
OPSET = 18  # torch writes its ops in this opset and converts to newer ones, which fewer runtimes support
ONE_FILE_BYTES = 1.9e9  # one ONNX file cannot hold 2 GiB: above this, weights go to a second file
INPUT, OUTPUT = "pixels", "logits"

Say = Callable[[Tensor], Tensor]  # N x 3 x S x S -> N x C


@dataclass(frozen=True)
class Source:
    """What is exported: `plain` is the model without the toolkit; `example` is the batch for tracing."""

    model: PortableModel
    plain: nn.Module
    example: Tensor

    @cached_property
    def program(self) -> ExportedProgram:
        """The traced model, with a dynamic batch size."""
        program = torch.export.export(self.plain, (self.example,), dynamic_shapes=({0: Dim("batch")},))
        for node in program.graph.nodes:
            node.meta.pop("stack_trace", None)  # contains paths of this machine
        return program

    @property
    def metadata(self) -> dict[str, str]:
        """Metadata of the ONNX and pt2 files: classes by number, and the preprocessing, as JSON."""
        parts = {"class_map": dict(enumerate(self.model.classes)), "preprocessing": self.model.preprocessing()}
        return {name: json.dumps(part) for name, part in parts.items()}


def write_safetensors(source: Source, path: Path) -> Say:
    """Write weights under the names of the plain model's parameters."""
    weights = source.plain.state_dict()
    contiguous = {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in weights.items()}
    classes = {"class_map": source.metadata["class_map"]}  # one key: safetensors writes several in any order
    path.write_bytes(save(contiguous, classes))  # its save_file makes a file that only this user can read
    return source.model.create(path)


def write_onnx(source: Source, path: Path) -> Say:
    import onnxruntime  # optional dependency

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
    """Write a torch.export program, with classes and preprocessing as extra files in it."""
    torch.export.save(source.program, path, extra_files=source.metadata)
    return torch.export.load(path).module()


WRITERS: Mapping[Format, Callable[[Source, Path], Say]] = {
    "safetensors": write_safetensors,
    "onnx": write_onnx,
    "pt2": write_pt2,
}
FILES: Mapping[Format, str] = {"safetensors": "model.safetensors", "onnx": "model.onnx", "pt2": "model.pt2"}
WEIGHTS_BESIDE = "model.onnx.data"  # weights of a model that is too large for one ONNX file
NEEDS: Mapping[Format, tuple[str, ...]] = {"onnx": ("onnx", "onnxscript", "onnxruntime")}  # the pip extra `onnx`


@torch.no_grad()
def answer(say: Say, pixels: Tensor) -> Tensor:
    """N x C logits, computed in batches of 1, 5 and the rest."""
    return torch.cat([say(part) for part in (pixels[:1], pixels[1:6], pixels[6:]) if len(part)])


def difference(name: str, predicted: Tensor, expected: Tensor) -> float:
    """The largest absolute logit difference; raises ExportError if it is above TOLERANCE or NaN."""
    largest = float((predicted - expected).abs().max())
    if not largest <= TOLERANCE:  # `not <=` catches NaN too
        raise ExportError(
            f"{name}: refused, nothing was written: its logits of {len(expected)} images differ by {largest:.3g} from "
            f"those of the run's own model; at most {TOLERANCE:g} is allowed"
        )
    return largest
