"""timm models at several sizes: what is refused, and which normalization belongs to which scale."""

from collections.abc import Sequence

import pytest
import timm
import torch
from torch import nn

from toolkit import InputError, Settings
from toolkit.models.create import check_name, create, own_size, pretrained
from toolkit.models.inspection import plan_model
from toolkit.models.multiview import MultiView, ScaleNorm, copy_state, state_tensors
from toolkit.strategies.base import NormPolicy

SCALES = (16, 32)


def built(arch: str, mode: str, scales: tuple[int, ...] = SCALES, **values) -> MultiView:
    settings = Settings(arch=arch, **values)
    return create(settings, plan_model(settings, 10, scales).arguments, NormPolicy(mode, scales))


def images(size: int, seed: int = 0, count: int = 4) -> torch.Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


def count(tensors) -> int:
    return sum(tensor.numel() for tensor in tensors)


def batch_norms(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]


def scale_norms(model: nn.Module) -> list[ScaleNorm]:
    return [module for module in model.modules() if isinstance(module, ScaleNorm)]


@pytest.mark.parametrize(("name", "meant"), [("resnett18", "resnet18"), ("test_resnt", "test_resnet")])
def test_an_unknown_architecture_is_refused_with_the_nearest_when_it_is_mistyped(name: str, meant: str):
    for attempt in (check_name, own_size, lambda arch: plan_model(Settings(arch=arch), 10, (32,))):
        with pytest.raises(InputError, match=f"--arch {name}: .*did you mean {meant}"):
            attempt(name)


@pytest.mark.parametrize(("arch", "size"), [("resnet18", 224), ("test_resnet", 160), ("mixer_s32_224", 224)])
def test_an_architecture_has_its_own_size_when_none_is_given(arch: str, size: int):
    assert own_size(arch) == size


@pytest.mark.parametrize(
    ("arch", "sizes", "words"),
    [
        ("beit_base_patch16_224", (20, 32), "beit_base_patch16_224 cannot take 20 px images"),
        ("mixer_s32_224", (192, 224), "mixer_s32_224 cannot take 192 px images"),
        ("convit_tiny", (192, 224), "convit_tiny cannot take 192 px images"),
        ("swin_tiny_patch4_window7_224", (112, 224), "swin_tiny_patch4_window7_224.*112"),
        ("swinv2_tiny_window8_256", (128, 256), "swinv2_tiny_window8_256.*128"),
        ("swin_s3_tiny_224", (112, 224), "swin_s3_tiny_224.*112"),
    ],
)
def test_a_model_is_refused_with_the_size_when_it_cannot_change_between_sizes(arch, sizes, words: str):
    with pytest.raises(InputError, match=words) as caught:
        plan_model(Settings(arch=arch), 10, sizes)
    assert "--arch" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("arch", "size"),
    [("test_vit", 48), ("mixer_s32_224", 224), ("mixer_s32_224", 192), ("swin_tiny_patch4_window7_224", 224)],
)
def test_a_model_is_accepted_when_it_meets_one_size_only(arch: str, size: int):
    assert plan_model(Settings(arch=arch), 10, (size,)).gmacs[size] > 0


@pytest.mark.parametrize(
    ("arch", "sizes"),
    [
        ("deit_tiny_distilled_patch16_224", (64, 112)),
        ("levit_128s", (64,)),
        ("levit_128s", (224,)),
        ("vit_tiny_patch16_224", (20, 72)),
        ("eva02_tiny_patch14_224", (64, 112)),
    ],
)
def test_a_model_takes_every_size_it_can(arch: str, sizes: tuple[int, ...]):
    plan = plan_model(Settings(arch=arch), 10, sizes, trained=sizes)
    assert plan.gmacs.keys() == {*sizes}
    assert ("dynamic_img_pad" in plan.arguments) == (sizes == (20, 72) or "eva02" in arch)


def test_a_distilled_model_trains_at_several_sizes_to_one_tensor():
    model = built("deit_tiny_distilled_patch16_224", "off", (32, 64)).train()
    for size, logits in zip((32, 64), model(images(32), images(64)), strict=True):
        assert logits.shape == (4, 10), size
    sum(logits.sum() for logits in model(images(32), images(64))).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_a_vit_runs_at_several_sizes_when_the_patch_divides_them():
    model = built("test_vit", "off", (32, 64))
    logits = model(images(32), images(64))
    assert [tuple(one.shape) for one in logits] == [(4, 10), (4, 10)]
    assert all(one.isfinite().all() for one in logits)


@pytest.mark.parametrize(
    "values",
    [
        {"arch": "test_resnet", "model_kwargs": ["nonsense=3"]},
        {"arch": "test_resnet", "model_kwargs": ["output_stride=7"]},
        {"arch": "test_resnet", "model_kwargs": ["act_layer=nosuch"]},
    ],
)
def test_model_arguments_are_refused_in_one_line_when_the_architecture_does_not_know_them(values):
    with pytest.raises(InputError, match=r"--arch test_resnet .*--model-kwargs") as caught:
        plan_model(Settings(**values), 10, (32,))
    assert len(str(caught.value).splitlines()) == 1


def test_drop_path_is_refused_when_the_architecture_would_not_take_it():
    with pytest.raises(InputError, match="--drop-path: vgg11"):
        plan_model(Settings(arch="vgg11", drop_path=0.1), 10, (32,))


def test_the_plan_counts_parameters_and_multiply_adds_when_a_model_is_tried():
    plan = plan_model(Settings(arch="resnet18"), 1000, (112, 224))
    # torchvision's documentation: 11 689 512 parameters, 1.81 GFLOPS (multiply-adds) at 224 px
    assert plan.parameters == 11_689_512
    assert plan.gmacs[224] == pytest.approx(1.81, abs=0.01)
    assert plan.gmacs[112] == pytest.approx(1.81 / 4, rel=0.1)


def test_weights_are_the_same_when_the_seed_is():
    one, again, other = (state_tensors(built("test_resnet", "full", seed=seed)) for seed in (1, 1, 2))
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)


def test_further_arguments_reach_the_model_when_they_are_given():
    plain, dilated = (built("test_resnet", "off", model_kwargs=kwargs) for kwargs in ({}, {"output_stride": 8}))
    sizes = [model.model.forward_features(images(32)).shape[-1] for model in (plain, dilated)]
    assert sizes == [1, 4]
    assert built("test_resnet", "off", dropout_rate=0.3).model.drop_rate == 0.3


@pytest.mark.parametrize("arch", ["test_resnet", "test_efficientnet", "resnet18"])
@pytest.mark.parametrize("scales", [(16, 32), (16, 24, 32)])
def test_each_scale_owns_affine_and_statistics_as_the_policy_says_when_a_model_is_built(arch, scales: Sequence[int]):
    plain = timm.create_model(arch, num_classes=10)
    affine = count(tensor for norm in batch_norms(plain) for tensor in norm.parameters())
    all_parameters, statistics = count(plain.parameters()), count(plain.buffers())
    more = len(scales) - 1
    assert affine > 0
    for mode, parameters, buffers in (
        ("off", all_parameters, statistics),
        ("statistics", all_parameters, statistics * (more + 1)),
        ("full", all_parameters + more * affine, statistics * (more + 1)),
    ):
        model = built(arch, mode, tuple(scales))
        assert (count(model.parameters()), count(model.buffers())) == (parameters, buffers), mode


KINDS = {
    "test_resnet": {"BatchNorm2d"},
    "test_efficientnet": {"BatchNormAct2d"},
    "repvit_m0_9": {"BatchNorm1d", "BatchNorm2d"},
}


@pytest.mark.parametrize("arch", KINDS)
@pytest.mark.parametrize("mode", ["full", "statistics"])
def test_every_batch_norm_is_private_when_scales_own_normalization(arch: str, mode: str):
    model = built(arch, mode)
    private = {id(norm) for scale_norm in scale_norms(model) for norm in scale_norm.norms.values()}
    assert {id(norm) for norm in batch_norms(model)} == private
    assert {type(norm).__name__ for norm in batch_norms(model)} == KINDS[arch]
    assert not scale_norms(built(arch, "off"))
    assert plan_model(Settings(arch=arch), 10, SCALES).batch_norms == len(scale_norms(model))


@pytest.mark.parametrize("arch", KINDS)
def test_a_state_has_the_same_names_when_statistics_are_synchronized(arch: str):
    """A run with --sync-bn is opened without."""
    assert state_tensors(built(arch, "full", sync_bn=True)).keys() == state_tensors(built(arch, "full")).keys()


def test_affine_parameters_are_one_and_the_same_when_only_statistics_are_private():
    for scale_norm in scale_norms(built("test_resnet", "statistics")):
        small, large = scale_norm.norms["16"], scale_norm.norms["32"]
        assert small.weight is large.weight
        assert small.bias is large.bias
        assert small.running_mean is not large.running_mean


@pytest.mark.parametrize("arch", KINDS)
@pytest.mark.parametrize("mode", ["full", "statistics"])
def test_only_the_scale_that_was_seen_learns_statistics_when_a_view_goes_through(arch: str, mode: str):
    model = built(arch, mode).train()
    before = {name: tensor.clone() for name, tensor in model.named_buffers()}
    model(images(16))
    changed = {name for name, tensor in model.named_buffers() if not torch.equal(tensor, before[name])}
    assert changed == {name for name in before if ".norms.16." in name}
    model(images(32))
    both = {name for name, tensor in model.named_buffers() if not torch.equal(tensor, before[name])}
    assert both == set(before)


def test_all_views_share_statistics_when_the_policy_is_off():
    model = built("test_resnet", "off").train()
    model(images(16), images(32))
    assert {int(norm.num_batches_tracked) for norm in batch_norms(model)} == {2}


def test_only_the_scale_that_was_seen_gets_gradients_for_its_affine_when_it_owns_it():
    model = built("test_resnet", "full").train()
    model(images(16))[0].sum().backward()
    own = {name for name, tensor in model.named_parameters() if ".norms.32." in name and tensor.grad is not None}
    assert own == set()
    assert all(tensor.grad is not None for name, tensor in model.named_parameters() if ".norms.16." in name)


def test_an_unseen_size_borrows_the_nearest_normalization_when_scales_own_theirs():
    model = built("test_resnet", "full", (16, 64)).train()
    for _ in range(3):
        model(images(16), images(64))
    model.eval()
    view = images(48)
    as_64 = {norm: norm.norms["64"] for norm in scale_norms(model)}
    found = model(view)[0]
    for norm in as_64:
        norm.active = "64"
    assert torch.equal(found, model.model(view))
    for norm in as_64:
        norm.active = "16"
    assert not torch.allclose(found, model.model(view))  # control
    assert (model.norm_from(48), model.norm_from(20), model.norm_from(16)) == (64, 16, None)
    assert built("test_resnet", "off").norm_from(48) is None


@pytest.mark.parametrize("mode", ["full", "statistics", "off"])
def test_one_forward_gives_the_logits_of_each_view_when_they_go_in_together(mode: str):
    model = built("test_resnet", mode).eval()
    small, large = model(images(16), images(32))
    assert torch.equal(small, model(images(16))[0])
    assert torch.equal(large, model(images(32))[0])


@pytest.mark.parametrize("mode", ["full", "statistics", "off"])
def test_a_state_is_the_same_when_copied_into_another_model(mode: str):
    source, target = built("test_resnet", mode, seed=1).train(), built("test_resnet", mode, seed=2)
    source(images(16), images(32))
    copy_state(state_tensors(source), target)
    assert all(
        torch.equal(a, b) for a, b in zip(source.state_dict().values(), target.state_dict().values(), strict=True)
    )
    expected = source.eval()(images(16), images(32))
    assert all(torch.equal(a, b) for a, b in zip(expected, target.eval()(images(16), images(32)), strict=True))


def test_a_state_is_refused_when_a_name_is_missing_or_too_much():
    model = built("test_resnet", "off")
    state = state_tensors(model)
    lacking = dict(list(state.items())[1:])
    with pytest.raises(RuntimeError, match="does not fit"):
        copy_state(lacking, model)
    with pytest.raises(RuntimeError, match="stranger"):
        copy_state({**state, "stranger": torch.zeros(1)}, model)


def test_a_state_is_refused_with_the_name_when_a_shape_differs():
    model = built("test_resnet", "off")
    state = {**state_tensors(model), "model.fc.bias": torch.zeros(1)}
    with pytest.raises(RuntimeError, match=r"model\.fc\.bias: shape \(1,\) does not fit \(10,\)"):
        copy_state(state, model)


def test_pretrained_weights_are_refused_with_the_way_out_when_there_is_no_network():
    settings = Settings(arch="test_resnet", pretrained=True)
    with pytest.raises(InputError, match=r"--pretrained: the weights of test_resnet .*HF_HUB_OFFLINE=1") as caught:
        pretrained(settings, plan_model(settings, 10, SCALES).arguments)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("arch", "name"), [("repvgg_a0", "stem.conv_1x1.conv"), ("fastvit_t8", "stem.0.conv_scale.conv")]
)
def test_gradients_are_those_of_twice_the_precision_when_a_stride_skips_pixels_of_few_channels(arch: str, name: str):
    """oneDNN's own are wrong at this size, or end the process."""
    model = built(arch, "off", (112,)).eval()
    exact = timm.create_model(arch, num_classes=10).double().eval()
    exact.load_state_dict({key: value.double() for key, value in model.model.state_dict().items()})
    pixels = images(112, count=2)
    for logits in (model(pixels.contiguous(memory_format=torch.channels_last))[0], exact(pixels.double())):
        (logits * torch.arange(10)).sum().backward()
    found, right = model.model.get_parameter(f"{name}.weight").grad, exact.get_parameter(f"{name}.weight").grad
    assert torch.allclose(found.double(), right, rtol=1e-3, atol=1e-4 * right.abs().max().item())


def test_a_model_is_built_when_some_of_its_convolutions_are_of_more_than_images():
    model = built("lambda_resnet26t", "off", (64,))
    assert {parameter.ndim for parameter in model.parameters()} >= {4, 5}
    assert model(images(64, count=2))[0].shape == (2, 10)
