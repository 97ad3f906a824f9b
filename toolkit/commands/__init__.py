"""The commands: flags -> arguments -> one call of a tool or of `train`.

A file a command; its docstring is the help, `main(argv)` returns the exit code. Imports of torch come after the flags
are parsed. A new command is a file here and a line in `TABLE`. Never: what a command does, which `tools` or `training`
owns, so that Python can call it too.
"""

from typing import NamedTuple


class Entry(NamedTuple):
    """A command: its words after `toolkit`, the module here, and one line for the list of all commands."""

    words: str
    module: str
    summary: str


TABLE = {
    "train": (
        Entry("train multi", "train_multi", "train one model for several image sizes"),
        Entry("train single", "train_single", "train at one image size"),
        Entry("train finetune", "train_finetune", "train from weights that are good already, on few images"),
        Entry("launch", "launch", "start a command on several processes, as accelerate launch does"),
        Entry("plan", "plan", "predict time, memory and cost of a training; compare strategies"),
        Entry("verify-resume", "verify_resume", "kill and resume your training command, and compare bit by bit"),
    ),
    "a finished run": (
        Entry("evaluate", "evaluate", "accuracy, calibration and cost at any size"),
        Entry("compare", "compare", "which run is better on the same images, with intervals"),
        Entry("predict", "predict", "predict images and folders: CSV or JSON Lines"),
        Entry("export", "export", "weights for plain timm, ONNX, torch.export, and a model card"),
        Entry("report", "report", "write the page of a run again"),
    ),
    "data and machine": (
        Entry("scan", "scan", "check a data set before you pay for a GPU"),
        Entry("benchmark", "benchmark", "training speed and memory here, and the bottleneck"),
        Entry("dashboard", "dashboard", "create the wandb workspace of a project"),
        Entry("completion", "completion", "completion for bash or zsh"),
    ),
}
