"""Labelled images for a finished run: its own data as it was split, or other data with the same classes."""

from collections.abc import Sequence
from pathlib import Path

from toolkit.config.settings import HUB
from toolkit.data.loading.reader import Pixels
from toolkit.data.sources.files import index_files
from toolkit.data.sources.folders import TRAIN, class_folders, find_split, list_images
from toolkit.data.sources.index import Index, Splits
from toolkit.data.sources.shards import holds_shards
from toolkit.data.sources.splits import find_splits, open_splits
from toolkit.runs.directory import changed_images
from toolkit.system import files
from toolkit.system.errors import InputError
from toolkit.tools.loaded_run import Trained


def own_splits(trained: Trained, data_root: str | None = None) -> Splits:
    """The run's own data, which may lie elsewhere now; raises InputError where it is gone or has other classes."""
    root = trained.settings.data_root
    folder = Path(root.removeprefix(HUB))
    if data_root is None and folder.is_absolute() and not folder.exists():
        raise InputError(f"{root}: the data of {trained.directory.path} is not there: --data-root says where it is now")
    settings = trained.settings.model_copy(update={"data_root": data_root or root})
    splits = open_splits(settings, trained.strategy.selection().sizes[-1])
    _check_classes(settings.data_root, splits.classes, trained.classes)
    return splits


def moved_images(trained: Trained, data_root: str) -> dict[str, Pixels] | None:
    """The run's own images by split, where a folder holds just these; else None."""
    try:
        splits = own_splits(trained, data_root)
    except InputError:
        return None
    return _pixels(splits) if splits.digests() == trained.manifest().get("data") else None


def own_images(trained: Trained) -> dict[str, Pixels]:
    """The run's own images by split, train among them.

    Raises InputError as `own_splits`, and where they changed: validation images that were held out would be others
    then, some of them trained on.
    """
    splits = own_splits(trained)
    if changes := changed_images(trained.manifest().get("data", {}), splits.digests()):
        raise InputError(
            f"{trained.directory.path}: the data is not as it was trained on ({'; '.join(changes)}): restore "
            "it, or evaluate what is there now by --data-root and --split"
        )
    return _pixels(splits)


def _pixels(splits: Splits) -> dict[str, Pixels]:
    return {name: Pixels(index) for name, index in splits.all().items()}


def other_images(trained: Trained, data_root: str) -> dict[str, Pixels]:
    """Other data by split, or a folder of class folders by its own name; raises InputError on other classes."""
    root = Path(data_root).expanduser()
    if root.is_dir() and not holds_shards(root) and not find_split(root, TRAIN) and not find_split(root, TRAIN, ".csv"):
        return {root.resolve().name: Pixels(_class_folders(root, trained))}
    fresh = {"data_root": data_root, "val_split": None, "synthetic_size": None, "synthetic_count": None}
    found, source = find_splits(trained.settings.model_copy(update=fresh), trained.strategy.selection().sizes[-1])
    _check_classes(source, found.classes, trained.classes)
    named = {"train": found.train, "val": found.val, "test": found.test}
    return {name: Pixels(index) for name, index in named.items() if index is not None}


def _class_folders(root: Path, trained: Trained) -> Index:
    """Images of some or all of the classes."""
    names: list[str] = []
    labels: list[int] = []
    folders = class_folders(root)
    if not folders or not {*folders} <= {*trained.classes}:
        _check_classes(str(root), folders, trained.classes)
    for folder in folders:
        images = list_images(root / folder).images
        names += [f"{folder}/{image}" for image in images]
        labels += [trained.classes.index(folder)] * len(images)
    if not names:
        raise InputError(f"--data-root {root}: there are no images in its class folders")
    return index_files(root, names, labels, trained.settings.cache_dir or files.cache_dir())


def _check_classes(source: str, classes: Sequence[str], known: Sequence[str]) -> None:
    """Raises InputError unless the names are the run's, in its order."""
    if tuple(classes) == tuple(known):
        return
    unknown, lacking = sorted({*classes} - {*known}), sorted({*known} - {*classes})
    told = [f"{name!r} is no class of the run" for name in unknown[:3]] + [
        f"{name!r} is missing" for name in lacking[:3]
    ]
    raise InputError(f"--data-root {source}: other classes than the run's: {', '.join(told) or 'in another order'}")
