"""The settings of a run in sections: meaning, unit, default and range of each. Imports no torch."""

from functools import partial
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, PositiveInt

from toolkit.config.base import Folder, KeyValues, Section
from toolkit.config.choices import CACHE_GB, Cache, ClassLoss, ClassWeights, Fit, GrayRange
from toolkit.config.data_roots import BUILT_IN, CHARACTERS, SYNTHETIC
from toolkit.config.tables import MULTI_LABEL, check_entry
from toolkit.config.urls import DataRoot, Readable

WANDB_PROJECT = "toolkit"  # default of --wandb-project


class Data(Section):
    """Data"""

    data_root: DataRoot = Field(
        SYNTHETIC,
        description="folder with train/ val/ test/, with train.csv, or of class folders; folder or URL (s3:// gs:// "
        "az://) of tar shards; hf:FOLDER or hf:NAME of a Hugging Face dataset; 'synthetic' (built-in shapes) or "
        "'characters'; or what a source of your own recognizes; also without the flag",
    )
    label_column: str | None = Field(
        None, description="column of labels in CSV files or a Hugging Face dataset of several (unset: the usual names)"
    )
    hf_config: str | None = Field(
        None, description="configuration of a Hugging Face dataset that has several (unset: the only one)"
    )
    synthetic_size: PositiveInt | None = Field(
        None, description="native size of the built-in images, px (unset: the largest scale)"
    )
    synthetic_count: int | None = Field(
        None, ge=20, description="training images of the built-in data (unset: 6000; 9600 characters)"
    )
    synthetic_classes: int | None = Field(
        None, description="classes of the built-in characters, 2 to 79 (unset: 64; the shapes have 10)"
    )
    val_split: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="share of the training images, 0 to 1, held out for validation if the data has no validation "
        "split (unset: 0.1)",
    )
    num_workers: int | None = Field(
        None,
        ge=0,
        description="decoding threads per process, or worker processes with --rand-augment, --color-jitter or "
        "--transform; 0: none (unset: the CPU quota divided by local processes, at most 16)",
    )
    on_bad_sample: Literal["fail", "quarantine"] = Field(
        "fail",
        description="what to do with an unreadable image; fail: stop and name it; quarantine: train on its neighbor "
        "instead, exclude it from evaluation, and list it in quarantine.jsonl",
    )
    range: GrayRange = Field(
        "16bit",
        description="how gray of more than 8 bits becomes 8; 16bit: 65535, or 1 of float pixels, becomes 255; minmax: "
        "the least of an image becomes 0, its most 255; percentile: the same of its 0.5th and 99.5th percentile",
    )
    fit: Fit = Field(
        "crop",
        description="how images that are not square become square, in evaluation and prediction too; crop: the "
        "largest square in the middle; pad: the whole image on the mean color; squash: the whole image, stretched",
    )
    cache: Cache = Field(
        "auto",
        description="ram: decoded images in memory; disk: downscaled JPEGs on disk for low-resolution phases; auto: "
        "ram if they fit into --cache-gb and free memory, else disk if it saves time",
    )
    cache_dir: Folder | None = Field(
        None,
        description="folder for indices, downscaled images and remote shards (unset: $TOOLKIT_CACHE or "
        "~/.cache/toolkit)",
    )
    cache_gb: float = Field(
        CACHE_GB,
        gt=0,
        description="limit for decoded images in memory, GB per process; also for parts of remote shards on disk, "
        "which are shuffled in windows of half this size",
    )
    loader_timeout_s: float = Field(
        300.0, gt=0, le=1e6, description="longest wait for a batch before the run stops with an error, s"
    )


class Augmentation(Section):
    """Augmentation"""

    crop_scale: float = Field(
        default_factory=lambda known: 1.0 if known.get("data_root") in BUILT_IN else 0.35,
        gt=0,
        le=1,
        description="smallest area of the random resized crop, as a share, 0 to 1; 1: no crop (default: 0.35; 1 on "
        "the built-in data)",
    )
    hflip: bool = Field(
        default_factory=lambda known: known.get("data_root") != CHARACTERS,
        description="mirror half of the training images (default: on; off on the built-in characters)",
    )
    transform: str | None = Field(
        None, description="MODULE:FUNCTION of your own, from size x size x 3 bytes to the same, next (unset: none)"
    )
    rand_augment: float = Field(0.0, ge=0, le=10, description="magnitude of RandAugment, 0 to 10, typically 5 to 9")
    color_jitter: float = Field(0.0, ge=0, le=1, description="most change of brightness, contrast, saturation, 0 to 1")
    random_erasing: float = Field(0.0, ge=0, le=1, description="share of images, 0 to 1, with a rectangle of noise")
    mixup: float = Field(0.0, ge=0, description="alpha of MixUp, 0 or more, typically 0.1 to 0.8")
    cutmix: float = Field(
        0.0, ge=0, description="alpha of CutMix, 0 or more, typically 1; with both, each pair gets CutMix or MixUp"
    )
    drop_path: float = Field(
        0.0, ge=0, lt=1, description="stochastic depth: share of residual branches dropped, 0 to 1"
    )


class Objective(Section):
    """Objective"""

    task: Annotated[str, AfterValidator(partial(check_entry, "task", "--task"))] = Field(
        "classification",
        description="what a label is, what is minimized and measured; classification: one class per image; "
        "multilabel: any number of classes",
        json_schema_extra={"seam": "task"},
    )
    task_kwargs: KeyValues = Field(
        {}, description="further arguments of the task, as key=value, e.g. thresholds=0.5 for multilabel"
    )
    loss: ClassLoss = Field(
        default_factory=lambda known: "bce" if known.get("task") == MULTI_LABEL else "ce",
        description="ce: cross-entropy; bce: binary cross-entropy, a probability of its own for each class; asl: "
        "asymmetric loss, which weighs easy classes less; poly: cross-entropy and 2 x (1 - the probability of the "
        "label); multilabel takes bce and asl (default: ce; bce for multilabel)",
    )
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="share of the target, 0 to 1, spread over all classes")
    class_weights: ClassWeights = Field(
        "none",
        description="weight of an image in the loss, by its class; inverse: 1 / images of the class, so that classes "
        "count alike; effective: 1 / their effective number, nearly the same for classes of thousands of images",
    )
    class_weights_power: float = Field(
        1.0, gt=0, le=10, description="power of that weight, above 0; 0.5, its root, is milder"
    )
    select_by: str | None = Field(
        None,
        description="metric on val that selects the best model, and that --patience and the plateau schedule follow: "
        "top1, top5, loss, balanced_accuracy, macro_f1, worst_class, auroc, average_precision, ece, expected_cost or "
        "bayes_cost for classification; map, micro_f1, macro_f1, loss, worst_class, auroc or micro_auroc for "
        "multilabel (unset: the task's first, top1 or map)",
    )


class Model(Section):
    """Model"""

    arch: str = Field(
        default_factory=lambda known: "test_resnet" if known.get("data_root") in BUILT_IN else "resnet18",
        description="timm architecture (default: resnet18; test_resnet on the built-in data)",
    )
    model_from: str | None = Field(
        None,
        description="module:function of your own that makes the model instead of timm, called with num_classes and "
        "--model-kwargs (unset: none)",
    )
    model_kwargs: KeyValues = Field(
        {},
        description="further arguments of the timm architecture or of --model-from, e.g. output_stride=8; values as in "
        "YAML 1.2: numbers, true, false, null, [lists], {mappings}, else text",
    )
    pretrained: bool = Field(False, description="start from timm's pretrained weights")
    weights: Readable | None = Field(
        None,
        description="start from the weights in FILE (.safetensors, .pth, .pt, .bin), in RUN (its best model) or in an "
        "exported folder (unset: none)",
    )
    weights_sha256: str | None = Field(
        None, description="SHA-256 that the file of --weights must have, as config.yaml records it (unset: any)"
    )
    dropout_rate: float = Field(0.0, ge=0, lt=1, description="share of features, 0 to 1, dropped before the classifier")


class Optimization(Section):
    """Optimization"""

    epochs: PositiveInt = Field(
        default_factory=lambda known: 12 if known.get("data_root") in BUILT_IN else 20,
        description="passes over the training images (default: 20; 12 on the built-in data)",
    )
    batch_size: PositiveInt = Field(64, description="images per optimizer step, over all processes")
    device_batch_size: PositiveInt | None = Field(
        None, description="most images per process and forward pass; the rest is accumulated (unset: no accumulation)"
    )
    optimizer: str = Field("adamw", description="any timm optimizer, e.g. adamw, sgd, lamb")
    learning_rate: float = Field(
        default_factory=lambda known: 4e-3 if known.get("data_root") in BUILT_IN else 1e-3,
        gt=0,
        le=1e38,
        description="peak learning rate, above 0 (default: 1e-3; 4e-3 on the built-in data)",
    )
    weight_decay: float = Field(0.05, ge=0, description="weight decay, 0 or more; not on biases and normalization")
    scheduler: Annotated[str, AfterValidator(partial(check_entry, "schedule", "--scheduler"))] = Field(
        "cosine",
        description="learning rate; cosine: decays to 0; constant; wsd: constant, then decays to 0 in the last fifth; "
        "plateau: halves after 2 epochs without improvement",
        json_schema_extra={"seam": "schedule"},
    )
    scheduler_kwargs: KeyValues = Field({}, description="arguments of the scheduler, e.g. floor=0.01 for cosine")
    warmup_epochs: float = Field(
        default_factory=lambda known: 1.0 if known.get("epochs", 1) > 1 else 0.0,
        ge=0,
        description="epochs of linear warm-up (default: 1; 0 in a run of one epoch)",
    )
    patience: PositiveInt | None = Field(
        None,
        description="stop after this many epochs without improvement in the last phase that counts (unset: never)",
    )
    min_delta: float = Field(
        0.0,
        ge=0,
        description="smallest gain that counts as an improvement, in points of a percentage or in the metric's unit",
    )
    gradient_clip: float | None = Field(None, gt=0, description="largest gradient norm, above 0 (unset: no clipping)")
    ema_decay: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="decay per step, 0 to 1, e.g. 0.9998, of a moving average of the weights; both are then evaluated, "
        "and the better one is selected and exported (unset: none)",
    )
    ema_warmup: bool = Field(
        default_factory=lambda known: known.get("ema_decay") is not None,
        description="limit the decay of --ema-decay at the n-th step to 1 - n^(-2/3), so that the average forgets the "
        "initial weights (default: on)",
    )
    on_divergence: Literal["stop", "rollback"] = Field(
        "stop",
        description="what to do on a non-finite loss or gradient; stop: stop with an error; rollback: return to the "
        "last checkpoint, at most 3 times, and continue with the images in another order",
    )
    sync_bn: bool = Field(False, description="synchronize BatchNorm statistics over all processes (CUDA and XPU only)")


class Machine(Section):
    """Machine"""

    amp: bool | None = Field(
        None, description="mixed precision in the best type that the device supports (unset: the launcher's choice)"
    )
    compile: bool = Field(
        False,
        description="compile the model with torch.compile: one static graph for each combination of sizes that a step "
        "has, built before the steps are timed",
    )
    alone: bool = Field(
        False,
        description="the tasks that srun, mpirun, SageMaker or SkyPilot start are independent runs, as in a sweep; "
        "without it, several tasks that do not train together are refused",
    )
    peer_timeout_s: float = Field(
        120.0,
        ge=5,
        le=1e6,
        description="how long another process of the run may be silent before the run ends and names it, s; one that "
        "lives is never silent, however long it works",
    )
    cloud: Literal["auto", "none", "aws", "gcp", "azure"] = Field(
        "auto", description="cloud provider to record with the machine type; auto: detect it"
    )
    deterministic: bool = Field(False, description="use deterministic kernels only; slower on GPUs")
    seed: int = Field(
        0, ge=0, le=2**63 - 1, description="random seed (initial weights, order, augmentation), 0 or more"
    )
