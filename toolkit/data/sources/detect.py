"""Which kind of data set `--data-root` names. Looks at names only; no image, manifest or shard is opened."""

from enum import Enum, auto
from pathlib import Path

from toolkit.config.settings import HUB, SYNTHETIC, is_url
from toolkit.data.sources.folders import TRAIN, class_folders, find_split


class SourceKind(Enum):
    """What a data root is. All but the first three are found by looking at a folder of this machine."""

    SYNTHETIC = auto()  # the built-in images
    URL = auto()  # tar shards in a bucket
    HUB = auto()  # a Hugging Face dataset
    MISSING = auto()  # no such folder
    MANIFESTS = auto()  # train.csv
    SHARDS = auto()  # train/*.tar or train*.tar
    FOLDERS = auto()  # train/CLASS/
    INCOMPLETE = auto()  # train or train.csv is there, but is none of the above
    UNSPLIT = auto()  # a folder without any train: perhaps class folders


def detect(data_root: str | Path) -> SourceKind:
    """The kind of a data root; of a `Path`, which is never a URL or a reserved name, the kind of that folder.

    Raises OSError where a folder cannot be entered.
    """
    if isinstance(data_root, str):
        if data_root == SYNTHETIC:
            return SourceKind.SYNTHETIC
        if is_url(data_root):
            return SourceKind.URL
        if data_root.startswith(HUB):
            return SourceKind.HUB
    root = Path(data_root).expanduser()
    if not root.is_dir():
        return SourceKind.MISSING
    if (root / "train.csv").is_file():
        return SourceKind.MANIFESTS
    train = root / "train"
    if train.is_dir():
        if class_folders(train):  # tars beside or among them are what they were made from
            return SourceKind.FOLDERS
        return SourceKind.SHARDS if any(train.glob("[!.]*.tar")) else SourceKind.INCOMPLETE
    if any(root.glob("train*.tar")):
        return SourceKind.SHARDS
    named = find_split(root, TRAIN) or find_split(root, TRAIN, ".csv")
    return SourceKind.INCOMPLETE if named else SourceKind.UNSPLIT
