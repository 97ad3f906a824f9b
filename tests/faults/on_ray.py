"""A training by Ray Train on two processes of this machine: python on_ray.py RUN STORAGE."""

import sys
from pathlib import Path
from typing import Any

import ray
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

SETTINGS = {
    "data_root": "synthetic",
    "synthetic_count": 240,
    "synthetic_size": 32,
    "arch": "test_vit",
    "batch_size": 24,
    "epochs": 3,
    "optimizer": "sgd",
    "learning_rate": 0.05,
    "log_with": "none",
    "num_workers": 1,
    "record_samples": True,
    "save_every_steps": 4,
}


def learn(settings: dict[str, Any]) -> None:
    from toolkit import Settings, Simultaneous, train

    train(Settings(**settings), Simultaneous((16, 32)))


def main(run: str, storage: str) -> None:
    ray.init(address="local", num_cpus=2, include_dashboard=False)
    trainer = TorchTrainer(
        learn,
        train_loop_config={**SETTINGS, "output_dir": run},
        torch_config=TorchConfig(backend="gloo"),
        scaling_config=ScalingConfig(num_workers=2),
        run_config=RunConfig(name=Path(run).name, storage_path=storage, failure_config=FailureConfig(max_failures=1)),
    )
    trainer.fit()


if __name__ == "__main__":
    main(*sys.argv[1:])
