"""The parts of a model card that say how to use the exported files: code, check, preprocessing."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from toolkit.config.choices import Fit, Format, OnnxInput
from toolkit.data.images.preprocess import AS_STORED, MEAN_COLOR
from toolkit.data.sources.index import Splits
from toolkit.models.portable import PortableModel
from toolkit.tools.export_check import Difference
from toolkit.tools.export_formats import FILES, INPUTS
from toolkit.tools.loaded_run import LoadedRun

SQUARES: Mapping[Fit, tuple[str, str]] = {  # what evaluation sees of an image, and what a library's transform does
    "crop": ("the largest square in the middle", "resizes before it cuts out the square"),
    "pad": (f"the whole image in the middle of a square of the color {MEAN_COLOR}", "resizes with Pillow"),
    "squash": ("the whole image, stretched to a square", "resizes with Pillow"),
}
PREPARE = (
    "prepare = Preprocess.load('.')  # the folder of config.json",
    "pixels = torch.from_numpy(prepare(Path('photo.jpg').read_bytes()))",
)


@dataclass(frozen=True)
class Gap:
    """Gap between other preprocessing and evaluation's, in gray levels of 255; `same`: images with the same answer."""

    images: int
    mean_levels: float
    most_levels: float
    same: int
    probability: float  # largest change of a probability

    def __str__(self) -> str:
        return (
            f"{self.mean_levels:.2g} of 255 gray levels off on average and {self.most_levels:.2g} at most; {self.same} "
            f"of {self.images} images get the same answer, no probability changes by more than {self.probability:.2g}"
        )


@dataclass(frozen=True)
class Card:
    """Contents of a model card. `differences`: of the logits by format, on images of `splits`.

    `by_card`: gap of preprocess.py; `by_library`: gap of a library's transform alone.
    """

    loaded: LoadedRun
    splits: Splits
    model: PortableModel
    differences: Mapping[Format, Difference]
    tolerance: float
    onnx_input: OnnxInput
    by_card: Gap
    by_library: Gap


def usage(card: Card) -> str:
    """Self-contained Python code that loads the files, and a table of the files."""
    blocks = [f"```python\n{block}\n```" for block in _blocks(card)]
    note = [card.model.note] if "safetensors" in card.differences and card.model.note else []
    return "\n\n".join([*blocks, *note, *_files(card)])


def _blocks(card: Card) -> list[str]:
    """Python code: the weights and the preprocessing, then each other file."""
    weights = FILES["safetensors"] if "safetensors" in card.differences else None
    imports, creation = card.model.code(weights) if weights else ([], [])
    answers = answer_lines(card.loaded)
    imports = [
        *(["import json"] if answers and weights else []),
        "from pathlib import Path",
        *imports,
        "import torch",
        "from preprocess import Preprocess  # the file beside the weights",
    ]
    blocks = [
        "\n".join([*imports, "", *creation, *PREPARE, *([result_line(card.loaded), *answers] if weights else [])])
    ]
    if "onnx" in card.differences:
        name = INPUTS[card.onnx_input]
        session = f"session = onnxruntime.InferenceSession('{FILES['onnx']}')"
        given, reads = "pixels.numpy()", ""
        if card.onnx_input == "uint8":
            given, reads = "image", "image = read(Path('photo.jpg').read_bytes(), prepare.gray)\n"
        run = f"{reads}by_onnx = session.run(None, {{'{name}': {given}}})[0]"
        imports = ["import onnxruntime", *(["from preprocess import read"] if reads else [])]
        blocks += ["\n".join([*imports, "", session, run])]
    if "pt2" in card.differences:
        blocks += [f"import torch\n\nby_torch = torch.export.load('{FILES['pt2']}').module()(pixels)"]
    return blocks


def _files(card: Card) -> list[str]:
    """What the files take, and the table of their differences."""
    model, uint8 = card.model, card.onnx_input == "uint8" and "onnx" in card.differences
    takes = (
        f"{'The other' if uint8 else 'All'} files take float32 batches of any number of images, N x 3 x {model.size} x "
        f"{model.size}, normalized as below, and give N x {len(model.classes)} logits."
    )
    if uint8:
        takes = (
            f"{FILES['onnx']} takes one uint8 RGB image, H x W x 3, upright and of any size, and gives 1 x "
            f"{len(model.classes)} logits: crop, resize and normalization are in its graph. {takes}"
        )
    check = (
        f"Each was opened again and compared with the run's own model on {card.by_card.images} images: a logit may "
        f"differ by {card.tolerance:g} x (1 + the largest logit of its image), and the top-1 must be the same."
    )
    table = ["| file | largest difference of a logit | in units of 1 + the image's largest logit |", "|---|---|---|"]
    table += [
        f"| {FILES[name]} | {found.largest:.2g} | {found.relative:.2g} |" for name, found in card.differences.items()
    ]
    return [f"{takes} {check}", "\n".join(table)]


def result_line(loaded: LoadedRun) -> str:
    """The line that applies the model: what makes the task's probabilities of logits is found by trying both."""
    logits, task = torch.randn(8, len(loaded.classes), generator=torch.Generator().manual_seed(0)), loaded.bound_task
    expected = task.probabilities(task.average([logits.to(loaded.mean.device)])).cpu()
    for code, found in ((".softmax(1)", logits.softmax(1)), (".sigmoid()", logits.sigmoid())):
        if expected.shape == found.shape and torch.allclose(expected.float(), found, atol=1e-5):
            return f"probabilities = model(pixels){code}[0]  # in the order of class_map.json"
    meaning = f"{type(loaded.task).__name__} says what they mean"
    return f"logits = model(pixels)  # N x C, classes as in class_map.json; {meaning}"


def answer_lines(loaded: LoadedRun) -> list[str]:
    """The lines that apply the thresholds of config.json; empty if the task has none."""
    if "thresholds" not in loaded.task.exported(loaded.classes):
        return []
    return [
        "thresholds = torch.tensor(json.loads(Path('config.json').read_text())['thresholds'])",
        "predicted = (probabilities > thresholds).nonzero().flatten().tolist()  # keys of class_map.json",
    ]


def preprocessing(card: Card) -> str:
    model, gray = card.model, card.loaded.settings.range
    mapped = (
        f" Gray of more than 8 bits (PIL's modes I, I;16 and F) is mapped to 8 bits by each image's own range (--range "
        f"{gray}), which `convert('RGB')` does not do."
    )
    square, library = SQUARES[model.fit]
    return (
        f"RGB, EXIF rotation applied, mean {model.mean} and standard deviation {model.std} of pixels in [0, 1]. The "
        f"run was evaluated on {square}, resized to {model.size} px (bilinear, antialiased)."
        f"{mapped if gray != AS_STORED else ''}\n\n`preprocess.py` does that with NumPy and Pillow: {card.by_card}. "
        f"{model.transform_of}'s transform alone, as config.json describes it, {library}: {card.by_library}."
    )
