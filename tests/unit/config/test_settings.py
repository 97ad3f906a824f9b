"""Settings: defaults, types, cross-checks, and the way to a YAML file and back."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from toolkit import InputError, Settings
from toolkit.config.base import nearest
from toolkit.config.scales import Scales, default_scales, make_scales
from toolkit.config.settings import NOT_LEARNED, SECTIONS
from toolkit.config.yaml_values import read_yaml, to_yaml
from toolkit.runs.run_config import config_of
from toolkit.strategies import Progressive


@pytest.mark.parametrize(
    ("data_root", "arch", "epochs", "learning_rate", "scales"),
    [
        ("synthetic", "test_resnet", 12, 4e-3, (20, 32, 64)),
        ("photos", "resnet18", 20, 1e-3, (64, 112, 224)),
    ],
)
def test_defaults_fit_the_data_when_nothing_else_is_given(data_root, arch, epochs, learning_rate, scales):
    settings = Settings(data_root=data_root)
    assert (settings.arch, settings.epochs, settings.learning_rate) == (arch, epochs, learning_rate)
    assert default_scales(data_root) == scales


def test_given_values_stand_when_the_data_would_choose_others():
    settings = Settings(arch="resnet10t", epochs=3, learning_rate=0.5)
    assert (settings.arch, settings.epochs, settings.learning_rate) == ("resnet10t", 3, 0.5)


def test_settings_are_the_same_when_written_to_yaml_and_read_again(tmp_path: Path):
    settings = Settings(
        data_root="photos", model_kwargs=["output_stride=8", "act_layer=silu"], amp=False, seed=7, gradient_clip=1.5
    )
    file = tmp_path / "config.yaml"
    file.write_text(to_yaml(config_of(settings, Progressive((64, 112), (2, 18)))))
    values = read_yaml(file)
    scales = make_scales({name: values.pop(name) for name in list(values) if name in Scales.model_fields})
    assert Settings(**values) == settings
    expected = {"strategy": "progressive", "scales": (64, 112), "scale_epochs": (2, 18)}
    added = {"grow_batch": "off", "regularization_from": 1.0}
    assert scales == {**expected, "ramp": False, "norm_per_scale": "off", **added}


def test_config_holds_every_learning_setting_when_written():
    written = config_of(Settings(), Progressive((20, 32)))
    assert set(Settings.model_fields) - set(written) == {"output_dir", "resume", "alone", "take_over", "upload_wait_s"}
    assert None not in (written["arch"], written["epochs"], written["learning_rate"])


def test_sections_hold_every_setting_once_when_put_together():
    names = [name for section in SECTIONS for name in section.__annotations__]
    assert sorted(names) == sorted(Settings.model_fields)
    assert set(Settings.model_fields) >= NOT_LEARNED


@pytest.mark.parametrize(("name", "meant"), [("epohcs", "epochs"), ("batchsise", "batch_size"), ("archh", "arch")])
def test_an_unknown_setting_is_refused_with_the_nearest_when_it_is_mistyped(name: str, meant: str):
    with pytest.raises(InputError, match=f"'{name}'; did you mean {meant}"):
        Settings(**{name: 3})  # type: ignore[arg-type]


def test_the_nearest_name_is_left_out_when_nothing_is_close():
    assert nearest("zzzzzz", ["epochs", "arch"]) == ""


def test_settings_cannot_be_changed_when_made():
    with pytest.raises(InputError, match=r"^epochs cannot be changed: settings are frozen; make new ones"):
        Settings().epochs = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"data_root": "photos", "synthetic_count": 100}, "--synthetic-count would be ignored"),
        ({"min_delta": 0.1}, "--min-delta would be ignored"),
        ({"wandb_mode": "offline", "log_with": "none"}, "--wandb-mode and --wandb-artifact would be ignored"),
        ({"wandb_project": "mine", "log_with": "none"}, "--wandb-project would be ignored"),
        ({"warmup_epochs": 5, "epochs": 1}, "--warmup-epochs 5 must be smaller than --epochs 1"),
        ({"warmup_epochs": 5, "epochs": 5}, "--warmup-epochs 5 must be smaller than --epochs 5"),
        ({"epochs": 0}, "--epochs 0: must be above 0"),
        ({"epochs": "two"}, "--epochs two: must be a whole number"),
        ({"batch_size": -4}, "--batch-size -4"),
        ({"crop_scale": 0}, "--crop-scale 0"),
        ({"crop_scale": 1.5}, "--crop-scale 1.5"),
        ({"label_smoothing": 1}, "--label-smoothing 1"),
        ({"val_split": 1}, "--val-split 1"),
        ({"scheduler": "step"}, "--scheduler step: .*cosine.*plateau"),
        ({"cloud": "ibm"}, "--cloud ibm"),
        ({"learning_rate": "nan"}, "--learning-rate nan"),
        ({"learning_rate": "inf"}, "--learning-rate inf"),
        ({"weight_decay": "inf"}, "--weight-decay inf"),
        ({"model_kwargs": ["output_stride"]}, "'output_stride' is not of the form key=value"),
        ({"model_kwargs": ["layers=[1"]}, "layers"),
        ({"model_kwargs": ["{output_stride: 8}"]}, "'{output_stride: 8}' is not of the form key=value"),
    ],
)
def test_a_setting_is_refused_in_one_line_when_it_makes_no_sense(values: dict[str, Any], words: str):
    with pytest.raises(InputError, match=words) as caught:
        Settings(**values)
    assert len(str(caught.value).splitlines()) == 1
    assert "pydantic" not in str(caught.value)


@pytest.mark.parametrize("value", ["20,32,64", "20, 32, 64", [20, 32, 64], ["20", "32", "64"], (20, 32, 64)])
def test_sizes_are_read_alike_when_given_as_text_or_list(value: Any):
    assert make_scales({"scales": value}) == {"scales": (20, 32, 64)}


def test_one_number_is_a_list_of_one_when_a_list_is_expected():
    assert make_scales({"scale_epochs": 2}) == make_scales({"scale_epochs": "2"}) == {"scale_epochs": (2,)}


@pytest.mark.parametrize("value", ["20,x", "20,,32", "", "0,32", "-1,32", "20.5,32", []])
def test_sizes_are_refused_in_one_line_when_they_are_not_positive_whole_numbers(value: Any):
    with pytest.raises(InputError, match="--scales") as caught:
        make_scales({"scales": value})
    assert len(str(caught.value).splitlines()) == 1


def test_model_arguments_are_typed_as_in_yaml_when_given_as_text():
    settings = Settings(model_kwargs=["output_stride=8", "drop=0.5", "zero=false", "act=silu", "layers=[1, 2]"])
    assert settings.model_kwargs == {"output_stride": 8, "drop": 0.5, "zero": False, "act": "silu", "layers": [1, 2]}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"epochs: [", "not YAML"),
        (b"- epochs", "expected `name: value` lines"),
        (b"", "expected `name: value` lines"),
        (b"epochs: 3\nname: \xff\xfe", "config"),
        (b"epochs: !!python/object/apply:os.getcwd []", "not YAML"),
    ],
)
def test_a_config_is_refused_with_its_name_when_it_cannot_be_read(tmp_path: Path, content: bytes, words: str):
    file = tmp_path / "config.yaml"
    file.write_bytes(content)
    with pytest.raises(InputError, match=words) as caught:
        read_yaml(file)
    assert str(file) in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_a_config_is_refused_with_its_name_when_it_is_missing(tmp_path: Path):
    with pytest.raises(InputError, match=r"none\.yaml: No such file"):
        read_yaml(tmp_path / "none.yaml")


def test_yaml_is_plain_when_written():
    assert yaml.safe_load(to_yaml({"a": 1, "b": [1, 2], "c": None})) == {"a": 1, "b": [1, 2], "c": None}
