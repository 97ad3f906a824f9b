"""The optimizer, by timm's name."""

import pytest
import timm
import torch
from timm.optim._optim_factory import OptimInfo, default_registry

from toolkit import InputError, Settings
from toolkit.models.optimizer import check_optimizer, create_optimizer

CPU = torch.device("cpu")


def test_an_unknown_optimizer_is_refused_with_the_nearest_when_it_is_mistyped():
    model = timm.create_model("test_resnet")
    with pytest.raises(InputError, match=r"--optimizer adamww: .*did you mean adamw"):
        create_optimizer(Settings(optimizer="adamww"), model)


@pytest.mark.parametrize("name", ["adamw", "sgd", "lamb"])
def test_biases_and_normalization_are_not_decayed_when_weights_are(name: str):
    model = timm.create_model("test_resnet")
    optimizer = create_optimizer(Settings(optimizer=name, weight_decay=0.125, learning_rate=0.5), model)
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    for parameter in model.parameters():
        assert decay[id(parameter)] == (0.125 if parameter.ndim > 1 else 0)
    assert {group["lr"] for group in optimizer.param_groups} == {0.5}


@pytest.mark.parametrize("name", ["adamw", "lamb", "muon", "adafactorbv"])
def test_an_optimizer_is_taken_when_it_moves_and_its_state_can_be_saved(name: str):
    check_optimizer(Settings(optimizer=name), CPU)


def test_an_optimizer_is_refused_when_it_fails_with_gradients_alone():
    with pytest.raises(InputError, match=r"^--optimizer adahessian cannot be used here: .*grad"):
        check_optimizer(Settings(optimizer="adahessian"), CPU)


def test_an_optimizer_is_refused_when_its_state_cannot_be_saved(monkeypatch: pytest.MonkeyPatch):
    class Odd(torch.optim.SGD):
        def step(self, closure: None = None) -> None:
            super().step(closure)
            self.state[self.param_groups[0]["params"][0]]["seen"] = {1, 2}

    monkeypatch.setitem(default_registry._optimizers, "odd", OptimInfo("odd", Odd, has_eps=False))
    with pytest.raises(
        InputError, match=r"^--optimizer odd keeps a state that cannot be saved: state\.0\.seen is a set$"
    ):
        check_optimizer(Settings(optimizer="odd"), CPU)
