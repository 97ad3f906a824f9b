"""URLs where paths are expected: each flag takes them, or refuses them in one line and writes nothing."""

import sys
from pathlib import Path

import pytest

from tests.recipes.test_bad_input import listing
from toolkit import InputError, Settings
from toolkit.__main__ import main
from toolkit.config.urls import without_secret

TRAIN = ("train", "multi", "--scales", "16,32", "--log-with", "none")
RUNS = "a run lives in a local folder or at s3://, gs:// or az:// (abfs://), not at "
SECRET = "a URL must hold no password, token or query"
LOCAL = "must be a local path, not a URL"
PLACES = {
    "s3:/bucket/run": "--output-dir s3:/bucket/run: a slash is missing: s3://",
    "gs:bucket": "a slash is missing: gs://",
    "s3://": "the bucket is missing: s3://BUCKET/",
    "az:///run": "the bucket is missing: az://BUCKET/",
    "s3://bucket/../run": "a name between two slashes must not be empty, . or ..",
    "s3://bucket//run": "a name between two slashes must not be empty, . or ..",
    "s3://key:hidden@bucket/run": SECRET,
    "abfs://bucket/run?sig=hidden": SECRET,
    "hf://models/run": f"{RUNS}hf://",
    "http://host/run": f"{RUNS}http://",
    "https://host/run": f"{RUNS}https://",
    "memory://run": f"{RUNS}memory://",
    "file://host/run": "a file:// URL names a path on this machine: file:///PATH, or just the path",
}
OTHERS = [
    (*TRAIN, "--cache-dir", "s3://bucket/cache", LOCAL),
    (*TRAIN, "--data-root", "s3:/bucket/data", "--data-root s3:/bucket/data: a slash is missing: s3://"),
    (*TRAIN, "--data-root", "gs://me:hidden@bucket/data", SECRET),
    (*TRAIN, "--resume", "s3:/bucket/run", "--resume s3:/bucket/run: a slash is missing: s3://"),
    (*TRAIN, "--resume", "https://host/run", f"--resume https://host/run: {RUNS}https://"),
    (*TRAIN, "--weights", "s3:/bucket/w.pt", "--weights s3:/bucket/w.pt: a slash is missing: s3://"),
    (*TRAIN, "--weights", "https://host/w.pt?token=hidden", SECRET),
    (*TRAIN, "--config", "s3:/bucket/config.yaml", "--config s3:/bucket/config.yaml: a slash is missing: s3://"),
    (*TRAIN, "--config", "https://host/c.yaml?token=hidden", SECRET),
    (*TRAIN, "--upload-wait-s", "5", "--upload-wait-s would be ignored: it needs a URL as --output-dir"),
    ("evaluate", "hf://models/run", f"{RUNS}hf://"),
    ("evaluate", "RUN", "--output-dir", "s3://bucket/x", f"--output-dir s3://bucket/x: {LOCAL}"),
    ("compare", "RUN", "https://host/run", f"{RUNS}https://"),
    ("compare", "s3://bucket/run", "s3://bucket/run/", "s3://bucket/run is given twice"),
    ("compare", "RUN", "OTHER", "--output-dir", "s3://bucket/x", LOCAL),
    ("predict", "RUN", "photo.jpg", "--output", "s3://bucket/x.csv", "must be a local file, not a URL"),
    ("predict", "RUN", "s3:/bucket/photo.jpg", "a slash is missing: s3://"),
    ("export", "RUN", "--output-dir", "gs://bucket/x", f"--output-dir gs://bucket/x: {LOCAL}"),
    ("report", "memory://run", f"{RUNS}memory://"),
    ("benchmark", "--output", "s3://bucket/x.json", LOCAL),
    ("scan", "DATA", "--output-dir", "s3://bucket/x", LOCAL),
    ("scan", "DATA", "--cache-dir", "s3://bucket/x", LOCAL),
    ("verify-resume", "--output-dir", "s3://bucket/x", "--", "toolkit", "train", "multi", LOCAL),
    ("dashboard", "project", "--output", "s3://bucket/x.json", LOCAL),
]


def refused(capsys: pytest.CaptureFixture[str], folder: Path, *words: str) -> str:
    before = listing(folder)
    assert main(words) == 2
    out, err = capsys.readouterr()
    assert len(err.splitlines()) == 1, err
    assert err.startswith("error: ")
    assert "hidden" not in out + err
    assert listing(folder) == before
    return err


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(("url", "expected"), PLACES.items(), ids=PLACES)
def test_a_place_where_no_run_can_live_is_refused(url: str, expected: str, capsys, tmp_path: Path):
    assert expected in refused(capsys, tmp_path, *TRAIN, "--output-dir", url)


@pytest.mark.parametrize("words", OTHERS, ids=lambda words: " ".join(words[:-1])[-60:])
def test_other_flags_refuse_urls_that_they_cannot_use(words: tuple[str, ...], capsys, tmp_path: Path):
    assert words[-1] in refused(capsys, tmp_path, *words[:-1])


@pytest.mark.parametrize(("scheme", "package"), [("s3", "s3fs"), ("gs", "gcsfs"), ("abfs", "adlfs")])
def test_a_package_that_is_missing_is_named_with_its_extra(
    scheme: str, package: str, capsys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, package, None)  # what Python does with a package that is not there
    extra = {"s3fs": "s3", "gcsfs": "gcs", "adlfs": "azure"}[package]
    told = refused(capsys, tmp_path, *TRAIN, "--output-dir", f"{scheme}://bucket/run")
    assert f"--output-dir {scheme}://bucket/run: needs a package" in told
    assert f"pip install {package} (extra [{extra}])" in told


def test_a_file_url_is_the_path(tmp_path: Path):
    settings = Settings(
        output_dir="file:///runs/a%20b", data_root="file:///data", weights="file:///w.pt", resume="file:///r"
    )
    assert (settings.output_dir, settings.data_root) == (Path("/runs/a b"), "/data")
    assert (settings.weights, settings.resume) == (Path("/w.pt"), "/r")
    assert Settings(output_dir="~/run").output_dir == Path("~/run").expanduser()


def test_a_path_that_pathlib_has_folded_is_refused():
    with pytest.raises(InputError, match="a slash is missing"):
        Settings(output_dir=Path("s3://bucket/run"))


def test_a_url_stays_text_without_its_last_slash():
    settings = Settings(output_dir="s3://bucket/run/", weights="https://host/w.pt")
    assert (settings.output_dir, settings.weights) == ("s3://bucket/run", "https://host/w.pt")
    assert settings.run_url == "s3://bucket/run"
    assert Settings(resume="gs://b/run/checkpoints/step-000000012").run_url == "gs://b/run"


def test_messages_hold_no_secret():
    assert without_secret("s3://key:hidden@bucket/run") == "s3://bucket/run"
    assert without_secret("https://host/x?token=hidden#there") == "https://host/x"
    assert without_secret("plain/path?x") == "plain/path?x"
