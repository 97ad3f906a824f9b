"""Data sets that were read before other layouts and formats were: their indices stay, so that their runs go on."""

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import write_image
from toolkit import Settings
from toolkit.data.sources.splits import open_splits


def bmp(seed: int) -> bytes:
    """An image whose encoding no version of a library changes."""
    content = io.BytesIO()
    pixels = np.frombuffer(np.random.default_rng(seed).bytes(6 * 5 * 3), dtype=np.uint8).reshape(6, 5, 3)
    Image.fromarray(pixels).save(content, "BMP")
    return content.getvalue()


def folders(root: Path) -> None:
    for split, count in (("train", 5), ("validation", 2), ("test", 1)):
        for name in ("cat", "Dog", "émeu"):
            for i in range(count):
                (root / split / name / "deep").mkdir(parents=True, exist_ok=True)
                (root / split / name / ("deep" if i % 2 else "") / f"{i}.BMP").write_bytes(bmp(i))
    (root / "train/notes.txt").write_text("")
    (root / "train/cat/.hidden.bmp").write_bytes(bmp(0))
    for other in ("Test/cat/0.bmp", "dev/cat/0.bmp", "training/cat/0.bmp"):  # names that count only where others lack
        (root / other).parent.mkdir(parents=True, exist_ok=True)
        (root / other).write_bytes(bmp(1))
    (root / "labels.csv").write_text("filepath,label\n")


def manifests(root: Path) -> None:
    (root / "a b").mkdir()
    rows = ["filepath,other,label"]
    for i in range(8):
        (root / f"a b/é{i}.bmp").write_bytes(bmp(i))
        rows.append(f"{'./' if i == 3 else ''}a b/é{i}.bmp,x, {i % 2}")
    (root / "train.csv").write_bytes("\r\n".join(["\ufeff" + rows[0], *rows[1:]]).encode())
    (root / "valid.csv").write_text("\n".join(rows[:5]))
    (root / "class_names.txt").write_text("no\nyes\n")


def shards(root: Path) -> None:
    for name in ("train-0.tar", "train-1.tar", "val-0.tar"):
        with tarfile.open(root / name, "w") as tar:
            for i in range(4):
                for ending, content in (("bmp", bmp(i)), ("cls", str(i % 2).encode())):
                    member = tarfile.TarInfo(f"./{i}.{ending}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))


# SHA-256 of train and val, as the version before gave them.
DIGESTS = {
    "folders": ({"train": "9414e7df6bccc35b", "val": "b79cecae28b62e7f"}, ("Dog", "cat", "émeu")),
    "manifests": ({"train": "d341a26d01519248", "val": "09ff3e31c83644cf"}, ("no", "yes")),
    "shards": ({"train": "6ab88272d3d96e85", "val": "4f459203cee401dd"}, ("0", "1")),
}


@pytest.mark.parametrize("write", [folders, manifests, shards])
def test_an_index_is_what_it_was_when_a_data_set_could_be_read_before(tmp_path: Path, write):
    write(tmp_path)
    splits = open_splits(Settings(data_root=str(tmp_path)), 32)
    digests = {name: found["sha256"][:16] for name, found in splits.digests().items()}
    assert (digests, splits.classes) == DIGESTS[write.__name__]
    if write is folders:  # control
        write_image(tmp_path / "train/cat/9.bmp")
        again = open_splits(Settings(data_root=str(tmp_path)), 32).digests()
        assert again["train"]["sha256"][:16] != digests["train"]
