"""What unit tests of several modules share."""

from collections.abc import Iterator

import pytest
from accelerate import Accelerator

from toolkit import Settings
from toolkit.training import device


@pytest.fixture
def accelerator() -> Iterator[Accelerator]:
    """A real one, forgotten afterwards."""
    accelerator = device.start(Settings(log_with="none"))
    yield accelerator
    device.stop()
