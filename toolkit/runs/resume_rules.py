"""The rules of --output-dir and --resume: which directory a run uses, and whether it may resume there."""

import contextlib
import itertools
import logging
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from toolkit.config.scales import Scales
from toolkit.config.settings import Settings
from toolkit.runs import checkpoint
from toolkit.runs.checkpoint import SCHEMA
from toolkit.runs.directory import FINISHED, RunDirectory
from toolkit.runs.new_run import way_on
from toolkit.runs.run_config import learned
from toolkit.system import storage
from toolkit.system.errors import InputError
from toolkit.system.run_lock import run_of

log = logging.getLogger(__name__)

RUNS = Path("runs")
FILES = ("weights", "cost_matrix")  # settings that name a file whose SHA-256 is a setting, too


def acquire_run(
    settings: Settings, recipe: str, fingerprint: Mapping[str, Any], before_new: Callable[[], Any] = lambda: None
) -> tuple[RunDirectory, Path | None, str]:
    """Lock the run directory. Returns it, the checkpoint to resume from, and a line for the user; rank 0 only.

    `fingerprint`: of settings, images and classes, as in a manifest. `before_new`: called, before anything is created,
    where no checkpoint is resumed; it raises InputError if the run cannot start. Creates only the directory and its
    lock. Raises InputError rather than change another run's files.
    """
    try:
        if settings.resume not in ("auto", "never"):
            return _named(settings, Path(settings.resume), recipe, fingerprint)
        if (run := _of_output_dir(settings)) is not None:
            return _given(settings, run, recipe, fingerprint, before_new)
        found = _unfinished(recipe, fingerprint, settings.keep) if settings.resume == "auto" else None
        if found is not None:
            line = f"continuing the unfinished {found.path} (--resume never starts a new one)"
            return found, found.store.recover(), line
        before_new()
        return _new(recipe, settings), None, ""
    except OSError as error:
        if not storage.concerns_place(error):
            raise
        raise InputError(f"--output-dir: {storage.line(error, settings.output_dir)}") from None


def check_start(settings: Settings, recipe: str, fingerprint: Mapping[str, Any]) -> None:
    """Raise the InputErrors of `acquire_run` that need no lock, for `--dry-run`; changes nothing."""
    if settings.resume not in ("auto", "never"):
        _check_named(settings, Path(settings.resume), recipe, fingerprint)
    elif (run := _of_output_dir(settings)) is not None:
        _check_given(settings, run, recipe, fingerprint)


def has_checkpoint(settings: Settings) -> bool:
    """Whether `--resume PATH` or `--output-dir` names a run with a checkpoint, so that nothing is loaded before."""
    if settings.resume not in ("auto", "never"):
        return True
    run = _of_output_dir(settings)
    return run is not None and run.store.newest() is not None


def begun_run(settings: Settings) -> Path | None:
    """The run that `--resume PATH` or `--output-dir` would continue; None if one would begin.

    Raises the InputErrors of `acquire_run` that need neither a lock nor a fingerprint.
    """
    if settings.resume not in ("auto", "never"):
        return _named_run(settings, Path(settings.resume)).path
    run = _of_output_dir(settings)
    return run.path if run is not None and _holds_run(settings, run) else None


def _of_output_dir(settings: Settings) -> RunDirectory | None:
    """The directory of `--output-dir`; that of a URL is local by now (`runs/mirror`)."""
    assert not isinstance(settings.output_dir, str)
    return None if settings.output_dir is None else RunDirectory(settings.output_dir, settings.keep)


def _new(recipe: str, settings: Settings) -> RunDirectory:
    """Create and lock a new directory; its name is unique even if several runs start within a second."""
    base = RUNS / f"{recipe}-{settings.model_name.replace('/', '_')}-{datetime.now():%Y%m%d-%H%M%S}"
    RUNS.mkdir(exist_ok=True)
    path = base
    for number in itertools.count(1):
        with contextlib.suppress(FileExistsError):
            path.mkdir()
            break
        path = base.with_name(f"{base.name}-{number}")
    run = RunDirectory(path, settings.keep)
    run.lock.acquire()
    return run


def _unfinished(recipe: str, fingerprint: Mapping[str, Any], keep: int) -> RunDirectory | None:
    """Lock the newest unfinished run in `runs/` with this recipe and fingerprint, not in use; None if there is none."""
    folders = [path for path in RUNS.glob(f"{recipe}-*") if path.is_dir()]
    for path in sorted(folders, key=lambda path: path.stat().st_mtime, reverse=True):
        run = RunDirectory(path, keep)
        try:
            newest = run.store.newest()
            if newest and run.exit_reason() not in FINISHED and not _changes(run, newest, fingerprint):
                run.lock.acquire()
                return run
        except InputError as error:  # another process uses it, or one of its files is damaged
            log.info("resume    not %s: %s", path, error)
    return None


def _given(
    settings: Settings,
    run: RunDirectory,
    recipe: str,
    fingerprint: Mapping[str, Any],
    before_new: Callable[[], Any],
) -> tuple[RunDirectory, Path | None, str]:
    """Apply `--output-dir`: a new or empty folder, or one that holds a run."""
    _check_given(settings, run, recipe, fingerprint)
    if not run.config():
        before_new()
        run.lock.acquire()
        return run, None, ""
    if run.store.newest() is None:
        before_new()
    run.lock.acquire()
    newest = run.store.recover()
    if newest is None and run.had_saved():
        run.lock.release()
        raise _gone(run)
    line = f"continuing from {newest}" if newest else "no checkpoint was committed yet: starting over"
    return run, newest, line


def _holds_run(settings: Settings, run: RunDirectory) -> bool:
    """Whether the folder of --output-dir holds a run, which may be continued; False if it is empty or new."""
    if not run.config():
        if not run.is_empty():
            raise InputError(f"--output-dir {run.path}: the folder holds other files; give an empty or a new one")
        return False
    if settings.resume == "never":
        raise InputError(
            f"--output-dir {run.path} holds a run and --resume never forbids to continue it: choose another directory"
        )
    return True


def _check_given(settings: Settings, run: RunDirectory, recipe: str, fingerprint: Mapping[str, Any]) -> None:
    if not _holds_run(settings, run):
        return
    _check_same(run, run.store.newest(), recipe, fingerprint)
    if run.store.newest() is None and run.had_saved():
        raise _gone(run)


def _gone(run: RunDirectory) -> InputError:
    return InputError(
        f"{run.store.root}: its checkpoints are gone, though the run had saved: put them back, or take another "
        "--output-dir"
    )


def _named(
    settings: Settings, path: Path, recipe: str, fingerprint: Mapping[str, Any]
) -> tuple[RunDirectory, Path | None, str]:
    """Apply `--resume PATH`: a run, or one of its checkpoints."""
    _check_named(settings, path, recipe, fingerprint)
    run = RunDirectory(run_of(path), settings.keep)
    is_checkpoint = run.path != path
    run.lock.acquire()
    if is_checkpoint and run.went_back_to() != path.name:
        run.go_back_to(path)
        return run, path, f"continuing from {path}"
    start = run.store.recover()
    return run, start, f"continuing from {start}" + (f", which comes after {path}" if is_checkpoint else "")


def _named_run(settings: Settings, path: Path) -> RunDirectory:
    """The run of --resume PATH."""
    run = RunDirectory(run_of(path), settings.keep)
    is_checkpoint = run.path != path
    if not (checkpoint.is_committed(path) if is_checkpoint else run.store.newest()):
        raise InputError(f"--resume {path}: neither auto, never, nor a run or checkpoint that was committed")
    given = _of_output_dir(settings)
    if given is not None and given.path.resolve() != run.path.resolve():
        raise InputError(f"--resume {path} continues the run in {run.path}: drop --output-dir {settings.output_dir}")
    if is_checkpoint and run.exit_reason() in FINISHED:
        raise InputError(
            f"--resume {path}: that run is finished; going back would lose its end: go back in a copy "
            "of it without summary.json and .dashboard-*.json"
        )
    return run


def _check_named(settings: Settings, path: Path, recipe: str, fingerprint: Mapping[str, Any]) -> None:
    run = _named_run(settings, path)
    is_checkpoint = run.path != path
    _check_same(run, path if is_checkpoint else run.store.newest(), recipe, fingerprint)
    if is_checkpoint:
        checkpoint.check(path)


def _check_same(run: RunDirectory, start: Path | None, recipe: str, fingerprint: Mapping[str, Any]) -> None:
    changes = _changes(run, start, fingerprint)
    if changes:
        raise InputError(
            f"{run.path} was trained with {'; '.join(changes)}. A run keeps its settings and data: go back to those, "
            f"or {way_on(run, recipe, fingerprint['config'])}"
        )


def _changes(run: RunDirectory, start: Path | None, fingerprint: Mapping[str, Any]) -> list[str]:
    """What changed since the run was started: settings and, if it has a checkpoint `start`, images and classes.

    Each is a text such as `--epochs 3, now 6`.
    """
    changes = difference(run.config(), fingerprint["config"])
    saved = checkpoint.read_manifest(start) if start else {"schema": SCHEMA, **fingerprint}
    if saved["schema"] != SCHEMA:
        return [*changes, f"checkpoints of format {saved['schema']}, now {SCHEMA}"]
    changes += changed_images(saved["data"], fingerprint["data"])
    if saved["classes"] != fingerprint["classes"]:
        changes.append(f"the classes {_brief(saved['classes'])}, now {_brief(fingerprint['classes'])}")
    return changes


def changed_images(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Differences between two `Splits.digests`, one text each."""
    changes = []
    for split in before:
        if before[split]["images"] != now[split]["images"]:
            changes.append(f"{before[split]['images']} {split} images, now {now[split]['images']}")
        elif before[split] != now[split]:
            changes.append(f"as many {split} images, but other names, labels, sizes or order")
    return changes


def _brief(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f", ... ({len(names)} in all)" if len(names) > 5 else "")


def difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Changed settings that affect the trained model, as `--name old, now new`; `cache: auto` keeps the old cache.

    A file of weights or costs is compared by its contents, wherever it is; by its name if the contents are unknown.
    """
    same, other_contents = {*map(_digest, FILES)}, []
    for name in FILES:
        contents = [config.get(_digest(name)) for config in (old, new)]
        same |= {name} if all(contents) and contents[0] == contents[1] else set()
        if all(contents) and contents[0] != contents[1] and old[name] == new[name]:
            other_contents.append(f"other contents of --{name.replace('_', '-')} {new[name]}")
    names = [
        name for name in learned({**old, **new}) if (name, new.get(name)) != ("cache", "auto") and name not in same
    ]
    changes = [_change(name, old.get(name), new.get(name)) for name in names if old.get(name) != new.get(name)]
    return [*changes, *other_contents]


def _digest(name: str) -> str:
    """The setting that holds the SHA-256 of the file that another one names."""
    return f"{name}_sha256"


def _change(name: str, old: Any, new: Any) -> str:
    known = name in Settings.model_fields or name in Scales.model_fields
    flag = f"--{name.replace('_', '-')}" if known else name  # a field of an own strategy has no flag

    def given(value: Any) -> str:
        if value in (None, {}, []):
            return f"no {flag}"
        if known and isinstance(value, bool):
            return flag if value else f"--no-{flag[2:]}"
        return f"{flag} {_plain(value)}"

    alike = not any(value in (None, {}, []) or isinstance(value, bool) for value in (old, new))
    return f"{given(old)}, now {_plain(new) if alike else given(new)}"


def _plain(value: Any) -> str:
    """A value as a command line has it."""
    if isinstance(value, Mapping):
        return " ".join(f"{key}={part}" for key, part in value.items())
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)
