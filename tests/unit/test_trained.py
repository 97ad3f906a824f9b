"""A run's best model, opened again at sizes that it may not have met."""

from pathlib import Path

import pytest
import torch

from toolkit import InputError, Settings, checkpoint
from toolkit.contract import Strategy
from toolkit.models import create, plan_model, state_tensors
from toolkit.rundir import RunDirectory, config_of
from toolkit.strategies import SingleScale
from toolkit.trained import open_trained

CLASSES = ("cat", "dog")


def saved(folder: Path, arch: str, strategy: Strategy, largest: int) -> dict[str, torch.Tensor]:
    """A run's folder as far as its model goes; `largest` px was its largest size."""
    settings, directory = Settings(arch=arch, log_with="none"), RunDirectory(folder)
    directory.create(config_of(settings, strategy), CLASSES)
    model = create(settings, plan_model(settings, len(CLASSES), [largest]), strategy.norm())
    checkpoint.save_best(directory.best, state_tensors(model), {"epoch": 3})
    return state_tensors(model)


@pytest.mark.parametrize("size", [16, 48, 64])
def test_a_model_with_a_table_of_positions_is_opened_when_another_size_is_asked_for(tmp_path: Path, size: int):
    state = saved(tmp_path, "test_vit", SingleScale(32), 32)
    trained = open_trained(tmp_path, [size])
    opened = state_tensors(trained.model)
    assert all(torch.equal(opened[name], tensor) for name, tensor in state.items())
    assert set(trained.gmacs) == {32, size}
    with torch.no_grad():
        assert trained.model(torch.zeros(1, 3, size, size))[0].shape == (1, 2)


def test_a_size_is_refused_when_the_architecture_cannot_take_it(tmp_path: Path):
    saved(tmp_path, "test_vit", SingleScale(32), 32)
    with pytest.raises(InputError, match="cannot take 20 px"):
        open_trained(tmp_path, [20])


def test_a_model_is_refused_when_it_is_of_another_architecture(tmp_path: Path):
    saved(tmp_path, "test_vit", SingleScale(32), 32)
    config = tmp_path / "config.yaml"
    config.write_text(config.read_text().replace("test_vit", "test_resnet"))
    with pytest.raises(InputError, match="state does not fit the model"):
        open_trained(tmp_path)
