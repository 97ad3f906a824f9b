"""YAML for settings: a value is text until the type of its setting decides what it means. Imports no torch.

PyYAML reads YAML 1.1, in which `off` is false, `1e-5` text, `010` eight and `2024-01-01` a date. Here a value without
quotes stays as it was written (`Plain`). Where no type is declared, the core schema of YAML 1.2 decides.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml

from toolkit.system import storage
from toolkit.system.errors import InputError

WHOLE = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
DECIMAL = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
CONSTANTS = {"": None, "~": None, "null": None, "true": True, "false": False}  # also as True and TRUE
SWITCHES = {"yes": True, "no": False, "on": True, "off": False}  # for settings that are true or false


class Plain(str):
    """A value as it was written, without quotes."""


PLAIN = "!plain"


class _Loader(yaml.SafeLoader):
    """Values without quotes as `Plain`, and `{key:value}` as `{key: value}`; a name given twice is an error."""

    def resolve(self, kind: Any, value: Any, implicit: Any) -> Any:
        plain = kind is yaml.ScalarNode and implicit[0] and value != "<<"  # which merges mappings
        return PLAIN if plain else super().resolve(kind, value, implicit)

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        if node.flow_style:
            node.value = [_with_blank(key, value) for key, value in node.value]
        names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.value != "<<"]
        if twice := [name for name in names if names.count(name) > 1]:
            raise yaml.constructor.ConstructorError(None, None, f"{twice[0]} is given twice", node.start_mark)
        return super().construct_mapping(node, deep)


_Loader.add_constructor(PLAIN, lambda loader, node: Plain(node.value))


def _with_blank(key: Any, value: Any) -> tuple[Any, Any]:
    """A key and its value in `{...}`, also where no blank separates them, which to YAML is a key without a value."""
    if key.tag != PLAIN or ":" not in key.value or value.tag != PLAIN or value.value:
        return key, value
    name, _, rest = key.value.partition(":")
    return yaml.ScalarNode(PLAIN, name), yaml.compose(rest, _Loader) or value


class _Dumper(yaml.SafeDumper):
    """Quotes text that a reader of YAML 1.1 or of YAML 1.2 would take for something else."""

    def resolve(self, kind: Any, value: Any, implicit: Any) -> Any:
        tag = super().resolve(kind, value, implicit)
        is_text = kind is not yaml.ScalarNode or not implicit[0] or isinstance(meaning(Plain(value)), str)
        return tag if is_text or tag != "tag:yaml.org,2002:str" else PLAIN


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file, by YAML 1.2; raises InputError naming the file."""
    return meaning(read_written(path))


def yaml_mapping(text: str) -> dict[str, Any]:
    """The mapping in the text of a YAML file that a run wrote; empty if it holds none."""
    values = meaning(yaml.load(text, _Loader))
    return values if isinstance(values, dict) else {}


def read_written(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file, its values without quotes as `Plain`; raises InputError naming the file."""
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), _Loader)
        meaning(values)  # fails on one that holds itself
    except OSError as error:
        raise InputError(f"{path}: {storage.explain(error, path)}") from None
    except UnicodeDecodeError:
        raise InputError(f"{path}: not UTF-8 text") from None
    except (yaml.YAMLError, ValueError, LookupError, AttributeError, RecursionError) as error:  # all of PyYAML
        raise InputError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise InputError(f"{path}: expected `name: value` lines")
    return {str(name): value for name, value in values.items()}


def read_value(text: str) -> Any:
    """The value of KEY=VALUE: [lists], {mappings} and "quotes" as in YAML, all else as it was written."""
    return yaml.load(text, _Loader) if text.lstrip()[:1] in ("[", "{", '"', "'") and text.strip() else Plain(text)


def write_value(value: Any) -> str:
    """The inverse of `read_value`."""
    text = yaml.dump(value, Dumper=_Dumper, default_flow_style=True, sort_keys=False, width=10**6)
    return text.removesuffix("...\n").rstrip("\n")


def to_yaml(values: Mapping[str, Any]) -> str:
    return yaml.dump(dict(values), Dumper=_Dumper, sort_keys=False, default_flow_style=None, width=120)


def meaning(value: Any) -> Any:
    """A value by YAML 1.2, where no type is declared; lists and mappings with all that they hold."""
    if isinstance(value, dict):
        return {meaning(name): meaning(part) for name, part in value.items()}
    if isinstance(value, list):
        return [meaning(part) for part in value]
    if not isinstance(value, Plain):
        return value
    if value.lower() in CONSTANTS and value in (value.lower(), value.title(), value.upper()):
        return CONSTANTS[value.lower()]
    if WHOLE.fullmatch(value):
        return int(value, 0 if value[1:2] in ("o", "x") else 10)
    return float(re.sub(r"\.(?=[a-z])", "", value.lower())) if DECIMAL.fullmatch(value) else str(value)


def fit(value: Any, declared: Any) -> Any:
    """A value as the type that was declared has it; one that does not fit is left to those who check it."""
    if not isinstance(value, str):
        return meaning(value)
    kinds, found = kinds_of(declared), meaning(Plain(value))
    if int in kinds and not kinds & {float, str} and type(found) in (int, float):
        return int(found) if isinstance(found, float) and found.is_integer() else found  # 1e3 and 0x10, too
    if not isinstance(value, Plain):
        return value
    if bool in kinds and value.lower() in SWITCHES:
        return SWITCHES[value.lower()]
    as_written = value and kinds & {str, Path} and type(found) not in kinds
    as_written = as_written or (isinstance(found, bool) and not kinds & {bool, dict, list, tuple, Any})
    return str(value) if as_written else found


def kinds_of(declared: Any) -> set[Any]:
    """The types that a declared one allows."""
    origin, parts = get_origin(declared), get_args(declared)
    if origin in (Union, UnionType):
        return set().union(*map(kinds_of, parts))
    if origin is Literal:
        return {*map(type, parts)}
    return kinds_of(parts[0]) if origin is Annotated else {origin or declared}
