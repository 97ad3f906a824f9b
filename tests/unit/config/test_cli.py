"""The command line: flags over a file over defaults, and exit codes."""

import inspect
import re
from pathlib import Path

import pytest
import torch
from pydantic import Field

from toolkit import InputError, NonFiniteError
from toolkit.config import tool_settings
from toolkit.config.base import Section
from toolkit.config.cli import OTHER, Command, parse
from toolkit.config.flag_types import help_of, metavar
from toolkit.config.scales import Scales
from toolkit.config.settings import SECTIONS
from toolkit.system.errors import PreemptedError
from toolkit.system.exit_codes import exit_code

SCALE_FLAGS = ("strategy", "progressive", "scales", "scale_epochs")


def parsed(*words: str) -> Command:
    return parse(words, "recipe.py", "What it does.", SCALE_FLAGS)


def test_a_flag_means_the_same_when_its_value_follows_after_a_space_or_an_equals_sign():
    spaced = parsed("--epochs", "3", "--data-root", "photos", "--scales", "20,32", "--learning-rate", "1e-2")
    joined = parsed("--epochs=3", "--data-root=photos", "--scales=20,32", "--learning-rate=1e-2")
    assert spaced == joined
    assert (joined.settings.epochs, joined.settings.learning_rate) == (3, 0.01)
    assert joined.scales == {"scales": (20, 32)}


def test_switches_go_both_ways_when_given_and_keep_their_defaults_when_not():
    assert parsed().settings.hflip is True
    assert parsed("--no-hflip").settings.hflip is False
    assert parsed().settings.amp is None
    assert parsed("--amp").settings.amp is True
    assert parsed("--no-amp").settings.amp is False
    assert parsed("--progressive").scales == {"progressive": True}


def test_what_to_do_is_read_when_asked_for():
    command = parsed("--dry-run", "--benchmark")
    assert command.dry_run
    assert command.benchmark
    assert not parsed().dry_run
    assert not parsed().benchmark


def test_the_checkpoint_directory_is_the_run_directory_when_its_alias_is_used():
    assert parsed("--checkpoint-dir", "out").settings.output_dir == Path("out")
    assert parsed("--checkpoint-dir=out").settings.output_dir == Path("out")


def test_several_model_arguments_are_read_when_another_flag_follows():
    settings = parsed("--model-kwargs", "output_stride=8", "act_layer=silu", "--epochs", "3").settings
    assert (settings.model_kwargs, settings.epochs) == ({"output_stride": 8, "act_layer": "silu"}, 3)


def test_flags_win_when_a_config_says_otherwise(tmp_path: Path):
    file = tmp_path / "config.yaml"
    file.write_text("epochs: 5\nbatch_size: 32\nhflip: false\nscales: [20, 32]\n")
    command = parsed("--config", str(file), "--epochs", "7", "--hflip", "--scales", "32,64")
    assert (command.settings.epochs, command.settings.batch_size, command.settings.hflip) == (7, 32, True)
    assert command.scales == {"scales": (32, 64)}


def test_a_config_counts_when_no_flag_says_otherwise(tmp_path: Path):
    file = tmp_path / "config.yaml"
    file.write_text("epochs: 5\nscales: 20,32\nmodel_kwargs: {output_stride: 8}\namp: null\n")
    command = parsed("--config", str(file))
    assert (command.settings.epochs, command.settings.model_kwargs) == (5, {"output_stride": 8})
    assert command.scales == {"scales": (20, 32)}


@pytest.mark.parametrize(
    ("word", "meant"),
    [("--epohcs", "--epochs"), ("--batch-sise", "--batch-size"), ("--no-hflop", "--")],
)
def test_an_unknown_flag_is_refused_with_the_nearest_when_it_is_mistyped(word: str, meant: str):
    with pytest.raises(InputError, match=f"no flag {word}; did you mean {meant}"):
        parsed(word, "3")


def test_a_flag_of_another_recipe_is_refused_when_this_one_would_ignore_it():
    with pytest.raises(InputError, match="--img-size would be ignored by recipe"):
        parsed("--img-size", "32")


def test_a_flag_is_refused_in_one_line_when_its_value_is_missing():
    with pytest.raises(InputError, match="--epochs") as caught:
        parsed("--epochs")
    assert len(str(caught.value).splitlines()) == 1


def test_an_unknown_name_in_a_config_is_refused_with_file_and_nearest(tmp_path: Path):
    file = tmp_path / "config.yaml"
    file.write_text("epohcs: 5\n")
    with pytest.raises(InputError, match=r"config\.yaml: there is no setting 'epohcs'; did you mean epochs"):
        parsed("--config", str(file))


def fail(error: Exception) -> None:
    raise error


@pytest.mark.parametrize(
    ("error", "code"), [(InputError("no such folder"), 2), (NonFiniteError("the loss is not finite"), 1)]
)
def test_an_expected_error_is_one_line_and_its_exit_code_when_a_recipe_ends(capsys, error: Exception, code: int):
    assert exit_code(lambda: fail(error)) == code
    assert capsys.readouterr().err == f"error: {error}\n"


def test_a_stop_that_was_asked_for_is_not_called_an_error(capsys, monkeypatch):
    stopped = "stopped by Ctrl-C at step 20 of 66, saved; the same command continues"
    assert exit_code(lambda: fail(PreemptedError(stopped))) == 75
    assert capsys.readouterr().err == f"{stopped}\n"
    monkeypatch.setenv("RANK", "3")
    assert exit_code(lambda: fail(PreemptedError(stopped))) == 75
    assert capsys.readouterr().err == f"rank 3: {stopped}\n"


def test_the_rank_is_named_when_another_process_than_the_first_fails(capsys, monkeypatch):
    monkeypatch.setenv("RANK", "3")
    assert exit_code(lambda: fail(InputError("no such folder"))) == 2
    assert capsys.readouterr().err == "error on rank 3: no such folder\n"


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (torch.distributed.DistNetworkError("the store is gone"), "another process of this run stopped first"),
        (RuntimeError("[gloo/transport/tcp/pair.cc:534] Connection closed by peer"), "another process of this run"),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. "), "a loader process died"),
    ],
)
def test_an_error_of_torch_is_one_line_when_it_tells_of_a_lost_process(capsys, error: Exception, told: str):
    assert exit_code(lambda: fail(error)) == 1
    line = capsys.readouterr().err
    assert line.startswith(f"error: {told}")
    assert line.count("\n") == 1


def test_another_error_of_torch_keeps_its_traceback_when_a_recipe_ends():
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        exit_code(lambda: fail(RuntimeError("mat1 and mat2 shapes cannot be multiplied")))


def test_a_bug_keeps_its_traceback_when_a_recipe_ends():
    with pytest.raises(ZeroDivisionError):
        exit_code(lambda: 1 / 0)


def test_the_exit_code_is_0_when_a_recipe_is_done(capsys):
    assert exit_code(lambda: None) == 0
    assert capsys.readouterr().err == ""


UNITS = (
    *(
        "px",
        "image",
        "images",
        "pixels",
        "classes",
        "temperature",
        "epochs",
        "step",
        "steps",
        "minutes",
        "s",
        "GB",
        "share",
        "area",
        "points",
    ),
    *("currency", "probability", "seed"),
    *(
        "times",
        "processes",
        "workers",
        "threads",
        "checkpoints",
        "alpha",
        "magnitude",
        "rate",
        "decay",
        "weight",
        "norm",
    ),
    *("brightness", "initialization"),  # of a seed: what it is of
)


def without_a_unit(section: type[Section]) -> list[str]:
    """Numbers whose help names no unit."""
    fields = section.model_fields.items()
    numbers = [(name, f) for name, f in fields if metavar(f.annotation) in ("N", "X", "N,N,...")]
    numbers = [(name, f) for name, f in numbers if not re.search("str|Literal|Path", str(f.annotation))]
    words = {name: set(re.findall(r"[\w-]+", help_of(field))) for name, field in numbers}
    return [name for name, said in words.items() if not said & {*UNITS}]


def without_a_default(section: type[Section]) -> list[str]:
    """Flags whose help says neither what they are by default nor what it means to leave them out."""
    optional = {name: help_of(field) for name, field in section.model_fields.items() if not field.is_required()}
    return [name for name, text in optional.items() if not re.search("default: (?!None|Pydantic)|unset", text)]


def test_every_flag_tells_its_unit_and_its_default_when_help_is_asked_for():
    sections = [Scales, *(kind for kind in vars(tool_settings).values() if inspect.isclass(kind))]
    sections = [kind for kind in sections if issubclass(kind, Section) and kind is not Section]
    assert len(sections) > 8
    for section in (*SECTIONS, *sections):
        assert (section, without_a_unit(section), without_a_default(section)) == (section, [], [])
    assert all("default" in text or "unset" in text for _, text in OTHER.values())


def test_a_flag_is_found_out_when_its_help_tells_too_little():
    """The control."""

    class Vague(Section):
        """Vague"""

        length: int = Field(3, description="how long")
        why: str | None = Field(None, description="a reason")

    assert (without_a_unit(Vague), without_a_default(Vague)) == (["length"], ["why"])
