"""A run's best model, opened again at sizes that it may not have met."""

from pathlib import Path

import pytest
import torch

from toolkit import InputError, Settings
from toolkit.models.create import create
from toolkit.models.inspection import plan_model
from toolkit.models.multiview import state_tensors
from toolkit.runs import best_model
from toolkit.runs.directory import RunDirectory
from toolkit.runs.run_config import config_of
from toolkit.strategies import SingleScale
from toolkit.strategies.base import Strategy
from toolkit.tools.loaded_run import load_run

CLASSES = ("cat", "dog")


def saved(folder: Path, arch: str, strategy: Strategy, largest: int) -> dict[str, torch.Tensor]:
    """A run's folder as far as its model goes; `largest` px was its largest size."""
    settings, directory = Settings(arch=arch, log_with="none"), RunDirectory(folder)
    directory.create(config_of(settings, strategy), CLASSES)
    model = create(settings, plan_model(settings, len(CLASSES), [largest]).arguments, strategy.norm())
    best_model.save(directory.best, state_tensors(model), {"epoch": 3})
    return state_tensors(model)


@pytest.mark.parametrize("size", [16, 48, 64])
def test_a_model_with_a_table_of_positions_is_opened_when_another_size_is_asked_for(tmp_path: Path, size: int):
    state = saved(tmp_path, "test_vit", SingleScale(32), 32)
    trained = load_run(tmp_path, [size])
    opened = state_tensors(trained.model)
    assert all(torch.equal(opened[name], tensor) for name, tensor in state.items())
    assert set(trained.gmacs) == {32, size}
    with torch.no_grad():
        assert trained.model(torch.zeros(1, 3, size, size))[0].shape == (1, 2)


def test_a_size_is_refused_when_the_architecture_cannot_take_it(tmp_path: Path):
    saved(tmp_path, "mixer_s32_224", SingleScale(32), 32)
    with pytest.raises(InputError, match="cannot take 20 px"):
        load_run(tmp_path, [20])


@pytest.mark.parametrize(
    ("then", "now", "told"),
    [
        ("strategy: single", "strategy: alternating", "--strategy alternating: must be one of single, progressive"),
        ("strategy: single", "strategy: mine:Own", "--strategy mine:Own: the module is not imported: --import mine"),
        ("test_vit", "test_resnet", "state does not fit the model"),
    ],
)
def test_a_run_is_refused_when_its_config_is_of_another(tmp_path: Path, then: str, now: str, told: str):
    saved(tmp_path, "test_vit", SingleScale(32), 32)
    config = tmp_path / "config.yaml"
    config.write_text(config.read_text().replace(then, now))
    with pytest.raises(InputError, match=told):
        load_run(tmp_path)
