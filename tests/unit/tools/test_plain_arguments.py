"""The tools are functions of plain arguments, and a recipe's flags are exactly these."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic_core import PydanticUndefined

from toolkit import InputError
from toolkit.config.base import Section
from toolkit.config.tool_settings import Compare, Evaluate, Export, Predict, Scan
from toolkit.tools.compare import compare
from toolkit.tools.evaluate import evaluate
from toolkit.tools.export import export
from toolkit.tools.predict import predict
from toolkit.tools.scan import scan


@pytest.mark.parametrize(
    ("tool", "section"), [(compare, Compare), (evaluate, Evaluate), (predict, Predict), (export, Export), (scan, Scan)]
)
def test_a_tool_takes_the_flags_of_its_recipe_with_the_same_defaults(tool: Callable[..., Any], section: type[Section]):
    missing = {PydanticUndefined: inspect.Parameter.empty}
    flags = {name: missing.get(field.default, field.default) for name, field in section.model_fields.items()}
    if "model_from" in flags:  # the name of what Python passes
        flags["model"] = flags.pop("model_from")
    parameters = inspect.signature(tool).parameters
    if "data" in {*parameters} - {*flags}:  # only Python can pass it, in place of `data_root` or `paths`
        flags |= {"data": None, **({"paths": (), "output": None} if "paths" in flags else {})}
    assert {name: parameter.default for name, parameter in parameters.items()} == flags


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"scales": (32, 16)}, "--scales 32,16: sizes must be positive and ascending"),
        ({"cascade": (16,)}, "--cascade 16: needs two sizes or more"),
        ({"cascade": ()}, r"cascade \(\): must have 1 or more"),
        ({"confidence": 0.5}, "--confidence 0.5 would be ignored: it needs --cascade"),
    ],
)
def test_a_python_caller_is_refused_before_the_run_is_opened(tmp_path: Path, arguments: dict[str, Any], told: str):
    for call in (lambda: evaluate(tmp_path, **arguments), lambda: predict(tmp_path, ["a.png"], **arguments)):
        with pytest.raises(InputError, match=told):
            call()


@pytest.mark.parametrize(
    ("paths", "arguments", "told"),
    [
        ((), {}, "PATH is missing"),
        (("a.png",), {"cascade": (16, 32), "scales": (16,)}, "--scales would be ignored with --cascade"),
        (("a.png",), {"output": "rows.txt"}, "--output rows.txt: must end in .csv or .jsonl"),
        (("a.png",), {"overwrite": True}, "--overwrite would be ignored: it needs --output"),
    ],
)
def test_predict_refuses_arguments_that_do_not_fit(
    tmp_path: Path, paths: tuple[str, ...], arguments: dict[str, Any], told: str
):
    with pytest.raises(InputError, match=told):
        predict(tmp_path, paths, **arguments)


def test_predict_never_writes_over_a_file_unless_asked_to(tmp_path: Path):
    rows = tmp_path / "rows.csv"
    rows.write_text("mine")
    with pytest.raises(InputError, match="is there already"):
        predict(tmp_path, ["a.png"], output=str(rows))
    with pytest.raises(InputError, match="not a run directory"):  # control: the next check
        predict(tmp_path, ["a.png"], output=str(rows), overwrite=True)
    assert rows.read_text() == "mine"
