"""How to start a new run from the weights of another: the user's own command with another directory."""

import itertools
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from toolkit.runs.directory import RunDirectory
from toolkit.system import preemption

REPLACED = {"--output-dir", "--checkpoint-dir", "--resume", "--weights", "--weights-sha256"}  # with their values
DROPPED = {"--pretrained", "--no-pretrained"}
COMMAND = "toolkit"
RECIPES = {"single_scale": ["train", "single"], "multiscale": ["train", "multi"], "finetune": ["train", "finetune"]}
OF_MODEL = ("arch", "model_from", "model_kwargs")


def way_on(run: RunDirectory, recipe: str, config: Mapping[str, Any]) -> str:
    """What to do instead of continuing `run` with the settings in `config`: a command to paste, or what to call."""
    before = run.config()
    if not run.best.exists() or any(before.get(name) != config.get(name) for name in OF_MODEL):
        return "start another with --output-dir"
    start, number = "start a new run from its weights", itertools.count(2)
    other = next(path for i in number if not (path := Path(f"{run.path}-{i}")).exists())
    if not _is_recipe(recipe):  # called from Python
        return f"{start}: weights={str(run.path)!r}, output_dir={str(other)!r}"
    words = [*_kept(sys.argv[1:]), "--weights", str(run.path), "--output-dir", str(other)]
    if any(word.partition("=")[0] == "--config" for word in words):  # which may name another run
        words += ["--resume", "auto"]
    if preemption.is_launched():
        program = ["-m", COMMAND] if _is_command() else [sys.argv[0]]
        return f"{start}, with the same launcher before these words: {shlex.join([*program, *words])}"
    program = [COMMAND] if _is_command() else sys.orig_argv[: len(sys.orig_argv) - len(sys.argv[1:])]
    return f"{start}: {shlex.join([*program, *words])}"


def _is_command() -> bool:
    """Whether this process is `toolkit ...` or `python -m toolkit ...`."""
    return Path(sys.argv[0]).parts[-2:] == (COMMAND, "__main__.py") or Path(sys.argv[0]).stem == COMMAND


def _is_recipe(recipe: str) -> bool:
    """Whether this process is the recipe, as a script or as a command."""
    return Path(sys.argv[0]).stem == recipe or (_is_command() and sys.argv[1:3] == RECIPES.get(recipe))


def _kept(words: Sequence[str]) -> Iterator[str]:
    """The words of a command line, without the flags that the new run sets itself."""
    rest = iter(words)
    for word in rest:
        name, assigned, _ = word.partition("=")
        flag = name.replace("_", "-")
        if flag in REPLACED and not assigned:
            next(rest, None)
        elif flag not in REPLACED | DROPPED:
            yield word
