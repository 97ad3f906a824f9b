"""Export a run's best model for use without the toolkit: weights for plain timm, ONNX (any batch size), a torch.export
program, preprocess.py, and a model card with the accuracy at every size and the code that loads the model.

Exports one size, with its normalization. Each file is loaded back and must reproduce the logits (within --tolerance)
and the top-1 of the run's model on images of the run. A format that does not is left out; the others are written.

Exit code: 0 written; 1 a format of --formats, or safetensors, is left out; 2 a flag or the run is wrong.

Example: toolkit export runs/multiscale-resnet18-20260131-120000 --scale 112 --formats safetensors,onnx
"""

from collections.abc import Sequence

from toolkit.config.cli import parse_section
from toolkit.config.tool_settings import Export
from toolkit.system import console
from toolkit.system.exit_codes import exit_code
from toolkit.system.host import is_main_process


def export_from(argv: Sequence[str] | None) -> None:
    flags = parse_section(argv, "toolkit export", __doc__, Export, "run")

    from toolkit.tools.export import export  # heavy imports come after parsing

    console.start(main=True)
    export(model=flags.model_from, **flags.model_dump(exclude={"model_from"}))


def main(argv: Sequence[str] | None = None) -> int:
    # Only the main process works; other processes of a launcher exit.
    return exit_code(lambda: export_from(argv)) if is_main_process() else 0
