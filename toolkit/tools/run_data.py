"""Labeled images for a finished run: its own data with the same split, or other data with the same classes."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from toolkit.config.choices import Split
from toolkit.config.data_roots import HUB
from toolkit.config.settings import Settings
from toolkit.data.loading.python_data import find_data, label_reader, open_data
from toolkit.data.loading.reader import ImageReader
from toolkit.data.sources.detect import own_source
from toolkit.data.sources.files import index_files
from toolkit.data.sources.index import Index, Splits
from toolkit.data.sources.labels import check_in_range
from toolkit.data.sources.layouts import innermost, is_unsplit
from toolkit.data.sources.listing import class_folders, composed, list_images
from toolkit.data.sources.python_data import check_names, given_names, index_split
from toolkit.data.sources.splits import with_validation
from toolkit.runs.resume_rules import changed_images
from toolkit.system import places
from toolkit.system.errors import InputError
from toolkit.tools.loaded_run import LoadedRun


def own_splits(loaded: LoadedRun, data_root: str | None = None, data: Mapping[str, Any] | None = None) -> Splits:
    """The run's own data; `data_root`: its new path; `data`: data sets passed from Python.

    Raises InputError if it is missing or its classes differ.
    """
    check_one(data_root, data)
    root = loaded.settings.data_root
    folder = Path(root.removeprefix(HUB))
    if data_root is None and data is None and folder.is_absolute() and not folder.exists():
        raise InputError(f"{root}: the data of {loaded.directory.path} is not there: --data-root says where it is now")
    settings = _lenient(loaded, {"data_root": data_root or root})
    splits = open_data(settings, loaded.strategy.selection().sizes[-1], data)
    where = "data" if data else f"--data-root {settings.data_root}"
    _check_classes(where, splits.classes, loaded.classes)
    _check_labels(where, splits.all(), loaded)
    return splits


def check_one(data_root: str | None, data: Any) -> None:
    """Raise InputError if both are given."""
    if data_root is not None and data is not None:
        raise InputError(f"--data-root {data_root} would be ignored: data= is given; drop one of them")


def _lenient(loaded: LoadedRun, changes: Mapping[str, Any]) -> Settings:
    """The run's settings for data whose unreadable images are left out anyway."""
    return loaded.settings.model_copy(update={"on_bad_sample": "quarantine", **changes})


def moved_images(loaded: LoadedRun, data_root: str) -> dict[str, ImageReader] | None:
    """The run's own images by split if `data_root` holds exactly these; else None."""
    try:
        splits = own_splits(loaded, data_root)
    except InputError:
        return None
    return _readers(splits) if splits.digests() == loaded.manifest().get("data") else None


def own_images(loaded: LoadedRun) -> dict[str, ImageReader]:
    """The run's own images by split, including train.

    Raises InputError as `own_splits` does, and if the images changed: the held-out validation images would then be
    different ones, and some of them were trained on.
    """
    splits = own_splits(loaded)
    if changes := changed_images(loaded.manifest().get("data", {}), splits.digests()):
        raise InputError(
            f"{loaded.directory.path}: the data is not as it was trained on ({'; '.join(changes)}): restore "
            "it, or evaluate what is there now by --data-root and --split"
        )
    return _readers(splits)


class EvaluationData(NamedTuple):
    """`images` to evaluate, by split; `own`: the run's images by split, empty if not needed.

    `is_own`: `images` are a subset of `own`.
    """

    images: dict[str, ImageReader]
    own: dict[str, ImageReader]
    is_own: bool


def evaluation_data(
    loaded: LoadedRun,
    data_root: str | None,
    split: Split | None,
    data: Mapping[str, Any] | None,
    columns: Mapping[str, Any],
    *,
    needs_own: bool,
) -> EvaluationData:
    """The run's own images, possibly moved to `data_root`, or other images at `data_root`, or those of `data`.

    `split` None: all splits except train. `columns`: settings of `data_root` that differ from the run's. Raises
    InputError if there are none or their classes differ from the run's.
    """
    check_one(data_root, data)
    if data is not None:
        return _passed_data(loaded, data, split, needs_own)
    moved = moved_images(loaded, data_root) if data_root else None
    if data_root is None or moved is not None:
        own = moved or own_images(loaded)
        return EvaluationData(_of_split(own, split), own, is_own=True)
    own = own_images(loaded) if needs_own else {}
    return EvaluationData(_of_split(other_images(loaded, data_root, columns), split), own, is_own=False)


def _passed_data(loaded: LoadedRun, data: Mapping[str, Any], split: Split | None, needs_own: bool) -> EvaluationData:
    """Data sets passed from Python: the run's own if they hold exactly its images, else others."""
    check_names(data)
    settings, found = _lenient(loaded, {"val_split": None} if "val" in data else {}), {}
    if "train" in data:
        all_splits = find_data(settings, loaded.strategy.selection().sizes[-1], data)
        _check_classes("data", all_splits.classes, loaded.classes)
        _check_labels("data", all_splits.splits(), loaded)
        splits = with_validation(all_splits, settings)
        if splits.digests() == loaded.manifest().get("data"):
            own = _readers(splits)
            return EvaluationData(_of_split(own, split), own, is_own=True)
        found = all_splits.splits()
    classes = len(loaded.classes) if loaded.task.several_labels else None
    for name in [name for name in data if name not in found]:
        found[name] = index_split(name, data[name], label_reader(settings), strict=False, classes=classes)
        _check_labels("data", {name: found[name]}, loaded)
        check_in_range(found[name], len(loaded.classes), f"data: {name}")
        _check_classes(f"data: {name}", given_names(data[name]) or loaded.classes, loaded.classes)
    images = {name: ImageReader(index.seen_by(settings)) for name, index in found.items()}
    own = own_images(loaded) if needs_own else {}
    return EvaluationData(_of_split(images, split), own, is_own=False)


def _of_split(images: dict[str, ImageReader], split: Split | None) -> dict[str, ImageReader]:
    names = [split] if split else [name for name in images if name != "train"]
    if not names or names[0] not in images:
        there = ", ".join(images)
        raise InputError(f"--split {split or 'val or test'}: the data has none; give one of: {there}")
    return {name: images[name] for name in names}


def _readers(splits: Splits) -> dict[str, ImageReader]:
    return {name: ImageReader(index) for name, index in splits.all().items()}


def other_images(loaded: LoadedRun, data_root: str, columns: Mapping[str, Any]) -> dict[str, ImageReader]:
    """Other data by split, or a folder of class folders under its own name; raises InputError if classes differ."""
    root = places.expanded(data_root)
    if root.is_dir() and not {*map(composed, class_folders(root))} & {*map(composed, loaded.classes)}:
        root = innermost(root)
    if root.is_dir() and own_source(str(root.absolute())) is None and is_unsplit(root):
        name, index = root.resolve().name, _class_folders(root, loaded)
        _check_labels(f"--data-root {data_root}", {name: index}, loaded)
        return {name: ImageReader(index)}
    drawn = dict.fromkeys(("synthetic_size", "synthetic_count", "synthetic_classes"))
    fresh = {"data_root": data_root, "val_split": None, **drawn, **columns}
    found = find_data(_lenient(loaded, fresh), loaded.strategy.selection().sizes[-1])
    _check_classes(f"--data-root {found.name}", found.classes, loaded.classes)
    _check_labels(f"--data-root {found.name}", found.splits(), loaded)
    return {name: ImageReader(index) for name, index in found.splits().items()}


def _class_folders(root: Path, loaded: LoadedRun) -> Index:
    """Index of the images in class folders; the classes may be a subset of the run's."""
    names: list[str] = []
    labels: list[int] = []
    folders = class_folders(root)
    known = {composed(name): label for label, name in enumerate(loaded.classes)}
    if not folders or not {*map(composed, folders)} <= {*known}:
        _check_classes(f"--data-root {root}", folders, loaded.classes)
    for folder in folders:
        images = list_images(root / folder).images
        names += [f"{folder}/{image}" for image in images]
        labels += [known[composed(folder)]] * len(images)
    if not names:
        raise InputError(f"--data-root {root}: there are no images in its class folders")
    index = index_files(root, names, labels, loaded.settings.cache_dir or places.cache_dir())
    index = index.with_rows(len(loaded.classes)) if loaded.task.several_labels else index
    return index.seen_by(loaded.settings)


def _check_classes(where: str, classes: Sequence[str], known: Sequence[str]) -> None:
    """Raise InputError unless class names and their order are the run's."""
    classes, known = (tuple(map(composed, names)) for names in (classes, known))
    if classes == known:
        return
    unknown, lacking = sorted({*classes} - {*known}), sorted({*known} - {*classes})
    parts = [f"{name!r} is no class of the run" for name in unknown[:3]] + [
        f"{name!r} is missing" for name in lacking[:3]
    ]
    raise InputError(f"{where}: other classes than the run's: {', '.join(parts) or 'in another order'}")


def _check_labels(where: str, indices: Mapping[str, Index], loaded: LoadedRun) -> None:
    """Raise InputError unless the labels are of the kind that the run's task takes."""
    for split, index in indices.items():
        try:
            loaded.task.check_labels(index.labels, len(loaded.classes))
        except InputError as error:
            raise InputError(f"{where}: {split}: {error}") from None
