"""The optimizer, by timm's name."""

import pytest
import timm

from toolkit import InputError, Settings
from toolkit.optim import create_optimizer


def test_an_unknown_optimizer_is_refused_with_the_nearest_when_it_is_mistyped():
    model = timm.create_model("test_resnet")
    with pytest.raises(InputError, match=r"--optimizer adamww: .*did you mean adamw"):
        create_optimizer(Settings(optimizer="adamww"), model)


@pytest.mark.parametrize("name", ["adamw", "sgd", "lamb"])
def test_biases_and_normalisation_are_not_decayed_when_weights_are(name: str):
    model = timm.create_model("test_resnet")
    optimizer = create_optimizer(Settings(optimizer=name, weight_decay=0.125, learning_rate=0.5), model)
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    for parameter in model.parameters():
        assert decay[id(parameter)] == (0.125 if parameter.ndim > 1 else 0)
    assert {group["lr"] for group in optimizer.param_groups} == {0.5}
