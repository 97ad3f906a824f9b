"""Where a run lives, what it saves, and the dashboard that shows it. Imports no torch."""

from functools import partial
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, PositiveInt

from toolkit.config.base import Section
from toolkit.config.tables import check_entry
from toolkit.config.urls import DataRoot, RunPlace


class Output(Section):
    """Output"""

    output_dir: RunPlace | None = Field(
        None,
        description="run directory, or its URL (s3:// gs:// az://), to which checkpoints are uploaded while it trains; "
        "alias --checkpoint-dir (unset: runs/RECIPE-ARCH-TIME)",
    )
    resume: DataRoot = Field(
        "auto",
        description="auto: continue an unfinished run with the same settings; never: start a new run; "
        "or the path or URL of a run or checkpoint",
    )
    upload_wait_s: float = Field(
        120.0,
        gt=0,
        le=1e6,
        description="with a URL as --output-dir: how long the end of a run waits while nothing arrives there, s",
    )
    take_over: bool = Field(
        False,
        description="take over a run directory or a cache that a machine which is gone still has locked; a process "
        "that lives on this machine keeps its lock",
    )
    save_every_steps: PositiveInt | None = Field(
        None, description="steps between additional checkpoints (default: off)"
    )
    save_every_minutes: float = Field(10.0, gt=0, description="longest time between checkpoints, minutes")
    keep: int = Field(3, ge=2, description="newest checkpoints to keep, 2 or more; the best one is kept too")
    log_with: Annotated[str, AfterValidator(partial(check_entry, "dashboard", "--log-with"))] = Field(
        "wandb",
        description="dashboard; trackio runs on this machine, without an account; one of your own: MODULE:CLASS",
        json_schema_extra={"seam": "dashboard"},
    )
    wandb_project: str | None = Field(
        None,
        description="name of the project in wandb, trackio or a dashboard of your own (unset: $WANDB_PROJECT or "
        "toolkit)",
    )
    wandb_mode: Literal["auto", "online", "offline"] = Field(
        "auto",
        description="auto: $WANDB_MODE, else online with an API key and a network, else offline",
    )
    wandb_artifact: bool = Field(False, description="upload the best model to wandb at the end of the run")
    hourly_cost: float | None = Field(
        None, gt=0, description="price of one machine per hour, in any currency, to report a run's cost (default: off)"
    )
    record_samples: bool = Field(False, description="log every sample served to samples.jsonl, to verify determinism")
