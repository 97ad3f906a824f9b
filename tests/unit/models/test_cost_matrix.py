"""--cost-matrix: classes in any order, and one line for each mistake."""

from pathlib import Path

import numpy as np
import pytest

from toolkit import InputError
from toolkit.models.cost_matrix import read_costs, written_costs

CLASSES = ("cat", "dog", "fox, red")
GOOD = 'true,dog,"fox, red",cat\n"fox, red",1,0,2\ncat,3.5,4,0\ndog,0,5,6e1\n'


def write(folder: Path, text: str, encoding: str = "utf-8") -> Path:
    path = folder / "costs.csv"
    path.write_text(text, encoding=encoding, newline="")
    return path


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_rows_and_columns_come_into_the_order_of_the_classes(tmp_path: Path, encoding: str, end: str):
    costs = read_costs(write(tmp_path, "\n" + GOOD.replace("\n", end) + " , \n", encoding), CLASSES)
    assert costs.tolist() == [[0, 3.5, 4], [60, 0, 5], [2, 1, 0]]
    again = read_costs(write(tmp_path, written_costs(costs, CLASSES)), CLASSES)
    assert np.array_equal(again, costs)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "the file is empty: its first row has the names of the classes"),
        (GOOD.replace(",", ";"), "its first row has one cell: give the names of the classes, separated by commas"),
        (GOOD.replace("true,dog", "true,dgo"), "first row: 'dgo' is no class of the data; did you mean dog?"),
        (GOOD.replace("\ndog", "\ndgo"), "first column: 'dgo' is no class of the data; did you mean dog?"),
        (GOOD.replace("dog,0,5,6e1\n", ""), "first column: it lacks 1 of 3 classes: 'dog'"),
        ("1,2,3,4\n5,6,7,8\n", "first row: '2' is no class of the data; the names of the classes stand there"),
        (GOOD.replace("\ndog", "\ncat"), "first column: 'cat' is there 2 times: each class once"),
        (GOOD.replace("3.5,4,0", "3.5,4"), "line 3 (cat): 2 costs for 3 classes: one for each"),
        (GOOD.replace("3.5", "-3.5"), "line 3 (cat, column dog): '-3.5' is no cost: a number, 0 or more"),
        (GOOD.replace("3.5", "much"), "line 3 (cat, column dog): 'much' is no cost: a number, 0 or more"),
        (GOOD.replace("3.5", "nan"), "line 3 (cat, column dog): 'nan' is no cost: a number, 0 or more"),
        (GOOD.replace("3.5", ""), "line 3 (cat, column dog): '' is no cost: a number, 0 or more"),
    ],
)
def test_a_mistake_is_named_with_its_place(tmp_path: Path, text: str, told: str):
    path = write(tmp_path, text)
    with pytest.raises(InputError) as error:
        read_costs(path, CLASSES)
    assert str(error.value).startswith(f"--cost-matrix {path}")
    assert told in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_that_is_not_there_and_a_folder_are_refused(tmp_path: Path):
    with pytest.raises(InputError, match=r"gone\.csv: no such file"):
        read_costs(tmp_path / "gone.csv", CLASSES)
    with pytest.raises(InputError, match="is a folder: give a file"):
        read_costs(tmp_path, CLASSES)
