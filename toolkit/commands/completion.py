"""Print the completion of `toolkit` for a shell. To have it in every bash: add the line
`eval "$(toolkit completion bash)"` to ~/.bashrc.

Example: toolkit completion bash > ~/.local/share/bash-completion/completions/toolkit
"""

import contextlib
import io
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union

import tyro

from toolkit.commands import train_finetune, train_multi, train_single
from toolkit.config import tool_settings as tools
from toolkit.config.cli import parse_section, section_grammar, training_grammar
from toolkit.system import console
from toolkit.system.exit_codes import exit_code

Grammar = Any  # a type of tyro
Tree = Mapping[str, Any]  # of grammars and trees


@dataclass(frozen=True)
class Launch:
    """What most launches give; the launcher's own parser knows the rest."""

    config_file: Annotated[Path | None, tyro.conf.arg(name="config_file")] = None
    num_processes: Annotated[int | None, tyro.conf.arg(name="num_processes")] = None


def grammars() -> Tree:
    """What each command takes, by its words."""
    return {
        "train": {
            "multi": training_grammar(train_multi.SCALE_FLAGS),
            "single": training_grammar(train_single.SCALE_FLAGS),
            "finetune": training_grammar(train_finetune.SCALE_FLAGS),
        },
        "launch": Launch,
        "plan": training_grammar(("img_size", *train_multi.SCALE_FLAGS)),
        "verify-resume": section_grammar(tools.Verify, "command"),
        "evaluate": section_grammar(tools.Evaluate, "run"),
        "compare": section_grammar(tools.Compare, "run", "others"),
        "predict": section_grammar(tools.Predict, "run", "paths"),
        "export": section_grammar(tools.Export, "run"),
        "report": section_grammar(tools.Report, "run"),
        "scan": section_grammar(tools.Scan, "data"),
        "benchmark": section_grammar(tools.Benchmark),
        "dashboard": section_grammar(tools.WorkspaceLayout, "project"),
        "completion": section_grammar(tools.Completion, "shell"),
    }


def union(tree: Tree) -> Grammar:
    """All commands of a tree as one type, which tyro completes."""
    parts = {name: union(part) if isinstance(part, Mapping) else part for name, part in tree.items()}
    return Union[tuple(Annotated[part, tyro.conf.subcommand(name)] for name, part in parts.items())]  # noqa: UP007


def completion(shell: Literal["bash", "zsh"]) -> None:
    words, printed = ["--tyro-print-completion", shell], io.StringIO()
    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(printed):
        tyro.cli(union(grammars()), prog="toolkit", config=(tyro.conf.OmitArgPrefixes,), args=words)
    console.say(printed.getvalue().rstrip("\n"), sys.stdout)


def print_completion(argv: Sequence[str]) -> None:
    shell = parse_section(argv, "toolkit completion", __doc__, tools.Completion, "shell").shell
    completion(shell)


def main(argv: Sequence[str]) -> int:
    return exit_code(lambda: print_completion(argv))
