"""Tar shards: read by offset, never extracted, refused by shard and member where they are wrong."""

import io
import json
import os
import tarfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import recipe, write_folders
from toolkit import InputError, Settings
from toolkit.data.loading.reader import ImageReader
from toolkit.data.sources.index import Splits
from toolkit.data.sources.read import read_bytes
from toolkit.data.sources.splits import open_splits

Members = Iterable[tuple[str, bytes]]


def image(seed: int, form: str = "PNG", size: tuple[int, int] = (20, 16)) -> bytes:
    """An encoded image of noise, width x height."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, form)
    return content.getvalue()


def write_tar(path: Path, members: Members) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def samples(first: int, count: int, classes: int = 2) -> Members:
    for i in range(first, first + count):
        yield f"{i:04d}.png", image(i)
        yield f"{i:04d}.cls", str(i % classes).encode()


def write_shards(root: Path, shards: int = 3, per_shard: int = 4, beside: bool = False) -> Path:
    """Train shards and one of validation; image and label of a sample follow from its number."""
    joint = "-" if beside else "/"
    for shard in range(shards):
        write_tar(root / f"train{joint}{shard:03d}.tar", samples(shard * per_shard, per_shard))
    write_tar(root / f"val{joint}000.tar", samples(1000, 4))
    return root


def opened(root: Path, **values) -> Splits:
    return open_splits(Settings(data_root=str(root), **values), 32)


@pytest.mark.parametrize("beside", [False, True])
def test_every_member_is_found_where_it_lies_when_shards_are_read(tmp_path: Path, beside: bool):
    splits = opened(write_shards(tmp_path / "data", beside=beside))
    joint = "-" if beside else "/"
    assert list(splits.train.names)[:5:4] == [f"train{joint}000.tar/0000.png", f"train{joint}001.tar/0004.png"]
    assert splits.train.labels.tolist() == [0, 1] * 6
    assert splits.classes == ("0", "1")
    assert [read_bytes(splits.train, i) for i in range(12)] == [image(i) for i in range(12)]
    assert [read_bytes(splits.val, i) for i in range(4)] == [image(i) for i in range(1000, 1004)]
    assert set(zip(splits.train.width.tolist(), splits.train.height.tolist(), strict=True)) == {(20, 16)}
    expected = np.asarray(Image.open(io.BytesIO(image(7))))
    assert np.array_equal(ImageReader(splits.train).whole(7), expected)


def test_labels_come_from_json_and_names_from_a_file_when_there_are_such(tmp_path: Path):
    labels = [{"label": 1, "who": "x"}, {"label": 0}]
    members = [(f"deep/a.b/{i}.jpg", image(i, "JPEG")) for i in range(2)]
    members += [(f"deep/a.b/{i}.json", json.dumps(labels[i]).encode()) for i in range(2)]
    members += [("deep/a.b/0.txt", b"a caption"), ("deep/a.b/0.seg.png", image(9)), ("deep/._0.jpg", b"no image")]
    write_tar(tmp_path / "train/a.tar", members)
    write_tar(tmp_path / "validation/a.tar", members)
    write_tar(tmp_path / "test/a.tar", samples(0, 1))
    (tmp_path / "class_names.txt").write_text("cat\nred dog\n")
    splits = opened(tmp_path)
    assert splits.classes == ("cat", "red dog")
    assert list(splits.train.names) == ["train/a.tar/deep/a.b/0.jpg", "train/a.tar/deep/a.b/1.jpg"]
    assert splits.train.labels.tolist() == [1, 0]
    assert splits.test is not None
    assert splits.test.labels.tolist() == [0]


def test_image_and_label_find_each_other_when_their_names_have_dots(tmp_path: Path):
    members = [("img_0.5.jpg", image(0, "JPEG")), ("img_0.5.cls", b"1"), ("img_0.7.jpg", image(1, "JPEG"))]
    members += [("img_0.7.cls", b"0"), ("a.b/v1.2.png", image(2)), ("a.b/v1.2.json", b'{"label": 1}')]
    members += [("c.png", image(3)), ("c.cls", b"0"), ("c.seg.png", image(4)), ("c.crop.json", b'{"label": 7}')]
    write_tar(tmp_path / "train/a.tar", members)
    write_tar(tmp_path / "valid/a.tar", members)
    train = opened(tmp_path).train
    assert [name.removeprefix("train/a.tar/") for name in train.names] == [
        "img_0.5.jpg",
        "img_0.7.jpg",
        "a.b/v1.2.png",
        "c.png",  # c.seg.png and c.crop.json are further fields of it
    ]
    assert train.labels.tolist() == [1, 0, 1, 0]
    assert [read_bytes(train, i) for i in (0, 3)] == [image(0, "JPEG"), image(3)]


@pytest.mark.parametrize("joint", ["/", "-"])
def test_shards_are_refused_when_a_split_has_two_names(tmp_path: Path, joint: str):
    root = write_shards(tmp_path, beside=joint == "-")
    write_tar(root / f"validation{joint}000.tar", samples(2000, 4))
    with pytest.raises(InputError, match="has val and validation, which are names of one and the same split"):
        opened(root)


@pytest.mark.parametrize("joint", ["/", "-"])
def test_validation_shards_are_found_when_they_are_called_valid(tmp_path: Path, joint: str):
    for split in ("train", "valid"):
        write_tar(tmp_path / f"{split}{joint}000.tar", samples(0, 4))
    assert opened(tmp_path).val.names[0].startswith(f"valid{joint}000.tar")


def test_validation_is_held_out_of_shards_when_there_is_none(tmp_path: Path):
    write_tar(tmp_path / "train-0.tar", samples(0, 20))
    splits = opened(tmp_path, val_split=0.2)
    assert sorted(splits.val.labels.tolist()) == [0, 0, 1, 1]
    assert len(splits.train) == 16
    held = {read_bytes(splits.val, i) for i in range(4)}
    assert held | {read_bytes(splits.train, i) for i in range(16)} == {image(i) for i in range(20)}


def test_folders_of_classes_win_when_the_archive_they_came_from_lies_beside_them(tmp_path: Path):
    write_folders(tmp_path, {"train": 2, "val": 1})
    (tmp_path / "train.tar").write_bytes(b"anything")
    assert opened(tmp_path).classes == ("cat", "dog")


def test_only_a_changed_shard_is_read_again_when_a_data_set_is_opened_twice(tmp_path: Path):
    root = write_shards(tmp_path / "data")
    opened(root)
    for shard in ("train/000.tar", "train/002.tar"):  # unreadable now, but as before for all that stat tells
        file = root / shard
        stat = file.stat()
        file.write_bytes(bytes(stat.st_size))
        os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    write_tar(root / "train/001.tar", samples(100, 3))
    assert [name for name in opened(root).train.names if "001.tar" in name] == [
        f"train/001.tar/010{i}.png" for i in range(3)
    ]
    os.utime(root / "train/002.tar", ns=(0, 0))  # the control: this one is read again, and is none
    with pytest.raises(InputError, match=r"train/002\.tar"):
        opened(root)


@pytest.mark.parametrize("at", [0.0, 0.02, 0.5, 0.98])
def test_a_damaged_cache_counts_as_none_when_shards_are_opened_again(tmp_path: Path, at: float):
    root = write_shards(tmp_path / "data")
    before = opened(root, cache_dir=tmp_path / "cache").digests()
    tables = list((tmp_path / "cache/index").glob("*.npz"))
    assert len(tables) == 4
    for table in tables:
        content = bytearray(table.read_bytes())
        content[int(at * len(content))] ^= 255
        table.write_bytes(content)
    assert opened(root, cache_dir=tmp_path / "cache").digests() == before
    for table in tables:
        table.write_bytes(table.read_bytes()[:300])
    assert opened(root, cache_dir=tmp_path / "cache").digests() == before


def cut(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


def damaged_header(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[2 * 512 + 150] ^= 255  # the checksum of the second member: the first one takes a header and a block
    path.write_bytes(content)


GOOD = list(samples(0, 4))
SMALL = [("a.cls", b"0"), ("b.cls", b"1")]
WRONG = [
    ([*GOOD, ("0001.png", image(5))], r"0001\.png: a second image of the same sample"),
    ([*GOOD, ("0001.jpg", image(5, "JPEG"))], r"0001\.jpg: a second image of the same sample, beside .*0001\.png"),
    ([*GOOD, ("0001.cls", b"1")], r"0001\.cls: a second label"),
    ([*GOOD, ("x/9.png", image(5))], r"x/9\.png has no label"),
    ([*GOOD, ("x/9.png", image(5)), ("x/9.json", b'{"a": 1}')], r"x/9\.png has no label"),
    ([*GOOD, ("9.5.png", image(5)), ("9.cls", b"1")], r"9\.5\.png has no label"),
    ([*GOOD, ("9.5.cls", b"1")], r"9\.5 has a label, but no image"),
    ([*GOOD, ("x/9.cls", b"1")], "x/9 has a label, but no image"),
    ([*GOOD, ("9.png", image(5)), ("9.cls", b"dog")], r"9\.cls: label 'dog' is not a whole number"),
    ([*GOOD, ("9.png", image(5)), ("9.cls", b"-100")], r"9\.cls: label -100 is out of range"),
    ([*GOOD, ("9.png", image(5)), ("9.json", b'{"label": 1.0}')], r"9\.json: label '1\.0' is not a whole number"),
    ([*GOOD, ("9.png", image(5)), ("9.json", b'{"label": true}')], r"9\.json: label 'True' is not a whole number"),
    ([*GOOD, ("9.png", image(5)), ("9.json", b"{label")], r"9\.json: not JSON"),
    ([*GOOD, ("9.png", image(5)), ("9.json", b"[" * 100_000)], r"9\.json: not JSON"),
    ([*GOOD, ("9.png", image(5)), ("9.cls", b"0_1")], r"9\.cls: label '0_1' is not a whole number"),
]


@pytest.mark.parametrize("place", ["train/000.tar", "val/000.tar"])
@pytest.mark.parametrize(("members", "words"), WRONG, ids=range(len(WRONG)))
def test_a_shard_is_refused_with_its_member_when_samples_are_wrong(tmp_path: Path, place: str, members, words: str):
    write_shards(tmp_path)
    write_tar(tmp_path / place, members)
    with pytest.raises(InputError, match=words) as caught:
        opened(tmp_path)
    assert str(tmp_path / place) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["../canary.png", "a/../../canary.png", "{root}/canary.png", ".."])
def test_a_shard_is_refused_when_a_member_leads_out_of_it(tmp_path: Path, name: str):
    root, canary = write_shards(tmp_path / "data"), tmp_path / "canary.png"
    canary.write_bytes(b"untouched")
    name = name.format(root=tmp_path)
    write_tar(root / "train/001.tar", [*GOOD, (name, image(0)), (f"{name}.cls", b"0")])
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InputError, match=r"an absolute name, or one with '..', is refused") as caught:
        opened(root)
    assert str(root / "train/001.tar") in str(caught.value)
    assert canary.read_bytes() == b"untouched"
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: cut(path, 512 * 2 + 100),  # in a header
        lambda path: cut(path, 512 * 2),  # where a header should be
        lambda path: cut(path, 512 + 1),  # in an image
        lambda path: cut(path, 100),
        lambda path: cut(path, 0),
        damaged_header,
        lambda path: path.write_bytes(path.read_bytes() * 2),
        lambda path: path.write_bytes(b"<html>not found</html>" * 100),
    ],
)
def test_a_shard_is_refused_when_it_is_truncated_or_damaged(tmp_path: Path, spoil):
    root = write_shards(tmp_path)
    shard = write_tar(root / "train/001.tar", SMALL)
    spoil(shard)
    with pytest.raises(InputError, match=r"truncated or damaged|not a whole uncompressed tar") as caught:
        opened(root)
    assert str(shard) in str(caught.value)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda root: write_tar(root / "train/009.tar", [("9.png", image(9)), ("9.cls", b"3")]), "2 is not used, 3 is"),
        (
            lambda root: write_tar(root / "val/9.tar", [("9.png", image(9)), ("9.cls", b"2")]),
            "9.png: label 2 is out of",
        ),
        (
            lambda root: (root / "class_names.txt").write_text("cat\n"),
            "1 different names; it needs one a line for each of 2 classes",
        ),
    ],
)
def test_shards_are_refused_when_their_labels_do_not_fit_together(tmp_path: Path, spoil, words: str):
    spoil(write_shards(tmp_path))
    with pytest.raises(InputError, match=words):
        opened(tmp_path)


def test_an_image_that_is_none_is_named_when_training_begins(tmp_path: Path, capsys):
    root = write_shards(tmp_path / "data")
    write_tar(root / "train/001.tar", [*samples(4, 3), ("0007.png", b"<html>"), ("0007.cls", b"1")])
    words = (
        "--data-root",
        str(root),
        "--arch",
        "test_resnet",
        "--img-size",
        "32",
        "--batch-size",
        "4",
        "--epochs",
        "1",
    )
    where = ("--output-dir", str(tmp_path / "run"), "--log-with", "none", "--num-workers", "0")
    assert recipe("single_scale")([*words, *where]) == 2
    told = capsys.readouterr().err
    assert "train/001.tar/0007.png: cannot be read as an image: the content is no image in a known format" in told
    assert recipe("single_scale")([*words, *where, "--on-bad-sample", "quarantine"]) == 0  # trains by offset


def test_class_folders_are_read_when_a_tar_lies_among_them(tmp_path: Path):
    write_folders(tmp_path, {"train": 3, "val": 1})
    write_tar(tmp_path / "train/backup.tar", samples(0, 4))
    write_tar(tmp_path / "train.tar", samples(0, 4))
    assert opened(tmp_path).train.names[0] == "train/cat/0.png"
