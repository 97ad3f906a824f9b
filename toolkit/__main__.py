"""`toolkit COMMAND ...`, also as `python -m toolkit` and behind a launcher's `-m toolkit`."""

import importlib
import importlib.metadata
import sys
from collections.abc import Sequence

from toolkit.commands import TABLE, Entry
from toolkit.system import console
from toolkit.system.errors import InputError, nearest
from toolkit.system.exit_codes import exit_code

ENTRIES = [entry for group in TABLE.values() for entry in group]


def listed(entries: Sequence[Entry]) -> str:
    wide = max(len(entry.words) for entry in ENTRIES)
    return "\n".join(f"  toolkit {entry.words:{wide}}  {entry.summary}" for entry in entries)


def overview() -> str:
    """All commands, as `toolkit --help` shows them."""
    groups = [f"{title}\n{listed(entries)}" for title, entries in TABLE.items()]
    last = "Each has --help. Several processes: toolkit launch train multi ..."
    return "\n\n".join(["usage: toolkit COMMAND ...", *groups, last])


def find(words: Sequence[str]) -> Entry:
    """The command that the first words name; raises InputError with the nearest one."""
    for entry in ENTRIES:
        names = entry.words.split()
        if [*words[: len(names)]] == names:
            return entry
    if words[0] == "train":
        chosen = f" {words[1]}" if len(words) > 1 else ""
        raise InputError(f"toolkit train{chosen}: say which: toolkit train multi, single or finetune")
    raise InputError(
        f"there is no command {words[0]}{nearest(words[0], {entry.words.split()[0] for entry in ENTRIES})}"
    )


def main(argv: Sequence[str] | None = None) -> int:
    words = sys.argv[1:] if argv is None else [*argv]
    asked = words[1:] if words[:1] == ["train"] else words
    if not words or asked[:1] in (["-h"], ["--help"]):
        return exit_code(lambda: console.say(overview(), sys.stdout))
    if words[0] == "--version":
        return exit_code(lambda: console.say(f"toolkit {importlib.metadata.version('toolkit')}", sys.stdout))
    found: list[Entry] = []
    if code := exit_code(lambda: found.append(find(words))):
        return code
    command = importlib.import_module(f"toolkit.commands.{found[0].module}")
    return command.main(words[len(found[0].words.split()) :])


if __name__ == "__main__":
    sys.exit(main())
