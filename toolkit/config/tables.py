"""The entries of every seam, by name: a class, or "module:attribute", which is imported when first used.

A new entry is one file and one line here. A user's own joins them through `toolkit.register`, in a module that
`--import` names, or is given as "module:attribute" of such a module. Free of torch.
"""

import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from toolkit.system.errors import InputError, first_line, nearest

Seam = Literal["strategy", "task", "schedule", "dashboard", "source"]

CLASSIFICATION = "classification"  # the task of one class an image
MULTI_LABEL = "multilabel"  # the task of several classes an image, for messages that advise it

TABLES: dict[Seam, dict[str, Any]] = {
    "strategy": {
        "single": "toolkit.strategies.single:SingleScale",
        "progressive": "toolkit.strategies.progressive:Progressive",
        "progressive-compute": "toolkit.strategies.progressive_compute:ProgressiveCompute",
        "simultaneous": "toolkit.strategies.simultaneous:Simultaneous",
        "progressive-simultaneous": "toolkit.strategies.progressive_simultaneous:ProgressiveSimultaneous",
        "sampled": "toolkit.strategies.sampled:Sampled",
        "sandwich": "toolkit.strategies.sandwich:Sandwich",
    },
    "task": {
        CLASSIFICATION: "toolkit.models.classification:Classification",
        MULTI_LABEL: "toolkit.models.multilabel:MultiLabel",
    },
    "schedule": {
        "cosine": "toolkit.training.schedules:Cosine",
        "constant": "toolkit.training.schedules:Constant",
        "wsd": "toolkit.training.schedules:WarmupStableDecay",
        "plateau": "toolkit.training.schedules:Plateau",
    },
    "dashboard": {
        "wandb": "toolkit.runs.dashboards.on_wandb:OnWandb",
        "tensorboard": "toolkit.runs.dashboards.on_tensorboard:OnTensorBoard",
        "trackio": "toolkit.runs.dashboards.on_trackio:OnTrackio",
        "none": None,
    },
    "source": {  # in the order in which they are asked; those of the user's own come first
        "synthetic": "toolkit.data.sources.built_in:BuiltInSource",
        "url": "toolkit.data.sources.shards:UrlSource",
        "hub": "toolkit.data.sources.hub:HubSource",
        "manifests": "toolkit.data.sources.manifests:ManifestSource",
        "shards": "toolkit.data.sources.shards:ShardSource",
        "folders": "toolkit.data.sources.folders:FolderSource",
    },
}

ASKED_FOR: set[str] = set()  # modules that a flag or a caller named, whose code may be run


def register(seam: Seam, name: str, entry: Any) -> None:
    """Add an entry to a seam: a class, or "module:attribute". Raises InputError if the name belongs to another one."""
    if seam not in TABLES:
        raise InputError(f"register: there is no seam {seam!r}; one of {', '.join(TABLES)}")
    known = TABLES[seam].setdefault(name, entry)
    if known is not entry and known != entry:
        raise InputError(f"register: there is a {seam} {name!r} already, {known}: choose another name")


def check_entry(seam: Seam, flag: str, name: str) -> str:
    """Return `name`; raises InputError unless it is in the seam's table or of the form module:attribute."""
    if name in TABLES[seam] or ":" in name:
        return name
    raise InputError(f"{flag} {name}: must be one of {', '.join(TABLES[seam])}{nearest(name, TABLES[seam])}")


def look_up(seam: Seam, flag: str, name: str) -> Any:
    """The entry called `name`, imported.

    A "module:attribute" that is not in the table is taken only from a module that was imported already, so that
    opening a run never executes code that only the run names. Raises InputError if there is no such entry.
    """
    registered = {_own_name(entry): entry for entry in TABLES[seam].values() if isinstance(entry, type)}
    entry = TABLES[seam].get(check_entry(seam, flag, name), registered.get(name, name))
    if not isinstance(entry, str):
        return entry
    module, _, attribute = entry.partition(":")
    if module.startswith("toolkit."):
        importlib.import_module(module)
    elif name in TABLES[seam]:
        import_module(flag, module)
    elif module == "__main__" and not hasattr(sys.modules[module], attribute):
        raise InputError(f"{flag} {name}: a script defined it, so only that opens this run: define it in a module")
    elif module not in sys.modules:
        raise InputError(f"{flag} {name}: the module is not imported: --import {module} allows that")
    return attribute_of(flag, module, attribute)


def import_named(flag: str, name: str) -> Any:
    """The object called module:attribute, whose module is imported: only for a name that the user gave just now."""
    module, attribute = _split(flag, name)
    import_module(f"{flag} {name}:", module)
    ASKED_FOR.add(module)
    return attribute_of(flag, module, attribute)


def named(flag: str, name: str) -> Any:
    """The object called module:attribute, from a module that was imported already: for a name that a run may give.

    Raises InputError unless the user asked for the module, by a flag or by an import of code of their own: a run must
    run neither a file nearby nor any function of a library.
    """
    module, attribute = _split(flag, name)
    if module not in ASKED_FOR and not _is_own(module):
        raise InputError(f"{flag} {name}: give that flag again to allow running it, or --import {module}")
    return attribute_of(flag, module, attribute)


def _is_own(module: str) -> bool:
    """Whether a module is imported and the user's own: not a script, Python's, the toolkit's or an installed one."""
    file = Path(getattr(sys.modules.get(module), "__file__", None) or os.__file__)
    of_python = file.is_relative_to(Path(os.__file__).parent)
    installed = {"site-packages", "dist-packages"} & {*file.parts}
    return not of_python and not installed and module.partition(".")[0] not in ("toolkit", "__main__")


def _split(flag: str, name: str) -> tuple[str, str]:
    module, _, attribute = name.partition(":")
    if not module or not attribute.isidentifier():
        raise InputError(f"{flag} {name}: must be of the form module:function")
    return module, attribute


def attribute_of(flag: str, module: str, attribute: str) -> Any:
    """An attribute of an imported module; raises InputError if it has none of that name."""
    found = getattr(sys.modules[module], attribute, None)
    if found is None:
        names = [name for name in vars(sys.modules[module]) if not name.startswith("_")]
        raise InputError(f"{flag} {module}:{attribute}: {module} has no {attribute}{nearest(attribute, names)}")
    return found


def import_module(flag: str, module: str) -> None:
    """Import a module that the user named, from the working directory too; raises InputError if that fails.

    Later imports find that directory last: a file in it must not take the place of an installed package.
    """
    here = str(Path.cwd())
    added = here not in sys.path  # a script's own folder is there instead
    sys.path[:0] = [here] * added
    try:
        importlib.import_module(module)
    except Exception as error:  # a user's module raises any type of exception
        raise InputError(f"{flag} {module}: cannot be imported: {type(error).__name__}: {first_line(error)}") from error
    finally:
        if added:
            sys.path.remove(here)
            sys.path.append(here)


def import_modules(modules: Sequence[str]) -> None:
    """Import the modules that `--import` names."""
    for module in modules:
        import_module("--import", module)
        ASKED_FOR.add(module)


def entry_name(seam: Seam, kind: type) -> str:
    """How a run's config names an entry: one of ours by its name in the table, another as module:class."""
    named = _own_name(kind)
    ours = [name for name, entry in TABLES[seam].items() if entry == named and named.startswith("toolkit.")]
    return ours[0] if ours else named


def _own_name(kind: type) -> str:
    return f"{kind.__module__}:{kind.__qualname__}"
