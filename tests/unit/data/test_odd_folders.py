"""Odd folders and manifests: each image found once with its own label, and nothing read that lies outside."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import paths_of, write_folders, write_image, write_manifest
from toolkit import InputError, Settings
from toolkit.data.loading.reader import ImageReader
from toolkit.data.sources.folders import search_folder
from toolkit.data.sources.index import Index
from toolkit.data.sources.splits import open_splits
from toolkit.system.errors import BadSampleError


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


@pytest.mark.parametrize("here", ["train/cat", "val", "."])
def test_all_images_are_found_when_the_folder_is_named_from_within(
    root: Path, monkeypatch: pytest.MonkeyPatch, here: str
):
    """As `python recipes/scan.py ../..` in a class's folder."""
    monkeypatch.chdir(root / here)
    found = search_folder(os.path.relpath(root))
    assert [name for name in found.images if name.startswith("train/")] == PLAIN
    assert search_folder(f"{root}/val/../train/cat").images == ["0.png", "1.png"]


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
        assert np.array_equal(ImageReader(index).whole(i), np.array(Image.open(path)))


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
        ImageReader(index).whole(2)


GONE = ["train/emu", "train/cat/part", "val/dog", "val"]


@pytest.mark.parametrize("place", GONE)
def test_a_folder_is_refused_when_it_is_a_link_to_nothing(root: Path, place: str):
    """A disk that is not mounted: without its class, all later ones would have other numbers."""
    if (root / place).exists():
        shutil.rmtree(root / place)
    (root / place).symlink_to(root.parent / "gone")
    if place == "train/emu":
        write_image(root / "val/emu/0.png")
    with pytest.raises(InputError, match=rf"data/{place}: (is a link to nothing: mount .*gone|must be a folder)"):
        opened(root)
    write_image(root.parent / "gone" / ("" if place.count("/") else "cat") / "0.png")  # control
    if place == "val":
        write_image(root.parent / "gone/dog/0.png")
    opened(root)


def test_a_split_is_refused_when_it_lies_there_under_two_names(root: Path):
    write_folders(root, {"validation": 1})
    with pytest.raises(InputError, match="data: has val and validation, which are names of one and the same split"):
        opened(root)
    shutil.rmtree(root / "val")  # control
    opened(root)
    write_manifest(root, "train", [("a.png", 0), ("b.png", 1)])
    for name in ("val", "valid"):
        write_manifest(root, name, [("a.png", 0), ("b.png", 1)])
    with pytest.raises(InputError, match=r"data: has val\.csv and valid\.csv"):
        opened(root)


@pytest.fixture
def deep(root: Path) -> Iterator[str]:
    """The path, below train/, of an image in more folders than Python recurses."""
    folder = os.open(root / "train/cat", os.O_RDONLY)
    for _ in range(1200):
        os.mkdir("d", dir_fd=folder)
        below = os.open("d", os.O_RDONLY, dir_fd=folder)
        os.close(folder)
        folder = below
    with os.fdopen(os.open("x.png", os.O_WRONLY | os.O_CREAT, dir_fd=folder), "wb") as file:
        file.write((root / "train/cat/0.png").read_bytes())
    os.close(folder)
    yield f"train/cat/{'d/' * 1200}x.png"
    subprocess.run(["rm", "-r", root / "train/cat/d"], check=True)  # Python before 3.13 would recurse here too


def test_images_are_found_when_folders_are_deeper_than_python_recurses(root: Path, deep: str):
    assert names(opened(root))[2] == deep


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
    for i in range(1, 4):
        write_image(root / "sub" / f"{i}.png")
    write_rows(root, *(f"sub/{i}.png,{i % 2}" for i in range(4)))  # control
    assert len(opened(root)) == 2
