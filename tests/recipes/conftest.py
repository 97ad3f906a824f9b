"""One finished run that all tests of what comes after training share."""

from pathlib import Path

import pytest

from tests.conftest import recipe, write_image
from toolkit.data.sources import synthetic


@pytest.fixture(scope="session")
def finished(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run at 16 and 32 px on the built-in data, with 50 validation and 100 test images."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    words = ["--synthetic-count", "300", "--synthetic-size", "32", "--scales", "16,32", "--epochs", "2"]
    assert recipe("multiscale")([*words, "--log-with", "none", "--no-amp", "--output-dir", str(folder)]) == 0
    return folder


@pytest.fixture(scope="session")
def data(finished: Path) -> Path:
    """The images of that run."""
    return synthetic.prepare(32, 300)


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in an empty folder, as a user would."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def odd(tmp_path: Path, data: Path) -> Path:
    """Two good images, four bad ones, what is hidden, and what is none."""
    folder = tmp_path / "odd"
    write_image(folder / "a.png")
    write_image(folder / "below" / "b.jpg")
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "text.png").write_text("not an image")
    whole = next((data / "val").rglob("*.jpg")).read_bytes()
    (folder / "truncated.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "gone.jpg").symlink_to("nowhere.jpg")
    write_image(folder / ".hidden.png")
    write_image(folder / ".cache" / "thumbnail.png")
    (folder / "notes.txt").write_text("notes")
    return folder
