"""Commands on a run, weights and images at a URL do what they do with the same files here."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from tests import storage as servers
from tests.conftest import Runner, contents, recipe, write_image
from tests.machines import BUILT_IN, FLAGS, objects
from tests.recipes.test_toolkit_command import TOOLKIT
from tests.storage import Storage
from toolkit import compare, evaluate, load, predict
from toolkit.runs.mirror.copies import find_run
from toolkit.system.errors import InputError

pytestmark = pytest.mark.slow

URL = "s3://bucket/runs/a b"
LAST = "/checkpoints/step-000000015"


@pytest.fixture(scope="module")
def storage() -> Iterator[Storage]:
    with servers.s3() as opened:
        yield opened


@pytest.fixture(scope="module")
def run_here(storage: Storage, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run in a local directory; the same is at URL, copied there as any tool copies it."""
    folder = tmp_path_factory.mktemp("runs") / "here"
    assert recipe("multiscale")([*FLAGS, *BUILT_IN, "--output-dir", str(folder)]) == 0
    there, root = fsspec.core.url_to_fs(URL)
    for name, content in contents(folder).items():
        there.pipe_file(f"{root}/{name}", content)
    return folder


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run_here: Path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TOOLKIT_CACHE", str(run_here.parent / "cache"))


def test_a_copy_has_what_commands_read_and_follows_the_run(run_here: Path, tmp_path: Path):
    copy = find_run(URL)
    names = contents(copy).keys()
    assert {"config.yaml", "metrics.csv", "summary.json", "best/model.safetensors", "predictions/val.csv"} <= names
    assert not {name for name in names if name.endswith(("samples.jsonl", "optimizer.safetensors"))}
    before = (copy / "best/model.safetensors").stat().st_mtime_ns
    there, root = fsspec.core.url_to_fs(URL)
    there.pipe_file(f"{root}/notes.json", b"{}")
    there.pipe_file(f"{root}/quarantine.jsonl", b"new")
    assert (find_run(URL) / "quarantine.jsonl").read_bytes() == b"new"
    assert (copy / "best/model.safetensors").stat().st_mtime_ns == before
    for name in ("notes.json", "quarantine.jsonl"):
        there.rm_file(f"{root}/{name}")
    assert not (find_run(URL) / "notes.json").exists()


def test_a_url_without_a_run_is_refused():
    with pytest.raises(InputError, match="s3://bucket/none: not a run directory: there is no config"):
        find_run("s3://bucket/none")
    with pytest.raises(InputError, match="s3://elsewhere/none: there is no such bucket, or nothing in it"):
        find_run("s3://elsewhere/none")


def test_results_are_those_of_the_same_run_here(run_here: Path, tmp_path: Path):
    there, here = evaluate(URL), evaluate(run_here, output_dir=tmp_path / "here")
    assert there.folder == Path("a b-evaluation")
    assert f"run       {URL}, best model" in (there.folder / "evaluation.txt").read_text()
    assert json.loads((there.folder / "evaluation.json").read_text())["run"] == URL
    assert {name: found.scores for name, found in there.evaluations.items()} == {
        name: found.scores for name, found in here.evaluations.items()
    }
    assert contents(there.folder / "predictions") == contents(tmp_path / "here/predictions")
    compared = compare(URL, run_here)
    assert all(size.differences["top1"].value == 0 for size in compared.sizes)
    assert load(URL).classes == load(run_here).classes


def test_images_at_urls_are_predicted_as_files_are(run_here: Path, tmp_path: Path):
    folder = tmp_path / "images"
    for i in range(3):
        write_image(folder / f"sub/x {i}+é#.png", seed=i)
    (folder / "readme.txt").write_text("no image")
    (folder / "broken.png").write_text("no image")
    there, _ = fsspec.core.url_to_fs("s3://bucket")
    for name, content in contents(folder).items():
        there.pipe_file(f"bucket/images/{name}", content)
    urls = ["s3://bucket/images", "s3://bucket/images/sub/x 0+é#.png", "s3://bucket/none.png"]
    paths = [folder, folder / "sub/x 0+é#.png", folder / "none.png"]
    found, expected = predict(URL, urls), predict(run_here, paths)
    assert [row.best for row in found.rows] == [row.best for row in expected.rows]
    assert [bool(row.error) for row in found.rows] == [bool(row.error) for row in expected.rows]
    assert [row.path for row in found.rows][-2:] == urls[-2:]
    assert (found.images, found.left_out, found.bad) == (expected.images, 1, 2)


def test_commands_write_here_and_the_page_goes_to_the_run(run: Runner, run_here: Path, tmp_path: Path):
    write_image(tmp_path / "a.png")
    cache = {"TOOLKIT_CACHE": str(run_here.parent / "cache")}
    before = objects(URL)

    def done(*words: str) -> str:
        ended = run(TOOLKIT, *words, launcher=(), **cache)
        assert ended.returncode == 0, ended.stderr
        return ended.stdout

    assert f"wrote     {URL}/report.html" in done("report", URL)
    changed = {name for name, content in objects(URL).items() if before.get(name) != content}
    assert changed <= {"report.html"}
    assert "a b-export" in done("export", URL, "--formats", "safetensors")
    assert {"model.safetensors", "README.md"} <= contents(tmp_path / "a b-export").keys()
    done("predict", URL, "a.png", "--output", "rows.csv")
    with (tmp_path / "rows.csv").open() as file:
        assert [row["path"] for row in csv.DictReader(file)] == ["a.png"]
    assert objects(URL).keys() == before.keys() | {"report.html"}


@pytest.mark.parametrize("name", ["", "/best/model.safetensors", "/best", LAST, f"{LAST}/model.safetensors"])
def test_weights_at_a_url_are_those_of_the_same_file_here(name: str, run_here: Path, tmp_path: Path, capsys):
    words = [*FLAGS, *BUILT_IN, "--dry-run"]
    told = []
    for given in (f"{URL}{name}", f"{run_here}{name}"):
        assert recipe("multiscale")([*words, "--weights", given]) == 0
        out = capsys.readouterr().out
        told.append(out.replace(given, "GIVEN"))
    assert told[0] == told[1]
    assert "80 of 80 tensors loaded; head kept, of the same" in told[0]


def test_a_run_is_repeated_from_its_config_at_a_url(run_here: Path, tmp_path: Path, capsys):
    words = ["--output-dir", str(tmp_path / "again"), "--dry-run"]
    assert recipe("multiscale")(["--config", f"{URL}/config.yaml", *words]) == 0
    out = capsys.readouterr().out
    assert recipe("multiscale")(["--config", str(run_here / "config.yaml"), *words]) == 0
    assert out == capsys.readouterr().out
    assert recipe("multiscale")(["--config", f"{URL}/none.yaml", *words]) == 2
    assert f"error: --config {URL}/none.yaml: no such file" in capsys.readouterr().err


def test_a_dry_run_refuses_what_the_run_would_refuse(run_here: Path, tmp_path: Path, capsys):
    before = objects(URL)
    words = [*FLAGS, *BUILT_IN, "--cache-dir", str(tmp_path / "cache"), "--output-dir", URL, "--dry-run"]
    assert recipe("multiscale")(words) == 0
    capsys.readouterr()
    assert recipe("multiscale")([*words, "--seed", "1"]) == 2
    assert f"error: {URL} was trained with --seed 0, now 1" in capsys.readouterr().err
    assert objects(URL) == before
