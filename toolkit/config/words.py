"""What is done to the words of a command line before they are parsed. Imports no torch."""

from collections.abc import Collection, Sequence

from toolkit.config.base import RULES
from toolkit.config.yaml_values import Plain, fit
from toolkit.system.errors import InputError

ALIASES = {"checkpoint_dir": "output_dir"}  # in --config files too


def flag_of(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def name_of(flag: str) -> str:
    return flag.removeprefix("--").replace("-", "_")


def renamed(words: Sequence[str]) -> list[str]:
    """The words with the settings' own names for their aliases."""
    flags = {spelled: flag_of(name) for alias, name in ALIASES.items() for spelled in (f"--{alias}", flag_of(alias))}
    parts = [word.partition("=") for word in words]
    return [f"{flags.get(flag, flag)}{sign}{value}" for flag, sign, value in parts]


def plain_switches(words: Sequence[str], names: Collection[str]) -> list[str]:
    """The words of a command line with `--amp=off` as `--no-amp`, as sweeps and schedulers write switches."""

    def plain(word: str) -> str:
        flag, given, value = word.partition("=")
        if not given or name_of(flag) not in names:
            return word
        on = fit(Plain(value), bool)
        if not isinstance(on, bool):
            raise InputError(f"{flag} {value}: {RULES['bool_parsing']}")
        return flag if on else f"--no-{flag.removeprefix('--')}"

    return [*map(plain, words)]


def joined(words: Sequence[str], names: Collection[str]) -> list[str]:
    """The words with all values of a repeated KEY=VALUE flag behind its first place; tyro would keep the last only.

    `names`: of the settings with such flags.
    """
    groups: list[list[str]] = [[]]  # a flag and its values each
    repeated: dict[str, list[str]] = {}
    current = groups[0]
    for word in words:
        flag, _, value = word.partition("=")
        if flag.startswith("--") and name_of(flag) in names:
            if name_of(flag) not in repeated:
                groups.append(repeated.setdefault(name_of(flag), [flag]))
            current = repeated[name_of(flag)]
            current += [value] if value else []
        elif word.startswith("--"):
            current = [word]
            groups.append(current)
        else:
            current.append(word)
    return [word for group in groups for word in group]


def stray(word: str, words: Sequence[str]) -> str:
    """The error for a word that no flag takes as its value."""
    flag = next((f" after {other}" for other in reversed(words[: words.index(word)]) if other.startswith("--")), "")
    return f"{word}{flag} belongs to no flag: write --flag=value, and lists with commas (16,32)"
