"""What a model said of each image is a by-product: a run does not fail for it."""

from pathlib import Path

import numpy as np
import pytest

from tests.conftest import index_of, write_image
from toolkit.data.loading.reader import ImageReader
from toolkit.models.metrics import UNREADABLE, PredictionTable
from toolkit.runs import saved_predictions


def two_images(folder: Path) -> tuple[PredictionTable, ImageReader]:
    names = [write_image(folder / name).name for name in ("a.png", "b.png")]
    said, sure = np.array([[1, UNREADABLE]]), np.array([[0.75, 0.0]])
    predictions = PredictionTable.of_classes(("8px",), np.array([0, 1]), said, sure, np.array([[0.25, 0.0]]))
    return predictions, ImageReader(index_of(folder, names, [0, 1]))


def test_what_was_written_is_read_again(tmp_path: Path):
    predictions, images = two_images(tmp_path / "data")
    saved_predictions.keep(tmp_path / "predictions", "val", predictions, images)
    found = saved_predictions.read(tmp_path / "predictions", "val")
    assert found.names == ("a.png", "b.png")
    assert list(found.hardest) == [0]  # the other could not be read
    for name in ("labels", "predicted", "confidence", "p_label"):
        assert np.array_equal(getattr(found.table, name), getattr(predictions, name))


def test_a_run_goes_on_when_it_cannot_be_written(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    predictions, images = two_images(tmp_path / "data")
    (tmp_path / "predictions").write_text("a file where the folder should be")
    saved_predictions.keep(tmp_path / "predictions", "val", predictions, images)
    assert "could not be written" in caplog.text
    with pytest.raises(OSError, match="predictions"):  # the control
        saved_predictions.write(tmp_path / "predictions", "val", predictions, images)


def test_values_that_are_no_numbers_and_classes_with_slashes_are_read_again(tmp_path: Path):
    images = two_images(tmp_path / "data")[1]
    values = np.array([[[float("nan"), 0.25], [float("inf"), 1.0]]])
    table = PredictionTable(("8px",), np.array([[0, 1], [1, 1]]), ("p_T-shirt/top", "p_all"), values)
    saved_predictions.write(tmp_path / "predictions", "val", table, images)
    found = saved_predictions.read(tmp_path / "predictions", "val")
    assert found is not None
    assert (found.table.specs, found.table.columns) == (table.specs, table.columns)
    assert np.array_equal(found.table.values, values, equal_nan=True)
    assert np.array_equal(found.table.labels, table.labels)
