"""Images as other programs write them: gray of more than 8 bits, bytes astray, libraries that print."""

import csv
import io
import json
import re
import struct
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import ROOT, Runner, index_of, recipe
from toolkit.data.images.decode import read_pixels
from toolkit.data.loading.downscaled import open_downscaled
from toolkit.data.loading.levels import few_levels
from toolkit.data.loading.reader import ImageReader
from toolkit.data.sources.python_data import index_unlabeled
from toolkit.system.errors import BadSampleError

DARK = 4  # of 257: gray of 16 bits that 8 bits do not tell apart
TRAINING = ("--arch", "test_resnet", "--img-size", "32", "--epochs", "6", "--batch-size", "10", "--log-with", "none")
TRAINING = (*TRAINING, "--num-workers", "1", "--learning-rate", "4e-3", "--crop-scale", "1", "--warmup-epochs", "0")


def encoded(image: Image.Image, form: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def ramp(dtype: str, low: float, high: float) -> Image.Image:
    return Image.fromarray(np.linspace(low, high, 32 * 32).reshape(32, 32).astype(dtype))


def stripes(label: int, seed: int) -> Image.Image:
    """Upright or level stripes, in gray of 16 bits that lies within two levels of 8 bits."""
    rng = np.random.default_rng(seed)
    wave = np.sin(np.arange(32) / 2 + rng.uniform(0, 6))[:, None] + rng.normal(0, 0.2, (32, 32))
    values = 257 * (DARK + 0.4 * wave)
    return Image.fromarray((values.T if label else values).round().astype(np.uint16))


@pytest.fixture(scope="module")
def dark(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dark")
    for split, count in (("train", 30), ("val", 10)):
        for label in range(2):
            place = folder / split / "ab"[label]
            place.mkdir(parents=True)
            for i in range(count):
                form = ("png", "tif")[i % 2]
                stripes(label, 1000 * label + i + 100 * count).save(place / f"{i}.{form}")
    return folder


@pytest.mark.slow
def test_dark_images_are_named_by_scan_and_plan_and_learned_with_the_flag(
    dark: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    assert recipe("scan")([str(dark), "--no-contact-sheets", "--output-dir", "first"]) == 2
    found = json.loads(Path("first/scan.json").read_text())["findings"]
    assert {finding["kind"] for finding in found} == {"few levels"}
    assert len(found) == 80
    assert "--range minmax or percentile" in found[0]["reason"]
    assert recipe("scan")([str(dark), "--range", "minmax", "--output-dir", "second"]) == 0
    words = ("--data-root", str(dark), *TRAINING)
    assert recipe("single_scale")((*words, "--dry-run")) == 0
    told = "".join(capfd.readouterr())
    assert "--range 16bit leaves fewer than 32 levels of gray to 32 of 32 images looked at" in told
    assert recipe("single_scale")((*words, "--range", "percentile", "--output-dir", "run")) == 0
    assert "levels of gray" not in "".join(capfd.readouterr())  # control
    learned = json.loads(Path("run/summary.json").read_text())["val"]["32px"]["top1"]
    assert learned >= 90
    assert recipe("evaluate")(["run", "--no-amp", "--output-dir", "evaluated"]) == 0
    evaluated = json.loads(Path("evaluated/evaluation.json").read_text())["splits"]["val"]["32px"]["top1"]
    assert evaluated == learned
    assert recipe("evaluate")(["run", "--no-amp", "--data-root", str(dark / "val"), "--output-dir", "other"]) == 0
    other = json.loads(Path("other/evaluation.json").read_text())["splits"]["val"]["32px"]["top1"]
    assert other == learned
    assert recipe("predict")(["run", str(dark / "val"), "--no-amp", "--output", "rows.csv"]) == 0
    with Path("rows.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert 100 * np.mean([Path(row["path"]).parent.name == row["label"] for row in rows]) == learned
    assert recipe("export")(["run", "--formats", "safetensors"]) == 0
    card = Path("run/export/README.md").read_text()
    assert "--range percentile" in card
    levels = float(re.search(r"does that with NumPy and Pillow: ([\d.e-]+) of 255 gray levels off", card)[1])
    assert levels < 1e-3  # with the range of the run; of plain PIL, tens
    again = (*words, "--output-dir", "run")  # the range is a part of what a run learns
    assert recipe("single_scale")(again) == 2
    assert "--range percentile, now 16bit" in capfd.readouterr().err


DEEP = {
    "16 bits": (encoded(ramp("uint16", 1000, 2000), "PNG"), (3, 7)),
    "16 bits, JPEG 2000": (encoded(ramp("uint16", 1000, 2000), "JPEG2000", irreversible=False), (3, 7)),
    "16 bits, PGM": (encoded(ramp("int32", 1000, 2000), "PPM"), (3, 7)),
    "32 bits": (encoded(ramp("int32", -1000, 70000), "TIFF"), None),
    "floats": (encoded(ramp("float32", -3, 1200), "TIFF"), None),
    "floats to 1": (encoded(ramp("float32", 0, 0.04), "TIFF"), (0, 10)),
}


@pytest.mark.parametrize("name", DEEP)
def test_gray_of_more_than_8_bits_is_mapped_by_the_range_that_was_asked_for(name: str):
    content, plain = DEEP[name]
    if plain is None:
        with pytest.raises(ValueError, match="--range minmax or percentile"):
            read_pixels(content)
    else:
        pixels = read_pixels(content)[0]
        assert (pixels.min(), pixels.max()) == plain
    by_own = read_pixels(content, gray="minmax")[0]
    assert (by_own.min(), by_own.max()) == (0, 255)
    assert len(np.unique(by_own)) == 256
    share = read_pixels(content, gray="percentile")[0]
    assert (share == 255).sum() == (share == 0).sum() > (by_own == 255).sum()  # ends are cut off


def test_a_range_that_is_none_is_black_or_refused():
    flat = encoded(Image.fromarray(np.full((4, 4), 777, np.uint16)), "PNG")
    assert not read_pixels(flat, gray="minmax")[0].any()
    holes = encoded(Image.fromarray(np.array([[0.5, np.nan]], np.float32)), "TIFF")
    with pytest.raises(ValueError, match="infinite or not a number"):
        read_pixels(holes, gray="percentile")
    color = encoded(Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3)), "PNG")
    assert np.array_equal(read_pixels(color)[0], read_pixels(color, gray="minmax")[0])  # 8 bits stay as they are


def test_a_mask_of_few_values_is_no_dark_image(tmp_path: Path):
    for i in range(4):
        Image.fromarray(np.array([[0, 30000, 65535]], np.uint16)).save(tmp_path / f"{i}.png")
    assert few_levels(index_of(tmp_path, [f"{i}.png" for i in range(4)], [0, 0, 1, 1])) == ""


def test_images_passed_from_python_follow_the_range_too():
    deep = ImageReader(replace(index_unlabeled([stripes(0, 1), ramp("int32", -5, 9000)]), gray="minmax"))
    assert all(np.ptp(deep.whole(i)) == 255 for i in range(2))
    with pytest.raises(BadSampleError, match="--range minmax"):
        ImageReader(index_unlabeled([ramp("int32", -5, 9000)])).whole(0)  # control


def test_copies_on_disk_are_of_the_range_that_was_asked_for(tmp_path: Path):
    (tmp_path / "images").mkdir()
    Image.fromarray(np.kron(np.array(stripes(0, 3)), np.ones((4, 4), np.uint16))).save(tmp_path / "images" / "0.png")
    index = index_of(tmp_path / "images", ["0.png"], [0])
    plain, by_own = (open_downscaled(replace(index, gray=gray), 32, tmp_path) for gray in ("16bit", "minmax"))
    assert plain.containers[0] != by_own.containers[0]
    assert np.ptp(ImageReader(plain).whole(0)) < 10 < 100 < np.ptp(ImageReader(by_own).whole(0))


def photo(form: str = "JPEG", **options: object) -> bytes:
    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(0, 256, (12, 12, 3), dtype=np.uint8))
    return encoded(small.resize((96, 96), Image.Resampling.BICUBIC), form, **options)


WHOLE, TURNED = photo(quality=95), Image.Exif()
TURNED[0x0112] = 6
PROFILE = b"\xff\xe2" + struct.pack(">H", 2 + 14 + 8) + b"ICC_PROFILE\0\x09\x02" + bytes(8)  # part 9 of 2
FRAME = b"\xff\xc0"
ODD = {
    "junk.jpg": WHOLE.replace(b"\xff\xdb", b"junk\xff\xdb", 1),
    "junk-before-the-frame.jpg": WHOLE.replace(FRAME, b"\0\0\0" + FRAME, 1),
    "junk-before-the-scan.jpg": WHOLE.replace(b"\xff\xda", b"junk\xff\0\xff\xda", 1),
    "junk-before-exif.jpg": b"\xff\xd8junk" + photo(quality=95, exif=TURNED)[2:],
    "profile.jpg": WHOLE[:2] + PROFILE + WHOLE[2:],
}
CUT = {
    "cut.jpg": ODD["junk.jpg"][:-300],
    "cut-with-a-profile.jpg": ODD["profile.jpg"][:-300] + b"\xff\xd9",
    "zeros.jpg": WHOLE[:20] + bytes(200_000),
}


def truncated_tiff() -> bytes:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    content = bytearray(encoded(Image.fromarray(noise), "TIFF", compression="tiff_lzw"))
    content[200:2000] = b"\xff" * 1800
    return bytes(content)


def test_jpegs_with_bytes_astray_before_their_pixels_are_read_and_noted_and_cut_ones_are_not(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    for name, content in {**ODD, **CUT, "broken.tif": truncated_tiff()}.items():
        for label in "ab":
            place = tmp_path / "data" / "train" / label / name
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(content + label.encode())
    assert recipe("scan")(["data", "--output-dir", "scan"]) == 2
    kinds = {name: set() for name in (*ODD, *CUT, "broken.tif")}
    for finding in json.loads(Path("scan/scan.json").read_text())["findings"]:
        kinds[Path(finding["name"]).name].add(finding["kind"])
    assert {name: kinds[name] for name in ODD} == {name: {"astray bytes"} for name in ODD}
    assert kinds["cut.jpg"] == kinds["cut-with-a-profile.jpg"] == {"truncated"}
    assert kinds["zeros.jpg"] <= {"unreadable", "truncated"}
    assert kinds["broken.tif"] == {"unreadable"}
    told = capfd.readouterr()
    lines = [line for line in (told.out + told.err).splitlines() if "LZW" in line or "libtiff" in line.lower()]
    assert not [line for line in lines if "broken.tif" not in line]


@pytest.mark.parametrize("name", ODD)
def test_pixels_behind_astray_bytes_are_those_of_the_file_without_them(name: str):
    assert np.array_equal(read_pixels(ODD[name])[0], read_pixels(WHOLE)[0])
    half, full = read_pixels(ODD[name], 2)
    assert (half.shape[:2], full) == ((48, 48), (96, 96))


def test_damage_behind_astray_bytes_is_still_seen():
    middle = len(WHOLE) * 6 // 10
    for content in ODD.values():
        with pytest.raises(ValueError, match=r"premature end|bad Huffman|extraneous bytes|found marker"):
            read_pixels(content[:middle] + content[middle + 200 :])


PRINTING = """
import io, sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from PIL import Image
from toolkit.data.images.decode import read_pixels
from toolkit.data.images.header import read_header

for name in sys.argv[1:4]:  # control
    try:
        image = Image.open(name)
        image.getexif()
        image.load() if name != "large.png" else None
    except OSError:
        pass
print("ours", file=sys.stderr, flush=True)

def read(path):
    content = Path(path).read_bytes()
    try:
        read_header(io.BytesIO(content))
        read_pixels(content) if path != "large.png" else None
    except ValueError as error:
        return str(error)

with ThreadPoolExecutor(4) as pool:
    print([bool(reason) for reason in pool.map(read, sys.argv[1:])])
"""


@pytest.mark.slow
def test_libraries_print_nothing_that_names_no_file(run: Runner, tmp_path: Path):
    (tmp_path / "print.py").write_text(PRINTING)
    (tmp_path / "broken.tif").write_bytes(truncated_tiff())
    large = b"IHDR" + struct.pack(">2I5B", 9500, 9500, 1, 0, 0, 0, 0)  # PIL warns of a bomb
    small = encoded(Image.new("1", (8, 8)), "PNG")
    (tmp_path / "large.png").write_bytes(small[:12] + large + struct.pack(">I", zlib.crc32(large)) + small[33:])
    (tmp_path / "exif.jpg").write_bytes(photo(exif=TURNED.tobytes()[:-6]))  # "Truncated File Read"
    names = ("broken.tif", "large.png", "exif.jpg") * 4
    done = run(str(tmp_path / "print.py"), *names, PYTHONPATH=str(ROOT))
    assert done.returncode == 0, done.stderr
    control, ours = done.stderr.split("ours\n")
    assert ours == ""
    for told in ("tempfile.tif", "DecompressionBombWarning", "UserWarning"):
        assert told in control
