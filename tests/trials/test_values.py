"""A value keeps the type that its setting has, whatever YAML 1.1 would make of it: in files, flags and KEY=VALUE."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import recipe, write_folders
from toolkit import InputError, Settings
from toolkit.config.cli import parse
from toolkit.config.settings import make_settings
from toolkit.config.tool_settings import Benchmark
from toolkit.config.yaml_values import meaning, read_value, read_written, read_yaml, to_yaml, write_value
from toolkit.runs.directory import RunDirectory
from toolkit.runs.run_config import config_of
from toolkit.strategies import Progressive
from toolkit.tools.loaded_run import read_config

SCALE_FLAGS = ("strategy", "norm_per_scale", "scales", "scale_epochs", "finish_size", "strategy_kwargs")
OWN = """
from dataclasses import dataclass

from toolkit import Schedule
from toolkit.strategies import SingleScale


@dataclass(frozen=True)
class Named(SingleScale):
    name_of_it: str = "none"
    day: "str | None" = None
    gate: bool = False
    share: float = 0.5
    count: int = 3
    sizes_of_it: tuple[int, ...] = ()
    anything: object = None


@dataclass(frozen=True)
class Dated(Schedule):
    day: str = ""
    floor: float = 0.0

    def shape(self, progress):
        return 1.0
"""


def parsed(tmp_path: Path, text: str, *words: str) -> Any:
    file = tmp_path / "config.yaml"
    file.write_text(text, encoding="utf-8")
    return parse(["--config", str(file), *words], "recipe.py", "What it does.", SCALE_FLAGS)


TEXTS = (
    *("off", "on", "yes", "no", "true", "010", "08", "0o17", "0x10", "1_000", ".5", "+1", "1E6", "1e-5", "1:30"),
    *("2024-01-01", "2024-01-01T10:00:00Z", "~", "null", "NaN", ".inf", "="),
)


def test_a_setting_that_is_text_gets_the_text_as_it_was_written(tmp_path: Path):
    """In a file with and without quotes, and as a flag; the run's own file gives it back."""
    file, run = tmp_path / "config.yaml", tmp_path / "run"
    run.mkdir()
    for word in TEXTS:
        for text in (f"optimizer: {word}\n", f"optimizer: '{word}'\n", f"{{optimizer: {word}}}"):
            file.write_text(text)
            assert make_settings(read_written(file)).optimizer == word
        made = make_settings({"optimizer": word})  # as a flag gives it
        written = to_yaml(config_of(made, Progressive((16, 32))))
        (run / "config.yaml").write_text(written)
        assert read_config(RunDirectory(run).config()) == (made, Progressive((16, 32)))
        assert yaml.safe_load(written)["optimizer"] == word  # readers of YAML 1.1 see the same
    assert parsed(tmp_path, "optimizer: off\n").settings.optimizer == "off"
    assert parsed(tmp_path, "seed: 1\n", "--optimizer", "010").settings.optimizer == "010"


def test_words_and_numbers_are_what_their_settings_say(tmp_path: Path):
    text = """
cache: off
norm_per_scale: off
scheduler: constant
hflip: no
amp: On
pretrained: "off"
compile: TRUE
cache_dir: ~
patience: null
select_by:
epochs: 010
batch_size: 1e2
seed: 0x10
synthetic_count: 1_000
learning_rate: 1e-5
weight_decay: .5
loader_timeout_s: 1E6
gradient_clip: 1
scales: 016,32
scale_epochs: 02
"""
    command = parsed(tmp_path, text)
    assert command.settings.model_dump(exclude_unset=True) == {
        "cache": "off",
        "scheduler": "constant",
        "hflip": False,
        "amp": True,
        "pretrained": False,
        "compile": True,
        "cache_dir": None,
        "patience": None,
        "select_by": None,
        "epochs": 10,
        "batch_size": 100,
        "seed": 16,
        "synthetic_count": 1000,
        "learning_rate": 1e-5,
        "weight_decay": 0.5,
        "loader_timeout_s": 1e6,
        "gradient_clip": 1.0,
    }
    assert command.scales == {"norm_per_scale": "off", "scales": (16, 32), "scale_epochs": (2,)}
    with pytest.raises(InputError, match="there is no setting 'off'"):  # control: names are text, too
        parsed(tmp_path, "off: 3\n")


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("epochs: 1:30", "--epochs 1:30: must be a whole number"),
        ("epochs: 2024-01-01", "--epochs 2024-01-01: must be a whole number"),
        ("epochs: 1.5", "--epochs 1.5: must be a whole number"),
        ("epochs: .inf", "--epochs inf: must be a finite number"),
        ("learning_rate: NaN", "--learning-rate NaN: must be a finite number"),
        ("learning_rate: .nan", "--learning-rate nan: must be a finite number"),
        ("learning_rate: off", "--learning-rate off: must be a number"),
        ("hflip: maybe", "--hflip maybe: must be true or false"),
        ("cache: no", "--cache no: must be one of 'auto', 'ram', 'disk' or 'off'"),
        ("optimizer:", "--optimizer None: must be text; leave it out for the default"),
        ("seed: ~", "--seed None: must be a whole number; leave it out for the default"),
        ("seed: 1\nseed: 2", "seed is given twice"),
        ("model_kwargs: [1, 2]", "--model-kwargs [1, 2]: 1 is not of the form key=value"),
    ],
)
def test_a_value_of_another_type_is_refused_as_it_was_written(tmp_path: Path, line: str, told: str):
    (tmp_path / "config.yaml").write_text(line + "\n")
    with pytest.raises(InputError) as caught:
        make_settings(read_written(tmp_path / "config.yaml"))
    (said,) = str(caught.value).splitlines()
    assert told in said if "twice" in told else said == told


VALUES = {  # YAML 1.2, where no type is declared
    "1e-5": 1e-5,
    "1E6": 1e6,
    "1.5e3": 1500.0,
    ".5": 0.5,
    "-2": -2,
    "010": 10,
    "0x10": 16,
    "0o17": 15,
    "1.": 1.0,
    "true": True,
    "False": False,
    "null": None,
    "~": None,
    "": None,
    "-.inf": float("-inf"),
    **{word: word for word in ("off", "on", "yes", "no", "1:30", "2024-01-01", "1_000", "NaN", "silu", "a: b", "# c")},
    "*x": "*x",
    "&x": "&x",
    "!x": "!x",
    "@x": "@x",
    "%x": "%x",
    "- x": "- x",
    "tRue": "tRue",
    "s3://a/b": "s3://a/b",
    "'010'": "010",
    '"off"': "off",
    "[1e-5, off, 010]": [1e-5, "off", 10],
    "[]": [],
    "{}": {},
    "{file:X}": {"file": "X"},
    "{file: X}": {"file": "X"},
    "{file:s3://a/b.pt, n:1e-5, ok:true,why:no}": {"file": "s3://a/b.pt", "n": 1e-5, "ok": True, "why": "no"},
    '{"file":"X", a:"b:c", d:[1,2], e:{f:1}}': {"file": "X", "a": "b:c", "d": [1, 2], "e": {"f": 1}},
}


def test_key_values_may_be_given_in_several_flags_but_each_key_once(tmp_path: Path):
    words = ("--model-kwargs", "a=1", "--seed", "3", "--model_kwargs=b=2", "--model-kwargs", "c=x", "d=4")
    made = parsed(tmp_path, "epochs: 2", *words).settings
    assert (made.model_kwargs, made.seed) == ({"a": 1, "b": 2, "c": "x", "d": 4}, 3)
    with pytest.raises(InputError, match="a is given twice"):
        parsed(tmp_path, "seed: 1", "--model-kwargs", "a=1", "--model-kwargs", "a=2")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("epochs: !!int abc", "not YAML"),
        ("amp: !!bool maybe", "not YAML"),
        ("model_kwargs: &a {x: *a}", "not YAML"),
        ('"seed": 1\n"seed": 2', "seed is given twice"),
        ("scales: [true, 32]", "must be whole numbers"),
        *((f"{name}: {value}", "must be a") for name in ("epochs", "mixup", "seed") for value in ("true", "False")),
    ],
)
def test_what_is_no_value_of_a_setting_is_refused_in_one_line(tmp_path: Path, text: str, told: str):
    with pytest.raises(InputError, match=told) as caught:
        parsed(tmp_path, text)
    assert len(str(caught.value).splitlines()) == 1


def test_a_word_without_a_flag_is_told_how_values_are_written(tmp_path: Path):
    with pytest.raises(InputError, match=r"true after --amp belongs to no flag: write --flag=value"):
        parsed(tmp_path, "seed: 1", "--amp", "true")
    assert parsed(tmp_path, "checkpoint_dir: x").settings.output_dir == Path("x")


def test_arguments_without_a_declared_type_are_read_by_yaml_1_2(tmp_path: Path):
    """As KEY=VALUE, in a file, and in the file that a run writes."""
    given = {f"k{number}": text for number, text in enumerate(VALUES)}
    wanted = {f"k{number}": value for number, value in enumerate(VALUES.values())}
    pairs = [f"{name}={text}" for name, text in given.items()]
    assert make_settings({"model_kwargs": pairs}).model_kwargs == wanted
    numbers = make_settings({"model_kwargs": ["a=1e-5", "b=1E6", "c=1.5e3"]}).model_kwargs
    assert numbers == {"a": 1e-5, "b": 1e6, "c": 1500.0}
    only_flags = [text for text in VALUES if text[:1] in ("*", "&", "!", "@", "%", "-", "#") or ": b" in text]
    lines = [f"  {name}: {text}\n" for name, text in given.items() if text not in only_flags or text[1:2].isdigit()]
    assert len(lines) > 30
    filed = parsed(tmp_path, "model_kwargs:\n" + "".join(lines)).settings.model_kwargs
    assert filed == {name: value for name, value in wanted.items() if name in filed}
    assert len(filed) == len(lines)
    (tmp_path / "run.yaml").write_text(to_yaml({"model_kwargs": wanted}))
    assert read_yaml(tmp_path / "run.yaml") == {"model_kwargs": wanted}
    assert [meaning(read_value(write_value(value))) for value in wanted.values()] == [*wanted.values()]


def test_what_a_run_writes_is_the_same_to_a_reader_of_yaml_1_1():
    values = {"kwargs": [*TEXTS, *VALUES], "numbers": [1e-5, 1e22, 3, -0.5, True, None]}
    assert yaml.safe_load(to_yaml(values)) == values
    assert "1.0e-05" in to_yaml(values)


def test_files_of_earlier_versions_are_read_as_before(tmp_path: Path):
    """They were written by PyYAML, whose readers are compared."""
    settings = {"cache": "off", "learning_rate": 1e-5, "amp": True, "transform": None, "optimizer": "1e-5"}
    own = {"model_kwargs": {"a": 1e-5, "b": "off", "c": [1, 2.5], "d": None, "e": "010", "f": "2024-01-01"}}
    text = yaml.safe_dump({**settings, **own}, sort_keys=False, default_flow_style=None, width=120)
    assert "cache: 'off'" in text
    assert "optimizer: 1e-5" in text  # to YAML 1.1 it is text also without quotes
    made = parsed(tmp_path, text).settings
    assert made.model_dump(exclude_unset=True) == {**settings, **own}


def test_own_fields_are_what_their_classes_declare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A strategy's and a schedule's: as KEY=VALUE, in a file's mapping, and as a run's config.yaml has them."""
    (tmp_path / "declared.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    written = {"name_of_it": "010", "day": "2024-01-01", "gate": "on", "share": "1e-2", "count": "1e3"}
    wanted = {"name_of_it": "010", "day": "2024-01-01", "gate": True, "share": 0.01, "count": 1000}
    written |= {"sizes_of_it": "[8, 016]", "anything": "010"}
    wanted |= {"sizes_of_it": (8, 16), "anything": 10}
    named = ("--import", "declared", "--strategy", "declared:Named", "--scheduler", "declared:Dated")
    pairs = [f"{name}={text}" for name, text in written.items()]
    schedule = ("--scheduler-kwargs", "day=off", "floor=1e-2")
    command = parsed(tmp_path, "seed: 1\n", *named, "--strategy-kwargs", *pairs, *schedule)
    assert command.scales["strategy_kwargs"] == wanted
    assert command.settings.scheduler_kwargs == {"day": "off", "floor": 0.01}
    lines = "".join(f"  {name}: {text}\n" for name, text in written.items())
    schedule_text = "scheduler_kwargs: {day:off, floor: 1e-2}\n"
    filed = parsed(tmp_path, f"strategy_kwargs:\n{lines}{schedule_text}", *named)
    assert filed.scales["strategy_kwargs"] == wanted
    assert filed.settings.scheduler_kwargs == {"day": "off", "floor": 0.01}
    beside = parsed(tmp_path, "strategy: declared:Named\n" + lines.replace("  ", ""), "--import", "declared")
    assert beside.scales["strategy_kwargs"] == wanted


def test_a_switch_takes_a_value_as_sweeps_write_it(tmp_path: Path):
    settings = parsed(
        tmp_path, "hflip: true\n", "--hflip=False", "--amp=on", "--pretrained=YES", "--compile=no"
    ).settings
    assert (settings.hflip, settings.amp, settings.pretrained, settings.compile) == (False, True, True, False)
    assert parsed(tmp_path, "seed: 1\n", "--dry-run=true").dry_run
    assert not parsed(tmp_path, "seed: 1\n", "--dry-run=no").dry_run
    with pytest.raises(InputError, match=r"^--amp maybe: must be true or false$"):
        parsed(tmp_path, "seed: 1\n", "--amp=maybe")


def test_the_tools_read_their_flags_likewise():
    made = Benchmark(cache="off", steps="1e1", batch_sizes="010,32", arch="010", output="2024-01-01")  # type: ignore
    assert (made.cache, made.steps, made.batch_sizes, made.arch, str(made.output)) == (
        *("off", 10, (10, 32), "010"),
        "2024-01-01",
    )


def test_a_plan_is_printed_when_words_of_help_are_written_plainly(tmp_path: Path, monkeypatch, capsys):
    """The front door: a file with `off`, numbers as everybody writes them, and a mapping without blanks."""
    monkeypatch.chdir(tmp_path)
    write_folders(tmp_path / "photos", {"train": 12, "val": 4})
    (tmp_path / "a.yaml").write_text("cache: off\nlog_with: none\nmodel_kwargs: {init_values: 1e-5}\n")
    words = ["--config", "a.yaml", "--data-root", "photos", "--img-size", "64", "--arch", "test_vit", "--dry-run"]
    words += ["--batch-size", "8", "--epochs", "1", "--num-workers", "0"]
    assert recipe("single_scale")(words) == 0
    flag = ["init_values=1e-5", "pretrained_cfg_overlay={file:none.pt}"]
    assert recipe("single_scale")([*words, "--model-kwargs", *flag]) == 0
    capsys.readouterr()
    assert recipe("single_scale")([*words, "--model-kwargs", "init_values='1e-5'"]) == 2  # control: text
    assert "init_values" in capsys.readouterr().err
    assert Settings(model_kwargs=flag).model_kwargs["pretrained_cfg_overlay"] == {"file": "none.pt"}  # type: ignore
