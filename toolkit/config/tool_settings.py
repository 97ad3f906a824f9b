"""Settings of the recipes that do not train. Free of torch."""

import shlex
from typing import Annotated, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, PositiveInt, model_validator

from toolkit.config.base import Folder, Numbers, Section, split_numbers
from toolkit.config.checks import check_columns, check_compare, check_evaluate, check_output, check_predict
from toolkit.config.choices import CACHE_GB, TOLERANCE, Cache, Format, GrayRange, OnnxInput, Split
from toolkit.config.data_roots import BUILT_IN, SYNTHETIC
from toolkit.config.tool_fields import (
    ALONE,
    BOOTSTRAP,
    COST_MATRIX_FILE,
    MODEL_FROM,
    TASK,
    Paths,
    Precisions,
    TaskName,
)
from toolkit.config.urls import DataRoot, RunPlace


class Scan(Section):
    """Scan"""

    groups: ClassVar = {
        "columns": ("task", "label_column", "hf_config"),
        "output": ("output_dir", "write_manifest", "write_index", "contact_sheets"),
        "images": ("range",),
        "machine": ("num_workers", "cache_dir", "cache_gb"),
    }

    data: DataRoot = Field(description="the data set, in any form that --data-root accepts")
    task: TaskName = TASK
    label_column: str | None = Field(None, description="as for training (unset: the usual names)")
    hf_config: str | None = Field(None, description="as for training (unset: the only one)")
    output_dir: Folder | None = Field(
        None, description="folder for scan.json, scan.txt and contact-sheets/ (unset: scan-<name>-<time>)"
    )
    write_manifest: bool = Field(
        False,
        description="also write manifest/, a list of the images without faults; train on it with --data-root",
    )
    write_index: bool = Field(
        False,
        description="also write the index of tar shards beside them (toolkit-train.index ...); a new machine then "
        "fetches it instead of reading all shards",
    )
    contact_sheets: bool = Field(True, description="write a PNG per class with up to 24 of its images")
    range: GrayRange = Field("16bit", description="how gray of more than 8 bits becomes 8, as in training")
    num_workers: PositiveInt | None = Field(None, description="threads (unset: the CPU quota)")
    cache_dir: Folder | None = Field(
        None, description="folder for indices and fetched shards (unset: $TOOLKIT_CACHE or ~/.cache/toolkit)"
    )
    cache_gb: float = Field(CACHE_GB, gt=0, description="disk limit for parts of remote shards, GB")


class Verify(Section):
    """Verify"""

    groups: ClassVar = {"trial": ("steps", "kills", "save_every_steps", "seed"), "output": ("output_dir",)}

    command: Annotated[tuple[str, ...], BeforeValidator(shlex.split)] = Field(
        description="after --, the complete training command: launcher, recipe and all its flags"
    )
    kills: int = Field(
        3, ge=0, description="times that the second run is killed; 0: never, to test if the command is reproducible"
    )
    steps: PositiveInt = Field(
        60,
        description="optimizer steps after which the runs are compared, rounded up to a checkpoint; a shorter run is "
        "compared at its end",
    )
    save_every_steps: PositiveInt | None = Field(
        None, description="steps between checkpoints (unset: the value in the command, else a sixth of --steps)"
    )
    seed: int = Field(0, ge=0, description="random seed (steps at which the run is killed), 0 or more")
    output_dir: Folder | None = Field(
        None, description="folder for both runs, kept (unset: verify-resume-TIME, removed if the runs are equal)"
    )


class Inference(Section):
    """Inference"""

    flip: bool = Field(False, description="average probabilities with those of the mirrored image; doubles the cost")
    batch_size: PositiveInt = Field(64, description="images per process and forward pass")
    num_workers: int | None = Field(
        None, ge=0, description="decoding threads per process; 0: none (unset: the CPU quota over local processes)"
    )
    amp: bool | None = Field(
        None,
        description="mixed precision in the best type of the device (unset: the precision of the training, or float32 "
        "if the device does not support it)",
    )
    alone: bool = ALONE
    model_from: str | None = MODEL_FROM


class Evaluate(Inference):
    """Evaluate"""

    groups: ClassVar = {
        "sizes": ("scales", "average", "flip", "recalibrate"),
        "metrics": ("bootstrap", "cost_matrix"),
        "cascade": ("cascade", "confidence", "max_loss"),
        "data": ("data_root", "split", "label_column", "hf_config"),
        "model": ("model_from",),
        "machine": ("batch_size", "num_workers", "amp", "alone"),
        "output": ("output_dir",),
    }

    run: RunPlace = Field(description="the run directory, or its URL")
    scales: Numbers | None = Field(None, description="ascending sizes, px (unset: those that the run reports)")
    average: bool = Field(False, description="also report probabilities averaged over all --scales")
    recalibrate: bool = Field(
        False,
        description="estimate normalization statistics for sizes that the run was not trained at, on up to 2048 of its "
        "training images at that size",
    )
    bootstrap: int = BOOTSTRAP
    cost_matrix: Folder | None = COST_MATRIX_FILE
    cascade: Numbers | None = Field(
        None,
        description="ascending sizes, px: report the compute saved by starting at the first size and moving up only "
        "while the top probability is below --confidence (unset: none)",
    )
    confidence: float | None = Field(
        None,
        gt=0,
        le=1,
        description="top probability, 0 to 1, at which --cascade stops (unset: the cheapest that keeps --max-loss on "
        "val)",
    )
    max_loss: float | None = Field(
        None, ge=0, description="points of top-1 that --cascade may lose on val (unset: 0.5)"
    )
    data_root: DataRoot | None = Field(
        None,
        description="new path of the run's data; or other data with the same classes, in any form that training "
        "accepts or as a folder of class folders (unset: the run's)",
    )
    split: Split | None = Field(None, description="the split to evaluate (unset: val and test)")
    label_column: str | None = Field(None, description="of --data-root, as for training (unset: the run's)")
    hf_config: str | None = Field(None, description="of --data-root, as for training (unset: the run's)")
    output_dir: Folder | None = Field(
        None,
        description="folder for evaluation.txt, .json, .svg and per-image predictions (unset: RUN/evaluation)",
    )

    @model_validator(mode="after")
    def _cross_check(self) -> Self:
        check_evaluate(self.scales, self.cascade, self.confidence, self.max_loss)
        check_columns(self.data_root, self.label_column, self.hf_config)
        return self


class Compare(Section):
    """Compare"""

    groups: ClassVar = {"sizes": ("scales",), "data": ("split", "data_root"), "output": ("output_dir",)}

    run: RunPlace = Field(description="the run directory of the baseline")
    others: tuple[RunPlace, ...] = Field(description="run directories to compare with it")
    scales: Numbers | None = Field(None, description="ascending sizes, px (unset: those that both runs report)")
    split: Split | None = Field(None, description="the split to compare on (unset: test if all runs have it, else val)")
    data_root: DataRoot | None = Field(
        None,
        description="evaluate all runs on this data, in any form that `toolkit evaluate` accepts (unset: use the "
        "predictions that each run saved, and evaluate only what is missing)",
    )
    output_dir: Folder | None = Field(None, description="folder for comparison.txt and .json (unset: none is written)")

    @model_validator(mode="after")
    def _cross_check(self) -> Self:
        check_compare((self.run, *self.others), self.scales)
        return self


class Predict(Inference):
    """Predict"""

    groups: ClassVar = {
        "sizes": ("scales", "flip"),
        "cascade": ("cascade", "confidence"),
        "model": ("model_from",),
        "machine": ("batch_size", "num_workers", "amp", "alone"),
        "output": ("output", "overwrite"),
    }

    run: RunPlace = Field(description="the run directory, or its URL")
    paths: Paths = Field(description="images, and folders of images, or their URLs")
    scales: Numbers | None = Field(
        None, description="ascending sizes, px; probabilities are averaged over several (unset: the run's largest)"
    )
    cascade: Numbers | None = Field(
        None,
        description="ascending sizes, px: start at the first and move up only while the top probability is below "
        "--confidence; `toolkit evaluate` reports the accuracy lost on labeled data (unset: none)",
    )
    confidence: float | None = Field(
        None, gt=0, le=1, description="top probability, 0 to 1, at which --cascade stops (unset: 0.9)"
    )
    output: str = Field(
        "-", description="file for one row per image, ending in .csv or .jsonl; -: CSV on standard output"
    )
    overwrite: bool = Field(False, description="replace an existing --output")

    @model_validator(mode="after")
    def _cross_check(self) -> Self:
        check_predict(self.paths, self.scales, self.cascade, self.confidence)
        check_output(self.output, self.overwrite)
        return self


class WorkspaceLayout(Section):
    """Workspace layout"""

    groups: ClassVar = {"output": ("output",)}

    project: str = Field(description="wandb project: ENTITY/PROJECT, or PROJECT in your default entity")
    output: Folder | None = Field(
        None,
        description="write the layout to this JSON file; needs no API key or network (unset: save it on wandb)",
    )


class Export(Section):
    """Export"""

    groups: ClassVar = {
        "model": ("scale", "formats", "onnx_input", "tolerance", "model_from"),
        "data": ("data_root",),
        "output": ("output_dir", "overwrite"),
    }

    run: RunPlace = Field(description="the run directory, or its URL")
    scale: PositiveInt | None = Field(
        None, description="size to export, px, with its normalization (unset: the size that selected the best model)"
    )
    formats: Annotated[tuple[Format, ...], BeforeValidator(split_numbers), Field(min_length=1)] | None = Field(
        None, description="formats, comma-separated: safetensors, onnx, pt2 (unset: all that can be written here)"
    )
    onnx_input: OnnxInput = Field(
        "float32",
        description="what model.onnx takes; float32: normalized pixels, N x 3 x S x S; uint8: an RGB image, H x W x 3, "
        "of any size, with crop, resize and normalization in the graph (default: float32)",
    )
    tolerance: float = Field(
        TOLERANCE,
        ge=0,
        lt=1,
        description="largest difference allowed between a logit of a file and of the run's model: X * (1 + largest "
        f"absolute logit of the image); the top-1 must be the same (default: {TOLERANCE:g})",
    )
    data_root: DataRoot | None = Field(
        None, description="path of the run's images, for the check (unset: the run's --data-root)"
    )
    output_dir: Folder | None = Field(None, description="folder for the export (unset: RUN/export)")
    overwrite: bool = Field(False, description="replace an existing export")
    model_from: str | None = MODEL_FROM


class Benchmark(Section):
    """Benchmark"""

    groups: ClassVar = {
        "cases": ("arch", "scales", "batch_sizes", "precisions", "compile", "steps"),
        "data": ("data_root", "num_workers", "cache"),
        "machine": ("alone",),
        "output": ("output",),
    }

    arch: str = Field(
        default_factory=lambda known: "test_resnet" if known.get("data_root", SYNTHETIC) in BUILT_IN else "resnet18",
        description="timm architecture (default: resnet18; test_resnet on the built-in data)",
    )
    scales: Numbers | None = Field(
        None,
        description="ascending sizes, px, measured each alone and all in one step (default: 64,112,224; 20,32,64 on "
        "the built-in data)",
    )
    batch_sizes: Numbers = Field((64,), description="images per optimizer step, over all processes (default: 64)")
    precisions: Precisions | None = Field(
        None, description="float32, bf16, fp16, comma-separated (unset: all that the device supports)"
    )
    data_root: DataRoot = Field(SYNTHETIC, description="data to time the loader on, in any form that training accepts")
    num_workers: int | None = Field(
        None, ge=0, description="decoding threads per process; 0: none (unset: the CPU quota over local processes)"
    )
    cache: Cache = Field("auto", description="as in training; may write downscaled images to disk")
    compile: bool = Field(
        False,
        description="compile the model with torch.compile: one static graph for each combination of sizes that a step "
        "has, built before the steps are timed",
    )
    alone: bool = ALONE
    steps: PositiveInt = Field(10, description="timed optimizer steps per case, after 3 warm-up steps")
    output: Folder | None = Field(None, description="JSON file for the results (unset: benchmark-TIME.json)")


class Report(Section):
    """Report"""

    groups: ClassVar = {"page": ("errors_on",)}

    run: RunPlace = Field(description="a run directory, or its URL")
    errors_on: Literal["val", "test"] = Field("val", description="the split whose errors are shown")


class Completion(Section):
    """Completion"""

    shell: Literal["bash", "zsh"] = Field(description="bash or zsh")
