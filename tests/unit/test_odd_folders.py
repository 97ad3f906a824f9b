"""Odd folders and manifests: each image found once with its own label, and nothing read that lies outside."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import paths_of, write_folders, write_image, write_manifest
from toolkit import InputError, Settings
from toolkit.data.index import Index
from toolkit.data.pixels import Pixels
from toolkit.data.splits import open_splits
from toolkit.errors import BadSampleError


def opened(root: Path) -> Index:
    return open_splits(Settings(data_root=str(root)), 32).train


def names(index: Index) -> list[str]:
    return list(index.names)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_folders(tmp_path / "data", {"train": 2, "val": 1})


PLAIN = ["train/cat/0.png", "train/cat/1.png", "train/dog/0.png", "train/dog/1.png"]


def hidden_folders(root: Path) -> None:
    write_image(root / "train/.thumbnails/0.png")
    write_image(root / "train/cat/.thumbnails/0.png")


def left_by_a_file_manager(root: Path) -> None:
    (root / "train/cat/._0.jpg").write_bytes(b"\0\5\x16\7")
    (root / "train/.DS_Store").write_bytes(b"")
    (root / "train/cat/Thumbs.db").write_bytes(b"")


def link_to_itself(root: Path) -> None:
    (root / "train/cat/loop").symlink_to("loop")


def link_to_the_class(root: Path) -> None:
    (root / "train/cat/loop").symlink_to(".")


def link_to_the_split(root: Path) -> None:
    """Followed, it would make cats of dogs."""
    (root / "train/cat/loop").symlink_to("..")


def link_to_the_root(root: Path) -> None:
    (root / "train/cat/deep").mkdir()
    (root / "train/cat/deep/loop").symlink_to(root)


def class_elsewhere_with_a_link_back(root: Path) -> None:
    (root / "train/cat").rename(root.parent / "cats")
    (root / "train/cat").symlink_to(root.parent / "cats")
    (root.parent / "cats/loop").symlink_to(root / "train")


@pytest.mark.parametrize(
    "spoil",
    [
        hidden_folders,
        left_by_a_file_manager,
        link_to_itself,
        link_to_the_class,
        link_to_the_split,
        link_to_the_root,
        class_elsewhere_with_a_link_back,
    ],
)
def test_each_image_is_found_once_with_its_own_label_when_a_folder_is_odd(root: Path, spoil):
    spoil(root)
    index = opened(root)
    assert names(index) == PLAIN
    assert index.labels.tolist() == [0, 0, 1, 1]
    assert index.unreadable().tolist() == []


def test_a_linked_folder_of_images_belongs_to_its_class_when_it_leads_elsewhere(root: Path):
    """The control of the loops above: links are followed."""
    write_image(root.parent / "more" / "7.png")
    (root / "train/cat/linked").symlink_to(root.parent / "more")
    assert names(opened(root)) == [*PLAIN[:2], "train/cat/linked/7.png", *PLAIN[2:]]


def test_unicode_and_spaces_are_kept_when_they_stand_in_paths(tmp_path: Path):
    root = write_folders(tmp_path / "my data", {"train": 1, "val": 1}, ("chien bleu", "Kätzchen 🐈"))
    write_image(root / "train/Kätzchen 🐈/sub folder/日本 1.png", seed=5)
    (root / "train/chien bleu/0.png").rename(os.fsdecode(os.fsencode(root / "train/chien bleu") + b"/\xff.png"))
    index = opened(root)
    cats = ["train/Kätzchen 🐈/0.png", "train/Kätzchen 🐈/sub folder/日本 1.png"]
    assert names(index) == [*cats, "train/chien bleu/\udcff.png"]
    for i, path in enumerate(paths_of(index)):
        assert np.array_equal(Pixels(index).whole(i), np.array(Image.open(path)))


def test_a_class_of_a_circular_link_is_refused_as_empty(root: Path):
    (root / "train/loop").symlink_to(".")
    write_image(root / "val/loop/0.png")
    with pytest.raises(InputError, match="train/loop: class 'loop' has no images"):
        opened(root)


def test_a_pipe_is_refused_when_it_has_the_name_of_an_image(root: Path):
    os.mkfifo(root / "train/cat/2.png")
    with pytest.raises(InputError, match=r"train/cat/2\.png: is no regular file"):
        opened(root)


def test_a_link_to_nothing_is_an_unreadable_image(root: Path):
    (root / "train/cat/2.png").symlink_to("gone.png")
    index = opened(root)
    assert index.unreadable().tolist() == [2]
    with pytest.raises(BadSampleError, match=r"train/cat/2\.png: cannot be read as an image: No such file"):
        Pixels(index).whole(2)


def write_rows(root: Path, *rows: str) -> None:
    (root / "train.csv").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(("filepath,label", *rows)).encode())


def test_a_manifest_with_a_byte_order_mark_quotes_and_spaces_is_read(tmp_path: Path):
    odd = 'a "b", c é.png'
    write_image(tmp_path / odd)
    write_image(tmp_path / "sub folder" / "1.png")
    write_rows(tmp_path, '"a ""b"", c é.png",0', '"sub folder/1.png", 1')
    write_manifest(tmp_path, "val", [("0.png", 0), ("1.png", 1)])
    index = opened(tmp_path)
    assert names(index) == [odd, "sub folder/1.png"]
    assert index.labels.tolist() == [0, 1]


@pytest.mark.parametrize("where", ["../outside.png", "sub/../../outside.png", "{absolute}"])
def test_a_manifest_is_refused_with_its_row_when_a_path_leads_out_of_it(tmp_path: Path, where: str):
    canary = write_image(tmp_path / "outside.png")
    before = canary.read_bytes(), canary.stat().st_mtime_ns
    root = tmp_path / "data"
    write_image(root / "sub" / "0.png")
    path = where.format(absolute=canary)
    assert (root / path).is_file()  # it could be read
    write_rows(root, "sub/0.png,0", f"{path},1")
    with pytest.raises(InputError, match=r"train\.csv, line 3: .*outside\.png leads out of .*data") as caught:
        opened(root)
    assert len(str(caught.value).splitlines()) == 1
    assert (canary.read_bytes(), canary.stat().st_mtime_ns) == before
    write_rows(root, "sub/0.png,0", "sub/0.png,1", "sub/0.png,0", "sub/0.png,1")  # control
    assert len(opened(root)) == 2
