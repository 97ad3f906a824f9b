"""`toolkit export` as a user calls it, and its files as others use them: without the toolkit."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import timm
import torch
import yaml
from markdown_it import MarkdownIt
from PIL import Image
from timm.models import register_model
from torch import Tensor

from tests.conftest import ROOT, TINY, recipe, write_folders
from toolkit.data.images import views
from toolkit.data.sources import synthetic
from toolkit.tools.loaded_run import LoadedRun, load_run

FEW = (*TINY, "--scales", "16,32", "--epochs", "2", "--num-workers", "0")
SCALES = {"test_resnet": ("--scale", "16"), "test_vit": ()}
BESIDE = {"README.md", "config.json", "class_map.json", "preprocess.py"}
FILES = {*BESIDE, "model.safetensors", "model.onnx", "model.pt2"}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a trained run of each architecture, under its name."""
    folder = tmp_path_factory.mktemp("runs")
    for arch in SCALES:
        assert recipe("multiscale")([*FEW, "--arch", arch, "--output-dir", str(folder / arch)]) == 0
    return folder


@pytest.fixture(scope="module")
def exports(runs: Path) -> dict[str, Path]:
    """RUN/export with all formats: one at a scale that was asked for, one at the run's own choice."""
    for arch, scale in SCALES.items():
        assert recipe("export")([str(runs / arch), *scale]) == 0
    return {arch: runs / arch / "export" for arch in SCALES}


@pytest.fixture(params=SCALES)
def exported(request: pytest.FixtureRequest, exports: dict[str, Path]) -> Path:
    return exports[request.param]


@pytest.fixture
def resnet(runs: Path, tmp_path: Path) -> Path:
    """A copy of a run, for a test of its own."""
    return Path(shutil.copytree(runs / "test_resnet", tmp_path / "run", ignore=shutil.ignore_patterns("export")))


def size_of(folder: Path) -> int:
    return json.loads((folder / "config.json").read_text())["pretrained_cfg"]["input_size"][-1]


def asked(trained: LoadedRun, size: int, count: int) -> tuple[Tensor, Tensor]:
    """N x 3 x S x S normalized, and what the run's own model says of them."""
    noise = torch.randint(0, 256, (count, 3, size, size), generator=torch.Generator().manual_seed(count))
    pixels = views.normalize(noise.to(torch.uint8), trained.mean, trained.std)
    with torch.no_grad():
        return pixels, trained.model(pixels)[0]


READER = """
import json, os, re, sys, numpy
said = []
for folder in sys.argv[1:]:
    os.chdir(folder)
    names = {}
    exec("".join(re.findall(r"```python\\n(.*?)```", open("README.md").read(), re.DOTALL)), names)
    assert "toolkit" not in sys.modules
    timm, torch, given = names["timm"], names["torch"], names["torch"].from_numpy(numpy.load("given.npy"))
    with torch.no_grad():
        of_folder = timm.create_model("local-dir:.", pretrained=True).eval()
        numpy.save("said.npy", torch.stack([names["model"](given), of_folder(given)]))
    said.append([names[name][0].tolist() for name in ("by_onnx", "by_torch")] + [names["probabilities"].tolist()])
print(json.dumps(said))
"""


@pytest.mark.slow
def test_the_cards_lines_say_what_the_run_says_when_they_run_without_the_toolkit(exports: dict, tmp_path: Path):
    folders = {arch: Path(shutil.copytree(export, tmp_path / arch)) for arch, export in exports.items()}
    for arch, folder in folders.items():
        size = size_of(folder)
        np.save(folder / "given.npy", asked(load_run(exports[arch].parent), size, 7)[0])
        noise = np.random.default_rng(1).integers(0, 256, (size, size, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / "photo.jpg", format="png")  # PIL looks into it, and every bit is kept
        np.save(folder / "photo.npy", noise)
    done = subprocess.run(
        [sys.executable, "-c", READER, *folders.values()], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    for (arch, folder), (by_onnx, by_torch, probabilities) in zip(
        folders.items(), json.loads(done.stdout), strict=True
    ):
        trained = load_run(exports[arch].parent)
        expected = asked(trained, size_of(folder), 7)[1].numpy()
        assert np.abs(np.load(folder / "said.npy") - expected).max() <= 1e-4
        photo = torch.from_numpy(np.load(folder / "photo.npy")).permute(2, 0, 1)[None]
        with torch.no_grad():
            logits = trained.model(views.normalize(photo, trained.mean, trained.std))[0][0]
        assert np.abs(np.array([by_onnx, by_torch]) - logits.numpy()).max() <= 1e-4
        assert np.abs(np.array(probabilities) - logits.softmax(0).numpy()).max() <= 1e-5


def test_the_lines_that_load_weights_are_few_and_need_timm_and_the_folder_alone(exported: Path):
    first, *_ = re.findall(r"```python\n(.*?)```", (exported / "README.md").read_text(), re.DOTALL)
    assert set(re.findall(r"^(?:import|from) (\w+)", first, re.MULTILINE)) == {"timm", "torch", "preprocess", "pathlib"}
    assert len([line for line in first.splitlines() if line and "import" not in line]) == 4


def test_graphs_say_what_the_run_says_when_batches_are_of_any_size(exported: Path):
    trained, size = load_run(exported.parent), size_of(exported)
    session = onnxruntime.InferenceSession(exported / "model.onnx", providers=["CPUExecutionProvider"])
    extra = {"class_map": "", "preprocessing": ""}
    program = torch.export.load(exported / "model.pt2", extra_files=extra).module()
    for count in (1, 5):
        pixels, expected = asked(trained, size, count)
        assert np.abs(session.run(None, {"pixels": pixels.numpy()})[0] - expected.numpy()).max() <= 1e-4
        assert (program(pixels) - expected).abs().max() <= 1e-4
    for told in (session.get_modelmeta().custom_metadata_map, extra):
        assert json.loads(told["class_map"]) == {str(i): name for i, name in enumerate(trained.classes)}
        assert json.loads(told["preprocessing"])["input_size"] == [3, size, size]
    assert b"site-packages" not in (exported / "model.onnx").read_bytes()  # paths of whoever exported


def test_only_the_chosen_scales_normalization_is_exported_when_each_has_its_own(exports: dict):
    trained = load_run(exports["test_resnet"].parent)
    file = str(exports["test_resnet"] / "model.safetensors")
    weights = timm.create_model("test_resnet", num_classes=10, checkpoint_path=file).eval()
    for size, same in ((16, True), (32, False)):
        pixels, expected = asked(trained, size, 5)
        with torch.no_grad():
            assert ((weights(pixels) - expected).abs().max() <= 1e-4) == same


def test_the_card_tells_of_every_scale_and_of_the_best_when_the_run_has_ended(exported: Path):
    run, card = exported.parent, (exported / "README.md").read_text()
    assert {path.name for path in exported.iterdir()} == FILES
    front = yaml.safe_load(card.split("---\n")[1])
    summary = json.loads((run / "summary.json").read_text())
    name = f"{size_of(exported)}px"
    told = {r["dataset"]["split"]: r["metrics"][0]["value"] for r in front["model-index"][0]["results"]}
    assert told == {
        "validation": round(summary["val"][name]["top1"], 2),
        "test": round(summary["test"][name]["top1"], 2),
    }
    for name, score in summary["val"].items():
        test = summary["test"][name]
        figures = [f"{value:.2f}%" for value in (score["top1"], score["top5"], test["top1"], test["top5"])]
        assert f"| {name} | {' | '.join(figures)} |" in card
    best = min(summary["val"], key=lambda name: (-summary["val"][name]["top1"], int(name[:-2])))
    assert f"Recommended test size: **{best}**" in card
    assert "120 training, 20 validation, 40 test images" in card
    assert str(run.parent) not in card
    assert json.loads((exported / "class_map.json").read_text()) == json.loads((run / "class_map.json").read_text())


def test_the_card_has_no_path_when_settings_have(resnet: Path):
    config = resnet / "config.yaml"
    text = config.read_text()
    for name in ("weights", "transform"):
        assert f"\n{name}: null\n" in text
    text = text.replace("\nweights: null\n", f"\nweights: {resnet.parent}/secret/file.pth\n")
    config.write_text(re.sub("\ndata_root: .*", f"\ndata_root: {synthetic.prepare(32, 120)}", text))
    assert recipe("export")([str(resnet), "--formats", "safetensors"]) == 0
    card = (resnet / "export/README.md").read_text()
    assert "weights: file.pth" in card
    for path in (str(resnet.parent), "secret", str(synthetic.prepare(32, 120)), str(Path.home()) + "/", str(ROOT)):
        assert path not in card


def test_the_card_counts_the_images_of_the_run_when_they_lie_elsewhere_or_some_are_gone(resnet: Path, tmp_path: Path):
    moved = Path(shutil.copytree(synthetic.prepare(32, 120), tmp_path / "moved"))
    words = [str(resnet), "--formats", "safetensors", "--data-root", str(moved), "--overwrite"]
    assert recipe("export")(words) == 0
    counts = "120 training, 20 validation, 40 test images"
    assert f"{counts}; 12 training images of each class." in (resnet / "export/README.md").read_text()
    for path in [*moved.glob("*/*/*")][::2]:
        path.unlink()
    assert recipe("export")(words) == 0
    assert f"{counts}.\n" in (resnet / "export/README.md").read_text()
    shutil.rmtree(resnet / "checkpoints")
    assert recipe("export")(words) == 0
    assert not re.search(r"\d+ training", (resnet / "export/README.md").read_text())


def test_other_classes_are_refused_with_the_difference_when_an_export_is_checked_on_them(
    resnet: Path, tmp_path: Path, capsys
):
    other = Path(shutil.copytree(synthetic.prepare(32, 120), tmp_path / "other"))
    for split in other.iterdir():
        if split.is_dir():
            (split / "disc-checks").rename(split / "cat")
    assert recipe("export")([str(resnet), "--data-root", str(other)]) == 2
    assert capsys.readouterr().err == (
        f"error: --data-root {other}: other classes than the run's: 'cat' is no class of the run, 'disc-checks' is "
        "missing\n"
    )
    assert not (resnet / "export").exists()


ODD = ("*x*", "<b>", "[a](b)", "`quoted`", "a\n\n| b |\n|---|", "back`tick", "two ``s", "| a | b |")


def test_a_card_is_whole_when_names_look_like_markup(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = Path("*my* `run` <i>\n---\nlibrary_name: mine")
    write_folders(tmp_path / "photos", {"train": 4, "val": 1}, ODD, (16, 16))
    words = ["--data-root", "photos", "--batch-size", "8", "--img-size", "16", "--epochs", "1", "--num-workers", "0"]
    trained = [*words, "--arch", "test_resnet", "--log-with", "none", "--output-dir", str(run)]
    assert recipe("single_scale")(trained) == 0
    assert recipe("export")([str(run), "--formats", "safetensors"]) == 0
    _, front, text = (run / "export/README.md").read_text().split("---\n", 2)
    known = yaml.safe_load(front)
    name = "*my* `run` <i>\\n---\\nlibrary_name: mine"
    assert (known["library_name"], known["model-index"][0]["name"]) == ("timm", name)
    blocks = MarkdownIt("gfm-like", {"linkify": False}).parse(text)
    parts = [part for block in blocks for part in block.children or ()]
    spans = [part.content for part in parts if part.type == "code_inline"]
    assert spans[0] == name
    first = spans.index("*x*")
    assert spans[first : first + len(ODD)] == [name.replace("\n", "\\n") for name in sorted(ODD)]
    assert not {part.type for part in parts} & {"html_inline", "em_open"}
    assert "html_block" not in {block.type for block in blocks}
    assert [block.type for block in blocks].count("table_open") == 2  # of files, and of sizes


class OtherWhenExported(timm.models.ResNet):
    """Takes a short cut in graphs, as some models do, and a wrong one."""

    def forward(self, x: Tensor) -> Tensor:
        logits = super().forward(x)
        return logits + 0.01 if torch.compiler.is_exporting() else logits


@register_model
def other_when_exported(pretrained: bool = False, **arguments: object) -> torch.nn.Module:
    own = ("pretrained_cfg", "pretrained_cfg_overlay", "cache_dir")
    model = timm.create_model("test_resnet", **{name: arguments[name] for name in arguments if name not in own})
    model.__class__ = OtherWhenExported
    return model


@pytest.fixture
def unfaithful(resnet: Path) -> Path:
    """A run of a model whose graph gives other logits."""
    config = resnet / "config.yaml"
    config.write_text(config.read_text().replace("arch: test_resnet", "arch: other_when_exported"))
    return resnet


def test_what_passed_is_kept_and_one_line_names_the_format_that_did_not(unfaithful: Path, capsys):
    assert recipe("export")([str(unfaithful), "--formats", "pt2,safetensors"]) == 1
    _, err = capsys.readouterr()
    assert re.fullmatch(
        r"error: pt2: refused: its logits differ by 0.01 at most, 0.00\d+ x \(1 \+ the image's largest logit\); 32 of "
        r"32 images have the same top-1; --tolerance allows 0.0001 x, and no other top-1; written to "
        rf"{unfaithful}/export: safetensors\n",
        err,
    )
    assert {path.name for path in (unfaithful / "export").iterdir()} == {*BESIDE, "model.safetensors"}
    assert "model.pt2" not in (unfaithful / "export/README.md").read_text()
    assert not list(unfaithful.glob(".export-*"))


def test_nothing_is_written_when_nothing_passed(unfaithful: Path, capsys):
    before = sorted(unfaithful.rglob("*"))
    assert recipe("export")([str(unfaithful), "--formats", "pt2"]) == 1
    assert capsys.readouterr().err.startswith("error: nothing was written: pt2: refused: its logits differ by 0.01")
    assert sorted(unfaithful.rglob("*")) == before


def test_a_larger_tolerance_is_the_users_choice_and_a_format_nobody_named_only_a_warning(unfaithful: Path, capsys):
    words = [str(unfaithful), "--formats", "pt2,safetensors", "--tolerance", "0.02"]
    assert recipe("export")(words) == 0
    assert "a logit may differ by 0.02 x (1 + the largest logit of its image)" in (
        (unfaithful / "export/README.md").read_text()
    )
    capsys.readouterr()
    assert recipe("export")([str(unfaithful), "--overwrite"]) == 0
    out = "".join(capsys.readouterr())
    assert "pt2         left out: refused: its logits differ by 0.01" in out
    assert "onnx        left out: refused: its logits differ by 0.01" in out
    assert {path.name for path in (unfaithful / "export").iterdir()} == {*BESIDE, "model.safetensors"}


def test_an_export_is_replaced_only_when_that_is_asked_for(resnet: Path, capsys):
    words = [str(resnet), "--formats", "safetensors", "--scale"]
    assert recipe("export")([*words, "16"]) == 0
    capsys.readouterr()
    weights = (resnet / "export/model.safetensors").read_bytes()
    assert recipe("export")([*words, "32"]) == 2
    assert "--overwrite replaces it" in capsys.readouterr().err
    assert (resnet / "export/model.safetensors").read_bytes() == weights
    assert recipe("export")([*words, "32", "--overwrite"]) == 0
    assert (resnet / "export/model.safetensors").read_bytes() != weights
    assert {path.name for path in (resnet / "export").iterdir()} == FILES - {"model.onnx", "model.pt2"}
    assert not list(resnet.glob(".export-*"))
    (resnet / "export/mine.txt").write_text("keep me")
    capsys.readouterr()
    assert recipe("export")([*words, "16", "--overwrite"]) == 2
    assert "holds other files (mine.txt)" in capsys.readouterr().err
    assert (resnet / "export/mine.txt").read_text() == "keep me"


BAD = [
    (("--scale", "24"), "--scale 24: this run's sizes are 16, 32 px"),
    (("--formats", "onxx"), "--formats onxx: must be one of 'safetensors', 'onnx' or 'pt2'"),
    (("--formats", ""), "--formats"),
    (("--tolerance", "-1"), "--tolerance"),
    (("--tolerance", "nan"), "--tolerance"),
    (("--onnx-input", "uint16"), "--onnx-input uint16: must be one of 'float32' or 'uint8'"),
    (("--onnx-input", "uint8", "--formats", "pt2"), "--onnx-input uint8 would be ignored: --formats pt2 has no onnx"),
    (("--data-root", "nowhere"), "--data-root nowhere: no such folder"),
    (("--output-dir", "summary.json"), "--output-dir summary.json: not a folder"),
    (("--output-dir", "summary.json/export"), "--output-dir summary.json/export"),
    (("--output-dir", "best"), "the folder holds other files"),
    (("--scales", "16"), "no flag --scales; did you mean --scale?"),
]


@pytest.mark.parametrize(("words", "told"), BAD)
def test_an_export_ends_with_2_and_one_line_when_a_flag_is_wrong(words, told, resnet: Path, capsys, monkeypatch):
    monkeypatch.chdir(resnet)
    before = sorted(resnet.rglob("*"))
    assert recipe("export")([".", *words]) == 2
    out, err = capsys.readouterr()
    assert len(err.splitlines()) == 1
    assert told in err
    assert "Traceback" not in out + err
    assert sorted(resnet.rglob("*")) == before


def test_an_export_ends_with_2_and_one_line_when_there_is_no_run_or_no_model_yet(resnet: Path, tmp_path: Path, capsys):
    assert recipe("export")([str(tmp_path / "nowhere")]) == 2
    assert capsys.readouterr().err == f"error: {tmp_path}/nowhere: not a run directory: there is no config.yaml in it\n"
    (resnet / "best/model.safetensors").write_bytes(b"tampered with")
    assert recipe("export")([str(resnet)]) == 2
    assert "the best model cannot be read" in capsys.readouterr().err
    shutil.rmtree(resnet / "best")
    assert recipe("export")([str(resnet)]) == 2
    assert "there is no best model yet" in capsys.readouterr().err


def test_figures_are_those_of_the_best_model_when_the_run_has_not_ended(resnet: Path):
    (resnet / "summary.json").unlink()
    assert recipe("export")([str(resnet), "--formats", "safetensors"]) == 0
    metadata, card = load_run(resnet).metadata, (resnet / "export/README.md").read_text()
    assert f"| 32px | {metadata['32px/top1']:.2f}% | {metadata['32px/top5']:.2f}% |" in card
    assert "test top-1" not in card


def test_onnx_is_refused_when_it_is_asked_for_and_a_package_is_missing(resnet: Path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)  # as Python finds it where it is not installed
    assert recipe("export")([str(resnet), "--formats", "onnx"]) == 2
    assert capsys.readouterr().err == "error: --formats onnx needs onnxscript: pip install -e '.[onnx]'\n"
    assert not (resnet / "export").exists()
