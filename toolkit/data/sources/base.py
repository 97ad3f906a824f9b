"""The interface that every source implements."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit.data.sources.index import Found


@dataclass(frozen=True)
class SourceOptions:
    """What a source may need besides the data root.

    `cache`: a folder for what it keeps between runs. `cache_bytes`: limit for parts of remote files in it. `largest`:
    the largest size of the run, px. `seed`: of the run. `synthetic_...`: size, count and classes of the built-in data.
    `label_column`: of several columns. `hf_config`: of several configurations of a Hugging Face data set.
    `several_labels`: an image has any number of classes.
    """

    cache: Path
    cache_bytes: int
    largest: int
    seed: int = 0
    synthetic_size: int | None = None
    synthetic_count: int | None = None
    synthetic_classes: int | None = None
    label_column: str | None = None
    hf_config: str | None = None
    several_labels: bool = False


class Source(ABC):
    """A kind of data set; made without arguments, once for each question."""

    @abstractmethod
    def recognizes(self, data_root: str) -> bool:
        """Whether `--data-root` is of this kind. No image or shard is opened; of CSV files the first line."""

    @abstractmethod
    def read(self, data_root: str, options: SourceOptions) -> Found | Mapping[str, Any]:
        """The index of each split, or data sets as `train(data=...)` takes them.

        Raises InputError naming the folder, file or row at fault.
        """
