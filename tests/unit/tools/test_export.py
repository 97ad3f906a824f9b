"""What an export is made of: one scale's weights, the check that refuses, the card's advice."""

import io
import logging
import sys
from dataclasses import replace

import numpy as np
import pytest
import timm
import torch

from tests.unit.data.test_zoo import smooth
from toolkit.data.images.preprocess import Preprocess
from toolkit.models.classification import Classification
from toolkit.models.multiview import MultiView
from toolkit.models.portable import OwnModel, PortableModel, TimmModel
from toolkit.strategies.base import NormPolicy
from toolkit.system.errors import InputError
from toolkit.tools.export import choose, refuse_existing_export
from toolkit.tools.export_check import answer, compare
from toolkit.tools.export_model import one_scale
from toolkit.tools.model_card import SizeRow, recommended

MODEL = TimmModel(
    arch="test_vit.r160_in1k",
    arguments={"num_classes": 2, "img_size": 32, "dynamic_img_size": True},
    size=16,
    mean=(0.5, 0.4, 0.3),
    std=(0.2, 0.2, 0.1),
    classes=("cat", "dog"),
    known={"first_conv": "patch_embed.proj", "classifier": "head", "url": "somewhere"},
)


def two_scales(mode: str) -> MultiView:
    """A network whose normalization differs between 16 and 32 px wherever it may."""
    torch.manual_seed(0)
    model = MultiView(timm.create_model("test_resnet", num_classes=3), NormPolicy(mode, (16, 32))).eval()
    for k, scale in enumerate(("16", "32")):
        for norm in model.scale_norms:
            norm.norms[scale].running_mean.fill_(0.1 + k)
            if mode == "full":
                torch.nn.init.constant_(norm.norms[scale].bias, 0.2 + k)
    return model


@pytest.mark.parametrize("mode", ["full", "statistics", "off"])
def test_one_scale_has_timms_own_names_and_that_scales_answers(mode: str):
    model = two_scales(mode)
    plain = one_scale(model, 16)
    fresh = timm.create_model("test_resnet", num_classes=3).eval()
    fresh.load_state_dict(plain.state_dict(), strict=True)
    pixels = torch.randn(4, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(fresh(pixels), model(pixels)[0])
    if mode != "off":
        means = [module.running_mean for module in plain.modules() if hasattr(module, "running_mean")]
        assert all((mean == 0.1).all() for mean in means)


def test_the_check_refuses_when_the_normalization_is_that_of_another_scale():
    model, pixels = two_scales("full"), torch.randn(8, 3, 16, 16)
    expected = answer(lambda batch: model(batch)[0], pixels)
    assert compare(answer(one_scale(model, 16), pixels), expected).within(1e-6)
    assert not compare(answer(one_scale(model, 32), pixels), expected).within(1e-4)


def test_the_check_refuses_when_one_logit_is_off_or_not_a_number():
    expected = torch.zeros(3, 2)
    said = expected.clone()
    said[2, 1] = 9e-5
    found = compare(said, expected)
    assert (found.within(1e-4), found.same, found.largest) == (True, 3, pytest.approx(9e-5))
    for wrong in (1.1e-4, float("nan"), float("inf")):
        said[2, 1] = wrong
        assert not compare(said, expected).within(1e-4)


def test_a_large_logit_may_differ_by_more_but_only_in_its_own_image():
    expected = torch.tensor([[24.0, 3.0], [0.5, 0.2]])
    assert compare(expected + torch.tensor([[1.2e-4, 0.0], [0.0, 0.0]]), expected).within(1e-4)
    assert not compare(expected + torch.tensor([[0.0, 0.0], [2e-4, 0.0]]), expected).within(1e-4)


def test_another_top_1_is_refused_however_small_the_difference():
    expected = torch.tensor([[24.0, 24.0001], [1.0, 0.0]])
    said = torch.tensor([[24.0001, 24.0], [1.0, 0.0]])
    found = compare(said, expected)
    assert (found.within(0.5), found.same, found.images) == (False, 1, 2)
    assert "1 of 2 images have the same top-1" in str(found)
    assert compare(said, torch.tensor([[24.0, 24.0], [1.0, 0.0]])).within(1e-4)  # control: both are the top there


@pytest.mark.parametrize(("count", "batches"), [(1, [1]), (4, [1, 3]), (6, [1, 5]), (32, [1, 5, 26])])
def test_images_are_said_in_batches_of_several_sizes(count: int, batches: list[int]):
    met = []

    def say(part: torch.Tensor) -> torch.Tensor:
        met.append(len(part))
        return part

    pixels = torch.arange(count)[:, None]
    assert torch.equal(answer(say, pixels), pixels)
    assert met == batches


def test_the_call_and_the_config_describe_the_same_model_when_timm_reads_them():
    assert MODEL.call("w.safetensors") == (
        "timm.create_model('test_vit.r160_in1k', num_classes=2, img_size=32, dynamic_img_size=True, "
        "checkpoint_path='w.safetensors')"
    )
    config = MODEL.config()
    assert (config["architecture"], config["num_classes"], config["label_names"]) == ("test_vit", 2, ("cat", "dog"))
    assert config["model_args"] == {"img_size": 32, "dynamic_img_size": True}
    made = timm.create_model(config["architecture"], num_classes=2, **config["model_args"])
    assert made.state_dict().keys() == MODEL.create().state_dict().keys()
    read = timm.data.resolve_data_config(pretrained_cfg=config["pretrained_cfg"])
    assert read == MODEL.preprocessing()


OWN = OwnModel({}, 33, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), ("cat", "dog"), "mine:make", torch.nn.Identity)


@pytest.mark.parametrize("fit", ["crop", "pad", "squash"])
@pytest.mark.parametrize("model", [replace(MODEL, size=33, mean=OWN.mean, std=OWN.std), OWN], ids=["timm", "own"])
def test_a_librarys_transform_sees_as_much_of_an_image_as_evaluation(model: PortableModel, fit: str):
    """Whichever fit the run has: else one of the others would be as close."""
    image, file = smooth(80, 60), io.BytesIO()
    image.save(file, "PNG")
    theirs = replace(model, fit=fit).transform()(image).numpy()
    apart = {
        other: np.abs(Preprocess(33, model.mean, model.std, fit=other)(file.getvalue())[0] - theirs).mean()
        for other in ("crop", "pad", "squash")
    }
    assert apart[fit] < 0.2
    assert min(apart[other] for other in apart if other != fit) > 3 * apart[fit]


def row(size: int, top1: float | None) -> SizeRow:
    return SizeRow(f"{size}px", {} if top1 is None else {"val": (top1, 100.0)}, size / 100, None)


def test_the_recommended_size_is_the_most_accurate_and_of_equals_the_cheapest():
    assert recommended([row(16, 80.0), row(32, 91.0), row(64, 90.0)], Classification.metrics[0]).name == "32px"
    assert recommended([row(16, 80.0), row(32, 91.0), row(64, 91.0)], Classification.metrics[0]).name == "32px"
    assert recommended([row(16, None), row(32, 10.0)], Classification.metrics[0]).name == "32px"
    assert recommended([row(16, None)], Classification.metrics[0]) is None


def test_formats_are_all_that_there_are_when_none_is_asked_for():
    assert choose(None) == ["safetensors", "onnx", "pt2"]
    assert choose(("pt2", "pt2", "onnx")) == ["pt2", "onnx"]


def test_onnx_is_left_out_with_a_warning_when_a_package_is_missing(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("toolkit"), "propagate", True)  # a recipe in the same process turned it off
    monkeypatch.setitem(sys.modules, "onnxscript", None)  # as Python finds it where it is not installed
    assert choose(None) == ["safetensors", "pt2"]
    assert "onnx needs onnxscript: pip install -e '.[onnx]'" in caplog.text
    with pytest.raises(InputError, match="--formats onnx needs onnxscript"):
        choose(("onnx",))
    with pytest.raises(InputError, match="--onnx-input uint8: onnx needs onnxscript"):
        choose(None, "uint8")


def test_an_input_of_onnx_is_refused_when_it_would_be_ignored():
    assert choose(("onnx", "pt2"), "uint8") == ["onnx", "pt2"]
    with pytest.raises(InputError, match="--onnx-input uint8 would be ignored: --formats pt2 has no onnx"):
        choose(("pt2",), "uint8")


def test_a_folder_is_refused_when_it_is_not_an_export(tmp_path):
    refuse_existing_export(tmp_path / "new", overwrite=False)
    refuse_existing_export(tmp_path, overwrite=False)  # empty
    (tmp_path / "model.safetensors").write_bytes(b"a run's best/ looks like this")
    with pytest.raises(InputError, match=r"holds other files \(model.safetensors\)"):
        refuse_existing_export(tmp_path, overwrite=True)
    for name in ("README.md", "config.json"):
        (tmp_path / name).write_text("")
    refuse_existing_export(tmp_path, overwrite=True)
    with pytest.raises(InputError, match="--overwrite replaces it"):
        refuse_existing_export(tmp_path, overwrite=False)
