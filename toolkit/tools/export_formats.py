"""Write a model in each export format, load it back, and compute the logits of the check images with it."""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from toolkit.config.choices import Format, OnnxInput
from toolkit.models.portable import PortableModel
from toolkit.tools.export_check import answer
from toolkit.tools.export_uint8 import Uint8Input

OPSET = 18  # torch writes its ops in this opset and converts to newer ones, which fewer runtimes support
ONE_FILE_BYTES = 1.9e9  # one ONNX file cannot hold 2 GiB: above this, weights go to a second file
INPUTS: Mapping[OnnxInput, str] = {"float32": "pixels", "uint8": "image"}  # names in the ONNX graph
OUTPUT = "logits"
TRACED = 2  # images in the example batch for tracing; the check uses other batch sizes
TRACED_MORE = (5, 9)  # px by which the traced image exceeds the model's size: any shape but a square


@dataclass(frozen=True)
class Source:
    """What is exported, and on what it is checked; `plain`: the model without the toolkit.

    `pixels`: the check images, normalized float32 N x 3 x S x S. `images`: each of them, H x W x 3 uint8, upright.
    """

    model: PortableModel
    plain: nn.Module
    pixels: Tensor
    images: Callable[[], Iterator[Tensor]]

    @cached_property
    def program(self) -> ExportedProgram:
        """The traced model, with a dynamic batch size."""
        return _trace(self.plain, self.pixels[:TRACED], {0: Dim("batch")})

    @property
    def metadata(self) -> dict[str, str]:
        """Metadata of the ONNX and pt2 files: classes by number, and the preprocessing, as JSON."""
        parts = {"class_map": dict(enumerate(self.model.classes)), "preprocessing": self.model.preprocessing()}
        return {name: json.dumps(part) for name, part in parts.items()}


def _trace(model: nn.Module, example: Tensor, dynamic: dict[int, Any]) -> ExportedProgram:
    program = torch.export.export(model, (example,), dynamic_shapes=(dynamic,))
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # contains paths of this machine
    return program


def write_safetensors(source: Source, path: Path) -> Tensor:
    """Write weights under the names of the plain model's parameters."""
    weights = source.plain.state_dict()
    contiguous = {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in weights.items()}
    classes = {"class_map": source.metadata["class_map"]}  # one key: safetensors writes several in any order
    path.write_bytes(save(contiguous, classes))  # its save_file makes a file that only this user can read
    return answer(source.model.create(path), source.pixels)


def write_onnx(source: Source, path: Path) -> Tensor:
    """Write a graph for normalized float32 N x 3 x S x S."""
    run = _save_onnx(source, source.program, "float32", path)
    return answer(run, source.pixels)


def write_onnx_uint8(source: Source, path: Path) -> Tensor:
    """Write a graph for one uint8 image, H x W x 3, of any size."""
    model = source.model
    whole = Uint8Input(source.plain, model.size, model.mean, model.std, model.fit).eval()
    example = torch.zeros(*(model.size + more for more in TRACED_MORE), 3, dtype=torch.uint8)
    run = _save_onnx(source, _trace(whole, example, {0: Dim("height"), 1: Dim("width")}), "uint8", path)
    return torch.cat([run(image) for image in source.images()])


def _save_onnx(source: Source, traced: ExportedProgram, kind: OnnxInput, path: Path) -> Callable[[Tensor], Tensor]:
    """Write a traced model, and return the function that the file computes."""
    import onnxruntime  # optional dependency

    program = torch.onnx.export(
        traced, input_names=[INPUTS[kind]], output_names=[OUTPUT], opset_version=OPSET, dynamo=True, verbose=False
    )
    assert program is not None
    program.model.metadata_props.update(source.metadata)
    size = sum(tensor.nbytes for tensor in source.plain.state_dict().values())
    program.save(path, external_data=size > ONE_FILE_BYTES)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda given: torch.from_numpy(session.run(None, {INPUTS[kind]: given.numpy()})[0])


def write_pt2(source: Source, path: Path) -> Tensor:
    """Write a torch.export program, with classes and preprocessing as extra files in it."""
    torch.export.save(source.program, path, extra_files=source.metadata)
    return answer(torch.export.load(path).module(), source.pixels)


Writer = Callable[[Source, Path], Tensor]  # writes a file; returns the N x C logits of the check images by that file
ONNX_WRITERS: Mapping[OnnxInput, Writer] = {"float32": write_onnx, "uint8": write_onnx_uint8}
FILES: Mapping[Format, str] = {"safetensors": "model.safetensors", "onnx": "model.onnx", "pt2": "model.pt2"}
WEIGHTS_BESIDE = "model.onnx.data"  # weights of a model that is too large for one ONNX file
NEEDS: Mapping[Format, tuple[str, ...]] = {"onnx": ("onnx", "onnxscript", "onnxruntime")}  # the pip extra `onnx`


def writers(onnx_input: OnnxInput) -> dict[Format, Writer]:
    return {"safetensors": write_safetensors, "onnx": ONNX_WRITERS[onnx_input], "pt2": write_pt2}
