"""What is done to the words of a command line before they are parsed. Imports no torch."""

import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from toolkit.config.base import RULES, hint
from toolkit.config.data_roots import BUILT_IN, HUB, is_url
from toolkit.config.yaml_values import Plain, fit
from toolkit.system.errors import InputError
from toolkit.system.places import expanded

NUMBER = re.compile(r"-?[\d.]+")

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
        name = name_of(flag)
        if given and name.startswith("no_") and name.removeprefix("no_") in names:
            raise InputError(f"{flag} takes no value: write {flag}, or --{flag.removeprefix('--no-')}={value}")
        if not given or name not in names:
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


def spaced(words: Sequence[str], lists: Mapping[str, Collection[str]], *, paths: bool = False) -> list[str]:
    """The words of a command line with a list in one word: `--scales 64 112 photos` as `--scales`, `64 112`, `photos`.

    `lists`: settings that are lists -> the values of each, empty for numbers. `paths`: whether words without a flag
    are paths, which a number may be, too.
    """
    result: list[str] = []
    setting, flag, first = "", "", False  # the list that is read, and whether its first value comes next
    for word in words:
        if word.startswith("--"):
            flag, assigned, _ = word.partition("=")
            setting, first = name_of(flag), not assigned
        elif setting not in lists or first or not _in_list(word, lists[setting]):
            setting, first = setting if first else "", False
        elif paths and Path(word).exists():
            raise InputError(f"{word} after {flag}: a value or a path? Write ./{word}, or the values with commas")
        else:
            result[-1] += f" {word}"
            continue
        result.append(word)
    return result


def _in_list(word: str, values: Collection[str]) -> bool:
    parts = [part for part in word.split(",") if part]
    return all(part in values if values else NUMBER.fullmatch(part) for part in parts)


def unknown_flag(unknown: Sequence[str]) -> str:
    """The first flag among the words that are not known, without its value; empty if there is none."""
    flags = [word.partition("=")[0] for word in unknown if word.startswith("-") and not NUMBER.match(word)]
    return flags[0] if flags else ""


def bare_path(unknown: Sequence[str], words: Sequence[str], flags: Collection[str]) -> str:
    """The one word of a training without a flag, which is the path of its data; raises InputError for further ones.

    It comes first, or is there: else it may be a part of a value that lacks its quotes. `flags`: all that are known.
    """
    for word in unknown:
        name, assigned, _ = word.partition("=")
        if assigned and not _is_there(word) and (meant := hint(flag_of(name), flags)):
            raise InputError(f"there is no flag {name}{meant}")
    path, *more = unknown
    if path != words[0] and not _is_there(path):
        raise InputError(f"{stray(path, words)}, and --data-root=PATH")
    if more:
        raise InputError(f"{path} and {more[0]}: a run has one --data-root; put quotes around a path with blanks")
    return path


def _is_there(word: str) -> bool:
    """Whether a word can only be the path of data."""
    return word in BUILT_IN or is_url(word) or word.startswith(HUB) or expanded(word).exists()


def stray(word: str, words: Sequence[str]) -> str:
    """The error for a word that no flag takes as its value."""
    before = words[: words.index(word)] if word in words else []  # tyro splits --flag=value
    flag = next((f" after {other}" for other in reversed(before) if other.startswith("--")), "")
    return f"{word}{flag} belongs to no flag: write --flag=value, with quotes around blanks"
