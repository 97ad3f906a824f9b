"""Names of flags in other tools and what to write here: the hints of errors, and a table of docs/migration.md.

The names are those of timm, torchvision, fastai, ultralytics, Lightning and transformers, with `-` for `_`. A new one
is a word here; `python tests/unit/test_api_page.py` then writes the page.
"""

import re
from collections.abc import Collection

# Heading -> names of one meaning -> ours; a difference in meaning follows it.
OTHER_TOOLS: dict[str, dict[str, str]] = {
    "Data": {
        "data data-dir data-path data-folder dataset-dir dataset-path root": "`--data-root`",
        "train-dir train-data-dir train-folder validation-dir val-dir test-dir": (
            "`--data-root`, the folder above train/, val/ and test/"
        ),
        "dataset dataset-name": "`--data-root`: hf:NAME for a Hugging Face dataset",
        "dataset-config-name": "`--hf-config`",
        "label-column-name": "`--label-column`",
        "valid-pct train-val-split validation-split val-ratio val-pct val-fraction": (
            "`--val-split`, a share, used only if the data has no validation split"
        ),
        "train-split": "splits are found by their names",
        "num-classes nc n-classes class-map": "the data says which classes there are",
        "workers j n-workers num-worker dataloader-num-workers": "`--num-workers`, decoding threads per process",
        "pin-memory pin-mem dataloader-pin-memory persistent-workers prefetch-factor no-prefetcher drop-last "
        "dataloader-drop-last channels-last validation-batch-size val-batch-size eval-batch-size "
        "per-device-eval-batch-size": "nothing to set",
        "cache-dataset": "`--cache`, of decoded images; indices are always kept",
    },
    "Model": {
        "model m model-name a architecture backbone net network": "`--arch`, a name of timm",
        "model-name-or-path": "`--arch`: a name of timm, or hf-hub:NAME for the Hugging Face Hub",
        "use-pretrained pre-trained": "`--pretrained`",
        "initial-checkpoint checkpoint ckpt ckpt-path load load-from pretrained-path init-weights finetune": (
            "`--weights` to start from weights, `--resume` to continue a run"
        ),
        "drop dropout": "`--dropout-rate`",
        "drop-path-rate stochastic-depth-prob": "`--drop-path`",
        "ema use-ema model-ema model-ema-decay": "`--ema-decay`, such as 0.9998",
        "model-ema-steps": "`--ema-decay`, the decay of every step",
        "freeze-backbone freeze-encoder freeze-base freeze-feature-extractor freeze-features linear-probe "
        "linear-probing train-head-only": "`--freeze`",
        "freeze-layers freeze-at frozen-stages unfreeze unfreeze-at": "`--unfreeze-from`, the first stage that learns",
        "freeze-norm freeze-batchnorm freeze-batch-norm norm-eval": "`--freeze-bn`",
        "mean std": "the architecture's own normalization is used",
    },
    "Image sizes": {
        "imgsz img image-size input-size size crop-size train-crop-size resolution res": (
            "`--img-size` for one size (train single), `--scales` for several (train multi)"
        ),
        "sizes image-sizes train-img-sizes resolutions multi-scale": (
            "`--scales`; by default all of them are in each step"
        ),
        "train-size-schedule": "`--progressive`, one size after another",
        "val-crop-size val-resize-size eval-size test-size": "`--eval-scales`, the whole square in the middle",
        "crop-mode train-crop-mode resize-mode letterbox": (
            "`--fit crop`, `pad` (timm's `border`) or `squash`, in training and evaluation"
        ),
        "crop-pct interpolation": (
            "evaluation takes the whole square in the middle, or with `--fit` the whole image, bilinear and antialiased"
        ),
    },
    "Length and batches": {
        "num-epochs max-epochs n-epochs n-epoch nb-epochs num-train-epochs epoch e": "`--epochs`",
        "max-steps num-steps max-train-steps max-iters": "`--epochs`, whole passes over the training images",
        "bs b batch batchsize train-batch-size": "`--batch-size`, images per step over all processes together",
        "per-device-train-batch-size per-device-batch-size per-gpu-train-batch-size batch-size-per-gpu "
        "micro-batch-size": (
            "`--batch-size`, the batch of all processes together: multiply by their number; `--device-batch-size` "
            "limits what one takes at a time"
        ),
        "gradient-accumulation-steps accumulate-grad-batches grad-accum-steps grad-accum accum-steps accumulate nbs": (
            "`--device-batch-size`, most images per process and forward pass; the rest of `--batch-size` is accumulated"
        ),
        "early-stopping early-stop early-stopping-patience": "`--patience`, in epochs",
        "patience-epochs": "`--patience` for early stopping; the plateau schedule waits 2 epochs",
        "early-stopping-threshold early-stopping-delta": "`--min-delta`, in points of a percentage",
    },
    "Optimization": {
        "lr lr0 learningrate max-lr lr-max peak-lr": "`--learning-rate`",
        "lr-base base-lr lr-base-size scale-lr": "`--learning-rate`, never scaled with the batch size",
        "opt optim optimiser": "`--optimizer`, a name of timm",
        "wd decay": "`--weight-decay`",
        "norm-weight-decay bias-weight-decay": "biases and normalization never have weight decay",
        "momentum mom moms betas opt-betas adam-beta1 adam-beta2 adam-epsilon opt-eps": (
            "momentum and betas are timm's defaults; sgd has Nesterov's momentum of 0.9"
        ),
        "sched lr-scheduler lr-scheduler-type lr-schedule schedule cos-lr": "`--scheduler`, cosine unless set",
        "min-lr lr-min eta-min lrf": "`--scheduler-kwargs`: floor=0.01 for cosine, a share of the peak",
        "lr-step-size step-size lr-gamma gamma milestones decay-rate decay-epochs lr-decay lr-noise": (
            "`--scheduler`: cosine, constant, wsd, plateau or your own; none with steps"
        ),
        "warmup num-warmup-epochs lr-warmup-epochs": "`--warmup-epochs`",
        "warmup-steps num-warmup-steps lr-warmup-steps warmup-ratio warmup-iters pct-start": (
            "`--warmup-epochs`, in epochs, such as 0.5"
        ),
        "warmup-lr lr-warmup-method lr-warmup-decay": "`--warmup-epochs`; the warm-up is linear",
        "clip-grad grad-clip clip-grad-norm max-grad-norm gradient-clip-val gradient-clipping": (
            "`--gradient-clip`, the norm of the whole step's gradient"
        ),
        "clip-mode gradient-clip-value gradient-clip-algorithm": "`--gradient-clip`, by norm only",
        "layerwise-lr-decay layer-wise-lr-decay layer-lr-decay llrd layer-decay-rate": "`--layer-decay`",
        "backbone-lr lr-backbone backbone-lr-factor lr-mult head-lr lr-head": (
            "`--backbone-lr-scale`, a factor on `--learning-rate` for all but the classifier"
        ),
        "freeze-epochs head-only-epochs warmup-head-epochs": "`--head-epochs`, in which only the classifier learns",
        "criterion loss-fn": "`--loss`",
        "bce-loss": "`--loss bce`",
        "multi-label": "`--task multilabel`",
        "threshold thresholds": "`--task-kwargs thresholds=0.5`, with `--task multilabel`",
        "jsd-loss aug-splits aug-repeats": "not there; a loss over several views is a strategy of your own",
        "monitor eval-metric metric-for-best-model": "`--select-by`",
    },
    "Augmentation": {
        "smoothing label-smoothing-factor": "`--label-smoothing`",
        "mixup-alpha": "`--mixup`",
        "cutmix-alpha": "`--cutmix`",
        "mixup-prob mixup-switch-prob mixup-mode": "`--mixup` and `--cutmix`: every pair gets one of the two",
        "reprob re-prob random-erase erasing": "`--random-erasing`",
        "aa auto-augment autoaugment randaugment ra ra-magnitude": "`--rand-augment`, a magnitude such as 9",
        "jitter colour-jitter": "`--color-jitter`",
        "scale": "`--scales` for image sizes, `--crop-scale` for the smallest area of the random crop",
        "rrc-scale min-scale min-crop": "`--crop-scale`, the smallest area of the random crop",
        "horizontal-flip fliplr": "`--hflip`, on unless turned off; it mirrors half of the images",
        "vflip flipud vertical-flip": "`--transform`, a function of your own",
    },
    "Devices": {
        "device devices gpu gpus n-gpu ngpus num-gpus accelerator cuda no-cuda cpu use-cpu tpu-cores local-rank "
        "rank world-size dist-url dist-backend ddp-backend distributed multiprocessing-distributed num-nodes nnodes "
        "nproc-per-node num-processes num-machines": (
            "the launcher chooses devices and processes: `toolkit launch`, `accelerate launch`, `torchrun`, "
            "`CUDA_VISIBLE_DEVICES`"
        ),
        "precision fp16 bf16 half float16 bfloat16 mixed-precision amp-dtype use-amp native-amp to-fp16 to-bf16": (
            "`--amp`, in the best type that the device supports"
        ),
        "torchcompile torch-compile": "`--compile`",
        "syncbn sync-batchnorm dist-bn": "`--sync-bn`; without it the statistics are those of the first process",
        "ddp-timeout": "`--peer-timeout-s`, of silence: a process that only works long is waited for",
        "use-deterministic-algorithms cudnn-deterministic": "`--deterministic`",
        "random-seed manual-seed rng-seed random-state": "`--seed`",
        "fast-dev-run limit-train-batches overfit-batches": "`--dry-run`, which checks everything and trains nothing",
    },
    "Runs": {
        "output o out out-dir outdir save-dir log-dir logdir logging-dir default-root-dir work-dir workdir "
        "experiment exp-name run-name name": ("`--output-dir`, the directory of one run"),
        "exist-ok overwrite-output-dir": "`--output-dir`: an unfinished run there continues, a new run takes another",
        "start-epoch resume-from resume-path resume-from-checkpoint auto-resume": (
            "`--resume`; the same command continues a run without it"
        ),
        "checkpoint-hist save-total-limit save-top-k": "`--keep`",
        "save-steps checkpointing-steps recovery-interval": "`--save-every-steps`",
        "save-period save-freq save-interval save-strategy": (
            "`--save-every-minutes` or `--save-every-steps`; an epoch ends with a checkpoint"
        ),
        "val-check-interval check-val-every-n-epoch eval-steps eval-strategy evaluation-strategy eval-interval "
        "eval-freq val-interval": ("nothing to set: every epoch ends with an evaluation"),
        "print-freq p log-interval log-every-n-steps logging-steps": (
            "nothing to set: a line an epoch, a bar on a terminal, the dashboard every 10 or 50 steps"
        ),
        "report-to logger with-tracking log-wandb use-wandb wandb tensorboard": (
            "`--log-with`: wandb, tensorboard, trackio or none"
        ),
        "project project-name": "`--wandb-project` for the dashboard, `--output-dir` for the directory of the run",
        "do-train": "nothing to set",
        "test-only evaluate eval-only val-only do-eval": "`toolkit evaluate RUN` evaluates a finished run",
        "do-predict": "`toolkit predict RUN PATH` predicts with a finished run",
        "tta": "`toolkit evaluate RUN --flip` averages with the mirrored image",
        "cfg c config-file": "`--config`, a YAML file of settings; a file of Accelerate goes before the script",
    },
}

_ANSWERS = {name: ours for rows in OTHER_TOOLS.values() for names, ours in rows.items() for name in names.split()}


OF_COMMAND = {"--config", "--dry-run"}  # flags that are no settings


def answer(name: str, flags: Collection[str]) -> str:
    """What to write for the flag or setting of another tool; empty for a name that is not known.

    `flags`: those that there are. Where none of these does it, it says what has the one that does: a training, or from
    Python a strategy.
    """
    key = name.lstrip("-").rsplit(".", 1)[-1].replace("_", "-")  # Lightning's --trainer.max_epochs
    ours = _ANSWERS.get(key, "")
    named = set(re.findall(r"`(--[a-z][\w-]*)", ours))
    in_python = not name.startswith("-")
    if named and not named & {*flags}:
        of_strategy = in_python and not named <= OF_COMMAND
        has = "a strategy has, such as SingleScale or Simultaneous" if of_strategy else "only `toolkit train` has"
        ours = f"here it is {' or '.join(f'`{flag}`' for flag in sorted(named))}, which {has}"
    if in_python:  # a setting, in Python or in a file
        ours = re.sub(r"`--([a-z][\w-]*)", lambda flag: "`" + flag[1].replace("-", "_"), ours)
    return "here it is " * (bool(named) and ours.startswith("`")) + ours.replace("`", "")
