"""A scan finds what is wrong with real files, and nothing where nothing is."""

import io
import json
import os
import shutil
import struct
import subprocess
import sys
import tarfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from tests.conftest import paths_of, write_image
from toolkit import InputError, Settings
from toolkit.data.images.decode import WHOLE
from toolkit.data.sources.index import Index, Names
from toolkit.data.sources.splits import open_splits
from toolkit.data.sources.survey import Finding, Survey, survey
from toolkit.tools.clean_manifest import refuse_manifest, write_manifest
from toolkit.tools.contact_sheets import write_contact_sheets
from toolkit.tools.scan import check_images
from toolkit.tools.scan_outputs import table, to_json, verdict
from toolkit.tools.scan_report import ScanReport


def write_set(root: Path, ending: str = "png", classes: tuple[str, ...] = ("cat", "dog")) -> Path:
    """8 training, 2 validation and 2 test images of each class, no two alike."""
    for split, count in {"train": 8, "val": 2, "test": 2}.items():
        for name in classes:
            for i in range(count):
                seed = zlib.crc32(os.fsencode(f"{split}{name}{i}"))
                write_image(root / split / name / f"{i}.{ending}", (40, 30), seed)
    return root


def scanned(root: Path, threads: int = 2) -> ScanReport:
    return check_images(survey(str(root)), threads)


def found(report: ScanReport) -> list[tuple[str, str, str]]:
    return [(finding.split, finding.name, finding.kind) for finding in report.findings]


@pytest.mark.parametrize("ending", ["png", "jpg", "jfif", "gif", "bmp", "tiff", "webp", "avif"])
def test_a_scan_finds_nothing_when_nothing_is_wrong(tmp_path: Path, ending: str):
    report = scanned(write_set(tmp_path, ending))
    assert report.findings == ()
    assert {split: len(ids) for split, ids in report.kept.items()} == {"train": 16, "val": 4, "test": 4}
    assert verdict(report) == f"{tmp_path}: usable as it is; nothing was found"


def cut(share: float) -> Callable[[bytes], bytes]:
    return lambda content: content[: int(share * len(content))]


def corrupted(content: bytes) -> bytes:
    """Bytes that belong to nothing before the end marker."""
    return content[:-2] + b"\x11" * 8 + content[-2:]


def huge(content: bytes) -> bytes:
    """A JPEG that says to be 60000 x 60000 px."""
    at = content.index(b"\xff\xc0") + 5
    return content[:at] + b"\xea\x60\xea\x60" + content[at + 4 :]


def bomb(_: bytes) -> bytes:
    """A PNG of 50 KB that inflates to 400 megapixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    squeeze = zlib.compressobj(9)
    rows = b"".join(squeeze.compress(bytes(2501 * 100)) for _ in range(200)) + squeeze.flush()  # 20000 rows of 1 bit
    header = struct.pack(">IIBBBBB", 20_000, 20_000, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


FAULTS = [
    ("jpg", lambda content: b"", "empty", "the file is empty"),
    ("jpg", lambda content: b"<html>404</html>", "unreadable", "no image in a known format"),
    ("jpg", cut(0.5), "truncated", "truncated"),
    ("jpg", cut(0.99), "truncated", "truncated"),
    ("jpg", lambda content: content[:60], "truncated", "without a frame header"),
    ("png", cut(0.5), "truncated", "truncated"),
    ("gif", cut(0.5), "truncated", "truncated"),
    ("bmp", cut(0.5), "truncated", "truncated"),
    ("tiff", cut(0.5), "truncated", "truncated"),
    ("webp", cut(0.5), "truncated", "could not create decoder object"),
    ("jpg", corrupted, "damaged", "Corrupt JPEG data: 6 extraneous bytes"),
    ("png", bomb, "too large", "400000000 pixels"),
    ("jpg", huge, "too large", "60000 x 60000 px, more than 179 megapixels"),
]


@pytest.mark.parametrize(("ending", "spoil", "kind", "reason"), FAULTS)
def test_an_image_is_named_with_its_fault_when_it_has_one(tmp_path: Path, ending: str, spoil, kind: str, reason: str):
    file = write_set(tmp_path, ending) / "train" / "dog" / f"3.{ending}"
    file.write_bytes(spoil(file.read_bytes()))
    report = scanned(tmp_path)
    assert found(report) == [("train", f"train/dog/3.{ending}", kind)]
    assert reason in report.findings[0].reason
    assert report.splits["train"].bad == {kind: 1}
    assert report.kept["train"].tolist() == [*range(11), *range(12, 16)]  # 8 cats, then dogs 0 ... 7
    assert report.serious()


PEAKS = """
import sys
from pathlib import Path
import numpy as np
from toolkit.data.sources.survey import survey
from toolkit.tools.scan import check_images

def peak_mb():
    # not getrusage: a process that was just started has its parent's peak there
    lines = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines["VmHWM"].split()[0]) / 1024

clean, bombs = sys.argv[1:]
assert not check_images(survey(clean), 2).findings
before = peak_mb()
assert [finding.kind for finding in check_images(survey(bombs), 2).findings] == ["too large"] * 8
after = peak_mb()
np.ones(300_000_000, dtype=np.uint8)
print(after - before, peak_mb() - after)
"""


@pytest.mark.slow
def test_memory_stays_flat_when_images_would_inflate(tmp_path: Path):
    root = write_set(tmp_path / "bombs")
    for i, file in enumerate(sorted(root.glob("train/cat/*"))):
        file.write_bytes(bomb(b"") + bytes(i))  # no two alike
    clean = write_set(tmp_path / "clean")
    told = subprocess.check_output([sys.executable, "-c", PEAKS, str(clean), str(root)], text=True)
    grown, control = map(float, told.split())
    assert grown < 50
    assert control > 200


def test_a_file_is_reported_and_kept_when_its_name_says_another_format(tmp_path: Path):
    root = write_set(tmp_path)
    (root / "val/cat/1.png").rename(root / "val/cat/1.jpg")
    report = scanned(root)
    assert report.findings == (Finding("val", "val/cat/1.jpg", "wrong type", "the content is PNG, the name says JPEG"),)
    assert len(report.kept["val"]) == 4
    assert report.serious() == []


def test_files_that_are_left_out_are_told_by_kind_when_there_are_some(tmp_path: Path):
    root = write_set(tmp_path)
    for file in ("train/cat/a.xcf", "train/dog/b.xcf", "train/cat/noname", "val/loose.png", "val/cat/.hidden.txt"):
        (root / file).write_bytes(b"")
    report = scanned(root)
    assert report.findings == (
        Finding("train", "train/cat/a.xcf", "left out", "no image of a class; 2 .xcf"),
        Finding("train", "train/cat/noname", "left out", "no image of a class; 1 without a suffix"),
        Finding("val", "val/cat/.hidden.txt", "left out", "1 hidden or system file (.hidden.txt)"),
        Finding("val", "val/loose.png", "left out", "no image of a class; 1 in no class folder"),
    )
    assert report.serious() == []


def test_a_class_is_told_when_it_is_a_link_to_nothing(tmp_path: Path):
    root = write_set(tmp_path)
    shutil.rmtree(root / "train/cat")
    (root / "train/cat").symlink_to("gone")
    assert found(scanned(root)) == [("train", "cat", "unreadable"), ("train", "cat", "class missing")]


def test_every_file_is_checked_when_many_are_bad(tmp_path: Path):
    root = write_set(tmp_path)
    for file in root.glob("train/*/*"):
        file.write_bytes(b"")
    report = scanned(root)
    assert report.splits["train"].bad == {"empty": 16}
    assert len(report.findings) == 16  # empty files are no copies of one another


def test_a_report_does_not_depend_on_threads_when_their_number_changes(tmp_path: Path):
    root = write_set(tmp_path)
    for i in range(8, 90):  # several pieces of work
        write_image(root / "train/cat" / f"{i}.png", (10 + i, 12), i)
    (root / "train/cat/50.png").write_bytes(b"")
    assert to_json(scanned(root, 1)) == to_json(scanned(root, 5))


@pytest.mark.parametrize("quality", [60, 95])
def test_damage_shows_alike_when_only_an_eighth_of_a_jpeg_is_drawn(quality: int):
    rng = np.random.default_rng(quality)
    smooth = np.asarray(Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8)).resize((160, 120)))
    content = simplejpeg.encode_jpeg(np.ascontiguousarray(smooth), quality=quality)

    def complaint(spoilt: bytes, **how: int) -> str:
        try:
            simplejpeg.decode_jpeg(spoilt, "RGB", **how)
        except ValueError as error:
            return str(error)
        return ""

    seen = set()
    for at in rng.integers(700, len(content), 200).tolist():
        spoilt = bytearray(content)
        spoilt[at] ^= 1 << int(rng.integers(8))
        seen.add(complaint(bytes(spoilt)))
        assert complaint(bytes(spoilt), **WHOLE) == complaint(bytes(spoilt))
    assert "" in seen
    assert any(text.startswith("Corrupt JPEG data") for text in seen)


def copy(root: Path, source: str, target: str) -> None:
    (root / target).write_bytes((root / source).read_bytes())


def test_a_copy_is_a_leak_when_it_lies_in_a_split_used_before(tmp_path: Path):
    root = write_set(tmp_path)
    copy(root, "test/cat/0.png", "train/cat/3.png")
    copy(root, "test/cat/0.png", "val/cat/1.png")
    copy(root, "val/dog/0.png", "train/cat/4.png")
    report = scanned(root)
    assert {(finding.name, finding.kind, finding.reason) for finding in report.findings} == {
        ("train/cat/3.png", "leak", "the same content as test/cat/0.png, class cat"),
        ("val/cat/1.png", "leak", "the same content as test/cat/0.png, class cat"),
        ("train/cat/4.png", "leak", "the same content as val/dog/0.png, class dog"),
    }
    assert {split: len(ids) for split, ids in report.kept.items()} == {"train": 14, "val": 3, "test": 4}


def test_a_copy_is_harmless_when_it_lies_in_the_same_split_and_class(tmp_path: Path):
    root = write_set(tmp_path)
    copy(root, "train/cat/0.png", "train/cat/5.png")
    report = scanned(root)
    assert found(report) == [("train", "train/cat/5.png", "duplicate")]
    assert report.serious() == []
    assert len(report.kept["train"]) == 16


def test_a_copy_would_leak_when_validation_images_are_drawn_from_train(tmp_path: Path):
    """All content twice: whatever training holds out, it also trains on."""
    root = write_set(tmp_path / "data")
    shutil.rmtree(root / "val")
    for file in sorted(root.glob("train/*/*")):
        copy(root, str(file.relative_to(root)), f"{file.relative_to(root).parent}/copy-{file.name}")
    splits = open_splits(Settings(data_root=str(root)), 32)
    contents = [{path.read_bytes() for path in paths_of(index)} for index in (splits.train, splits.val)]
    assert contents[1] <= contents[0]
    report = scanned(root)
    assert [(split, kind) for split, _, kind in found(report)] == [("train", "would leak")] * 16
    assert report.findings[0].reason == (
        "the same content as train/cat/0.png, class cat; of train a part would be held out for validation"
    )
    assert len(report.serious()) == 16
    write_manifest(report, tmp_path / "manifest")
    assert scanned(tmp_path / "manifest").findings == ()
    write_image(root / "val/cat/0.png", seed=1)  # control
    write_image(root / "val/dog/0.png", seed=2)
    assert {kind for _, _, kind in found(scanned(root))} == {"duplicate"}


def write_shard(file: Path, numbers: Sequence[int], labels: Sequence[int]) -> None:
    """A tar of small images; equal numbers are equal images."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, "w") as tar:
        for i, (number, label) in enumerate(zip(numbers, labels, strict=True)):
            picture = io.BytesIO()
            Image.new("RGB", (20, 20), (number, 0, 0)).save(picture, "PNG")
            for name, content in ((f"{i:03d}.png", picture.getvalue()), (f"{i:03d}.cls", str(label).encode())):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


def test_shards_are_scanned_as_they_lie_when_they_have_no_validation_split(tmp_path: Path):
    write_shard(tmp_path / "train/0.tar", [0, 1, 2, 3, 0], [0, 1, 0, 1, 0])
    report = scanned(tmp_path)
    assert {split: counts.images for split, counts in report.splits.items()} == {"train": 5}
    assert found(report) == [("train", "train/0.tar/004.png", "would leak")]
    write_shard(tmp_path / "train/0.tar", [0, 1, 2], [0, 1, 0])
    assert found(scanned(tmp_path)) == [("train", "1", "class missing")]  # training would refuse it
    with pytest.raises(InputError, match="class '1' has 1 image"):
        open_splits(Settings(data_root=str(tmp_path)), 32)


def test_copies_contradict_each_other_when_their_classes_differ(tmp_path: Path):
    root = write_set(tmp_path)
    copy(root, "train/cat/0.png", "train/dog/5.png")
    report = scanned(root)
    assert found(report) == [
        ("train", "train/cat/0.png", "contradiction"),
        ("train", "train/dog/5.png", "contradiction"),
    ]
    assert report.findings[0].reason == "the same content as train/dog/5.png, class dog"
    assert len(report.kept["train"]) == 14


CLASSES = [
    ({"train": "cat dog", "val": "cat dog emu"}, ("val", "emu", "class extra")),
    ({"train": "cat dog emu-0", "val": "cat dog emu"}, ("train", "emu", "class missing")),
    ({"train": "cat dog emu-1"}, ("train", "emu", "class missing")),
    ({"train": "cat"}, ("train", "", "class missing")),
]


@pytest.mark.parametrize(("classes", "finding"), CLASSES)
def test_classes_are_compared_beside_all_else_when_training_would_refuse_them(tmp_path: Path, classes, finding):
    for split, names in classes.items():
        for name, _, count in (word.partition("-") for word in names.split()):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(int(count or 3)):
                write_image(tmp_path / split / name / f"{i}.png", seed=zlib.crc32(f"{split}{name}{i}".encode()))
    with pytest.raises(InputError):
        open_splits(Settings(data_root=str(tmp_path)), 32)
    assert found(scanned(tmp_path)) == [finding]
    (tmp_path / "train/cat/9.png").write_bytes(b"")
    report = scanned(tmp_path)
    assert found(report) == [finding, ("train", "train/cat/9.png", "empty")]
    assert finding in [(serious.split, serious.name, serious.kind) for serious in report.serious()]


def test_a_class_without_images_in_a_split_is_told_and_harmless(tmp_path: Path):
    root = write_set(tmp_path)
    shutil.rmtree(root / "test/cat")
    for file in root.glob("val/dog/*"):
        file.unlink()
    report = scanned(root)
    assert found(report) == [("test", "cat", "class untested"), ("val", "dog", "class untested")]
    assert report.serious() == []
    assert len(open_splits(Settings(data_root=str(root)), 32).val) == 2


def test_nothing_is_scanned_when_there_is_no_data_set(tmp_path: Path):
    for root, words in ((tmp_path / "nowhere", "no such folder"), (tmp_path, "neither a folder train/ nor a file")):
        with pytest.raises(InputError, match=words):
            survey(str(root))


def write_rows(root: Path, split: str, rows: Sequence[tuple[str, int]]) -> None:
    """A manifest and its images, no two alike."""
    for name, _ in rows:
        write_image(root / name, (20, 30), zlib.crc32(name.encode()))
    (root / f"{split}.csv").write_text("filepath,label\n" + "".join(f"{name},{label}\n" for name, label in rows))


def write_manifests(root: Path) -> Path:
    for split, count in {"train": 6, "val": 4, "test": 2}.items():
        write_rows(root, split, [(f"{split}-{i}.png", i % 2) for i in range(count)])
    return root


def test_a_manifest_is_scanned_when_nothing_is_wrong_with_it(tmp_path: Path):
    report = scanned(write_manifests(tmp_path))
    assert report.findings == ()
    assert (report.classes, report.splits["train"].per_class) == (("0", "1"), {"0": 3, "1": 3})


def test_every_wrong_row_is_told_when_a_manifest_has_several(tmp_path: Path):
    write_manifests(tmp_path)
    rows = "train-0.png,0\ntrain-1.png,-100\n../x.png,1\ntrain-2.png,nan\ngone.png,1\ntrain-3.png,1\n"
    (tmp_path / "train.csv").write_text("filepath,label\n" + rows)
    (tmp_path / "test.csv").write_text("file,label\n")
    write_rows(tmp_path, "val", [("val-0.png", 0), ("val-1.png", 5)])
    (tmp_path / "train-3.png").write_bytes(b"")
    report = scanned(tmp_path)
    told = {(finding.split, finding.name, finding.kind): "" for finding in report.findings}
    assert set(told) == {
        ("train", "train.csv", "bad row"),
        ("test", "test.csv", "unreadable"),
        ("val", "5", "class extra"),
        ("val", "1", "class untested"),
        ("test", "0", "class untested"),
        ("test", "1", "class untested"),
        ("train", "train-3.png", "empty"),
    }
    reasons = [finding.reason.removeprefix(f"{tmp_path}/") for finding in report.findings if finding.kind == "bad row"]
    assert [reason.split(":")[0] for reason in reasons] == [f"train.csv, line {n}" for n in (3, 4, 5, 6)]


def test_gaps_between_labels_are_told_when_a_manifest_has_them(tmp_path: Path):
    write_manifests(tmp_path)
    write_rows(tmp_path, "train", [("a.png", 0), ("b.png", 1), ("c.png", 3_000_000)])
    report = scanned(tmp_path)
    assert ("train", "2", "class missing") in found(report)
    assert report.classes == ("0", "1", "3000000")


def test_parts_of_a_file_are_scanned_when_a_source_packs_many_into_one(tmp_path: Path):
    root = write_set(tmp_path / "data")
    files = [*sorted(root.glob("train/cat/*")), root / "val/cat/0.png"]
    contents = [file.read_bytes() for file in files]
    contents[2] = contents[2][:100]
    (tmp_path / "pack.bin").write_bytes(b"".join(contents))
    lengths = np.array([len(content) for content in contents], dtype=np.int64)

    def part(ids: slice) -> Index:
        count = len(lengths[ids])
        zeros = np.zeros(count, dtype=np.int32)
        names = Names.of(f"pack/{file.name}" for file in files[ids])
        starts = (np.cumsum(lengths) - lengths)[ids]
        labels = np.arange(count) % 2
        return Index("", names, (str(tmp_path / "pack.bin"),), zeros, starts, lengths[ids], labels, zeros, zeros, zeros)

    packed = Survey({"train": part(slice(0, 8)), "val": part(slice(7, 9))}, ("a", "b"), "pack")
    assert found(check_images(packed, 2)) == [("train", "pack/2.png", "truncated"), ("train", "pack/7.png", "leak")]
    with pytest.raises(InputError, match="the images of pack are not files of one folder"):
        refuse_manifest(packed, tmp_path / "manifest")


def write_mixed(root: Path) -> Path:
    """A set of which every count is known: see the tests."""
    write_set(root)
    noise = Image.fromarray(np.random.default_rng(7).integers(0, 256, (50, 300, 3), dtype=np.uint8))
    noise.save(root / "train/cat/wide.jpg", progressive=True)
    noise.convert("L").save(root / "train/cat/gray.jpg")
    noise.convert("CMYK").save(root / "train/cat/print.jpg")
    exif = Image.Exif()
    exif[0x0112] = 6
    noise.crop((0, 0, 200, 8)).save(root / "train/dog/turned.jpg", exif=exif)
    (root / "train/dog/7.png").write_bytes(b"")
    copy(root, "test/dog/0.png", "train/dog/6.png")
    return root


def test_counts_are_right_when_a_set_is_mixed(tmp_path: Path):
    train = scanned(write_mixed(tmp_path)).splits["train"]
    files = list(tmp_path.glob("train/*/*"))
    assert (train.images, train.bytes) == (20, sum(file.stat().st_size for file in files))
    assert train.per_class == {"cat": 11, "dog": 9}
    assert train.formats == {"PNG": 15, "JPEG": 4}
    assert train.progressive == 1
    assert train.modes == {"RGB": 17, "L": 1, "CMYK": 1}
    assert train.sizes == {(40, 30): 15, (300, 50): 3, (8, 200): 1}
    assert train.smallest == ("train/cat/0.png", 40, 30)
    assert train.largest is not None
    assert train.largest[1:] == (300, 50)


def test_table_and_json_agree_when_a_set_is_mixed(tmp_path: Path):
    report = scanned(write_mixed(tmp_path))
    text, plain = table(report), json.loads(json.dumps(to_json(report)))
    columns = [plain["splits"][split] for split in ("train", "val", "test")]

    def row(*words: str) -> list[str]:
        """The cells of the line that starts with these words."""
        lines = [line.split() for line in text.splitlines()]
        return next(line[len(words) :] for line in lines if line[: len(words)] == list(words))

    assert row("images") == [str(split["images"]) for split in columns] == ["20", "4", "4"]
    assert row("bad") == [str(sum(split["bad"].values())) for split in columns] == ["1", "0", "0"]
    assert row("empty") == [str(split["bad"].get("empty", 0)) for split in columns]
    assert row("cat") == [str(split["per_class"]["cat"]) for split in columns]
    assert row("CMYK") == [str(split["modes"].get("CMYK", 0)) for split in columns]
    assert row("PNG") == [str(split["formats"]["PNG"]) for split in columns]
    assert row("progressive", "JPEG") == ["25.0%", "-", "-"]
    assert row("16", "to", "31") == ["15", "4", "4"]
    assert plain["schema"] == 1
    assert plain["usable"] is False
    assert [(f["kind"], f["name"], f["harmless"]) for f in plain["findings"]] == [
        ("empty", "train/dog/7.png", False),
        ("leak", "train/dog/6.png", False),
    ]
    for finding in plain["findings"]:
        assert f"  {finding['split']}: {finding['name']}: {finding['reason']}" in text.splitlines()
    assert text.splitlines()[-1] == f"{tmp_path}: not usable as it is: 1 empty, 1 leak"


def test_the_table_stays_short_and_the_json_whole_when_findings_are_many(tmp_path: Path):
    root = write_set(tmp_path)
    for i in range(50):
        (root / "train/cat" / f"no-{i:02d}.png").write_bytes(b"")
    report = scanned(root)
    lines = table(report).splitlines()
    assert sum("the file is empty" in line for line in lines) == 20
    assert "  ... and 30 more, in scan.json" in lines
    assert len(to_json(report)["findings"]) == 50


def test_the_table_gives_the_spread_when_classes_are_many(tmp_path: Path):
    for number in range(45):
        for i in range(1 + (number > 0) + 2 * (number == 9)):
            write_image(tmp_path / "train" / f"class-{number:02d}" / f"{i}.png", (4, 4), 100 * number + i)
    lines = [line.split() for line in table(scanned(tmp_path)).splitlines()]
    assert ["fewest", "images", "in", "one", "1"] in lines
    assert ["median", "2"] in lines
    assert ["most", "images", "in", "one", "4"] in lines


def test_a_table_can_be_printed_when_a_name_is_not_text(tmp_path: Path):
    root = write_set(tmp_path)
    (root / "train/cat" / "caf\udce9.png").write_bytes(b"")
    report = scanned(root)
    assert "caf\\udce9.png: the file is empty" in table(report)
    json.dumps(to_json(report)).encode()


RED, GREEN = (200, 0, 0), (0, 200, 0)


def test_a_contact_sheet_shows_good_images_upright_when_a_class_has_bad_ones(tmp_path: Path):
    root = write_set(tmp_path, classes=("cat", "dog", "très petit"))
    for file in root.glob("*/dog/*"):
        file.unlink()
    half = Image.new("RGB", (224, 112), RED)
    half.paste(GREEN, (112, 0, 224, 112))
    exif = Image.Exif()
    exif[0x0112] = 6  # seen upright: red above, green below, 112 x 224
    half.save(root / "train/dog/0.png", exif=exif)
    (root / "train/dog/1.png").write_bytes(b"")
    write_contact_sheets(scanned(root), tmp_path / "sheets")
    assert {file.name for file in (tmp_path / "sheets").iterdir()} == {
        "0000-cat.png",
        "0001-dog.png",
        "0002-très_petit.png",
    }
    sheet = np.array(Image.open(tmp_path / "sheets/0001-dog.png"))
    assert sheet.shape == (164, 728, 3)  # below the class, a row of 6 columns of 112 px, 8 px apart, with file names
    head, tile, name = ((sheet[rows] != 255).any(axis=2) for rows in (slice(30), slice(30, 142), slice(142, 164)))
    assert head.any()
    assert name[:, 8:120].any()
    assert not name[:, 120:].any()
    ink = np.argwhere(tile)
    assert (ink.min(axis=0).tolist(), ink.max(axis=0).tolist()) == ([0, 36], [111, 91])  # one tile, 56 x 112
    assert tuple(sheet[50, 64]) == RED
    assert tuple(sheet[130, 64]) == GREEN


def test_a_written_manifest_opens_without_what_was_found_when_images_are_bad(tmp_path: Path):
    root = write_mixed(tmp_path / "data, with a comma")
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    folder = tmp_path / "out" / "manifest"
    write_manifest(scanned(root), folder)
    splits = open_splits(Settings(data_root=str(folder)), 32)
    assert splits.classes == ("cat", "dog")
    assert {name: len(index) for name, index in splits.all().items()} == {"train": 18, "val": 4, "test": 4}
    assert not {"images/train/dog/6.png", "images/train/dog/7.png"} & set(splits.train.names)
    for index in splits.all().values():
        assert len(index.unreadable()) == 0
        assert all(
            splits.classes[label] in name for name, label in zip(index.names, index.labels.tolist(), strict=True)
        )
    assert scanned(folder).findings == ()
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before
    with pytest.raises(InputError, match="manifest is there already"):
        refuse_manifest(survey(str(root)), folder)


def test_a_written_manifest_opens_when_it_mends_another(tmp_path: Path):
    root = write_manifests(tmp_path / "data")
    (root / "train-3.png").write_bytes(b"")
    write_rows(root, "val", [*((f"val-{i}.png", i % 2) for i in range(4)), ("extra.png", 2)])
    write_manifest(scanned(root), tmp_path / "manifest")
    splits = open_splits(Settings(data_root=str(tmp_path / "manifest")), 32)
    assert {name: len(index) for name, index in splits.all().items()} == {"train": 5, "val": 4, "test": 2}
    assert splits.train.labels.tolist() == [0, 1, 0, 0, 1]


def test_a_manifest_is_refused_when_nothing_of_a_split_would_be_left(tmp_path: Path):
    root = write_set(tmp_path)
    for file in root.glob("val/*/*"):
        file.write_bytes(b"")
    with pytest.raises(InputError, match="no image would be left in val"):
        write_manifest(scanned(root), tmp_path / "manifest")
    assert not (tmp_path / "manifest").exists()


@pytest.mark.parametrize(("text", "told"), [("cat\n", "1 different names"), ("cat\ncat\n", "1 different names")])
def test_class_names_are_refused_when_they_do_not_fit_the_labels(tmp_path: Path, text: str, told: str):
    root = write_manifests(tmp_path)
    (root / "class_names.txt").write_text(text)
    with pytest.raises(InputError, match=rf"class_names\.txt: {told}; it needs one a line for each of 2 classes"):
        open_splits(Settings(data_root=str(root)), 32)


def test_names_of_classes_stay_when_a_manifest_is_mended_by_another(tmp_path: Path):
    root = write_manifests(tmp_path / "data")
    (root / "class_names.txt").write_text("cat\nred dog\n")
    report = scanned(root)
    assert report.findings == ()
    assert report.splits["train"].per_class == {"cat": 3, "red dog": 3}
    write_manifest(report, tmp_path / "manifest")
    assert (tmp_path / "manifest/class_names.txt").read_text() == "cat\nred dog\n"


def test_names_of_classes_are_told_when_they_do_not_fit_the_labels(tmp_path: Path):
    root = write_manifests(tmp_path)
    (root / "class_names.txt").write_text("cat\n")
    report = scanned(root)
    assert found(report) == [("train", "class_names.txt", "unreadable")]
    assert report.classes == ("0", "1")
    write_rows(root, "train", [("a.png", 0), ("b.png", 2), ("c.png", 0), ("d.png", 2)])  # 1 is in val only
    assert scanned(root).classes == ("0", "1", "2")


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("cat ", "class 'cat ' cannot stand in class_names.txt"),
        ("two\nlines", r"class 'two\\nlines' cannot stand"),
        ("caf\udce9", r"class 'caf\\udce9' cannot stand"),
    ],
)
def test_nothing_is_left_when_a_class_has_a_name_that_no_manifest_can_hold(tmp_path: Path, name: str, told: str):
    root = write_set(tmp_path / "data", classes=("cat", name))
    report = scanned(root)
    assert report.findings == ()
    with pytest.raises(InputError, match=told):
        write_manifest(report, tmp_path / "out/manifest")
    assert list((tmp_path / "out").iterdir()) == []


SHEETS = """
import sys
from pathlib import Path
from toolkit.data.sources.survey import survey
from toolkit.tools.scan import check_images
from toolkit.tools.contact_sheets import write_contact_sheets

def peak_mb():
    lines = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines["VmHWM"].split()[0]) / 1024

report = check_images(survey(sys.argv[1]), 2)
before = peak_mb()
write_contact_sheets(report, Path(sys.argv[2]))
print(peak_mb() - before)
"""


@pytest.mark.slow
def test_memory_stays_flat_when_there_are_contact_sheets_of_many_classes(tmp_path: Path):
    """200 sheets of 1 MB each."""
    for number in range(200):
        for i in range(2):
            write_image(tmp_path / "data/train" / f"{number:03d}" / f"{i}.png", (8, 8), 2 * number + i)
    words = [sys.executable, "-c", SHEETS, str(tmp_path / "data"), str(tmp_path / "sheets")]
    assert float(subprocess.check_output(words, text=True)) < 60
    assert len(list((tmp_path / "sheets").iterdir())) == 200


def test_a_manifest_is_refused_when_a_class_would_be_left_with_too_little_to_hold_out(tmp_path: Path):
    root = write_set(tmp_path)
    shutil.rmtree(root / "val")
    for file in sorted(root.glob("train/dog/*"))[1:]:
        file.write_bytes(b"")
    with pytest.raises(InputError, match="class 'dog' would have 1 image in train, too few to hold one out"):
        write_manifest(scanned(root), tmp_path / "manifest")


def test_a_manifest_has_no_test_split_when_none_of_it_is_left(tmp_path: Path):
    root = write_set(tmp_path)
    for file in root.glob("test/*/*"):
        file.write_bytes(b"")
    write_manifest(scanned(root), tmp_path / "manifest")
    assert not (tmp_path / "manifest/test.csv").exists()
    assert open_splits(Settings(data_root=str(tmp_path / "manifest")), 32).test is None


def test_a_manifest_is_refused_when_the_name_of_an_image_is_no_text(tmp_path: Path):
    root = write_set(tmp_path / "data")
    image = next((root / "train").rglob("*.png"))
    image.rename(image.with_name("caf\udce9.png"))
    with pytest.raises(InputError, match=r"train\.csv would be in UTF-8, and the name of an image is not"):
        write_manifest(scanned(root), tmp_path / "out/manifest")
    assert list((tmp_path / "out").iterdir()) == []
