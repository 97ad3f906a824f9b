"""What the records of a run say, as its page shows it: what selects, what it is called, which settings were changed."""

import html
import re
import shlex
from pathlib import Path

import pytest

from tests.conftest import recipe
from tests.records import Page, end, write_records
from toolkit import Settings
from toolkit.config.yaml_values import to_yaml
from toolkit.runs.report import write_report
from toolkit.runs.run_config import config_of
from toolkit.strategies import Progressive, Simultaneous, SingleScale
from toolkit.strategies.base import Strategy

pytestmark = pytest.mark.pages


@pytest.mark.parametrize("field", ["scales", "sides"])
@pytest.mark.parametrize(
    ("done", "told"), [(0, "No epoch has been evaluated"), (1, "56.9 % top-1 at all"), (4, "94.6 % top-1 at all")]
)
def test_the_figure_that_selects_is_found_while_a_run_goes_on_when_the_strategy_is_the_users_own(
    tmp_path: Path, field: str, done: int, told: str
):
    """`all` is evaluated each epoch, sizes only where a phase ends, 64 px among them."""
    run = write_records(tmp_path / "run", epochs=4)
    header, *rows = (run / "metrics.csv").read_text().splitlines()
    header = header.replace("64px/", "all/").replace("32px/", "64px/")
    (run / "metrics.csv").write_text("".join(f"{line}\n" for line in [header, *rows[:done]]))
    config = (run / "config.yaml").read_text().replace("strategy: progressive", "strategy: own")
    assert "\nscales: " in config
    (run / "config.yaml").write_text(config.replace("\nscales: ", f"\n{field}: "))
    page = Page(write_report(run))
    assert told in page.text
    assert "None" not in page.source


def test_a_run_is_called_as_its_folder_when_it_is_named_from_within(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run = end(write_records(tmp_path / "my run", epochs=2))
    (run / "best").mkdir()
    for place, named in ((run, "."), (run / "best", "..")):
        monkeypatch.chdir(place)
        assert recipe("report")([named]) == 0
        page = Page(run / "report.html")
        assert page.headings["h1"] == ["my run"]
        assert "<title>my run: done</title>" in page.source
        again, page_again = (shlex.split(html.unescape(text)) for text in re.findall(r"<pre>(.*?)</pre>", page.source))
        assert again[-3:] == [f"{run}/config.yaml", "--output-dir", f"{run}-again"]
        assert page_again[-1] == str(run)
    monkeypatch.chdir(tmp_path)  # the control: as it was typed
    assert recipe("report")(["my run"]) == 0
    assert "--output-dir 'my run-again'" in html.unescape((run / "report.html").read_text())


def changed(run: Path) -> dict[str, str]:
    """The settings that stand out on a page."""
    return dict(re.findall(r'class="changed"><dt>(\w+)</dt><dd>([^<]*)', Page(write_report(run)).source))


@pytest.mark.parametrize(
    ("strategy", "told"),
    [
        (Simultaneous((20, 32, 64)), {}),
        (SingleScale(64), {}),
        (Progressive((20, 32, 64)), {"strategy": "progressive"}),
        (
            Progressive((20, 32), norm_per_scale="full"),
            {"strategy": "progressive", "scales": "20, 32", "norm_per_scale": "full"},
        ),
        (
            Simultaneous((16, 32, 48), norm_per_scale="statistics"),
            {"scales": "16, 32, 48", "norm_per_scale": "statistics"},
        ),
        (
            Simultaneous((20, 32, 64), 0.5, "mse", eval_scales=(32, 96)),
            {"consistency_weight": "0.5", "consistency": "mse", "eval_scales": "32, 96"},
        ),
    ],
)
def test_settings_stand_out_when_they_differ_from_the_defaults(
    tmp_path: Path, strategy: Strategy, told: dict[str, str]
):
    run = write_records(tmp_path / "run", epochs=1)
    for settings, more in (
        ({}, {}),
        ({"epochs": 1, "batch_size": 32}, {"epochs": "1", "batch_size": "32"}),  # one epoch has no warm-up, unasked
        ({"synthetic_size": 64, "synthetic_count": 6000, "amp": False, "cache": "ram"}, {}),  # as a run fills them in
    ):
        (run / "config.yaml").write_text(to_yaml(config_of(Settings(**settings), strategy)))
        assert changed(run) == told | more


def test_settings_stand_out_when_data_and_scales_are_the_users(tmp_path: Path):
    run = write_records(tmp_path / "run", epochs=1)
    settings = Settings(data_root="/photos", crop_scale=1.0)  # 1 is the default of the built-in data
    for scales, told in (((64, 112, 224), {}), ((20, 32, 64), {"scales": "20, 32, 64"})):
        (run / "config.yaml").write_text(to_yaml(config_of(settings, Simultaneous(scales))))
        assert changed(run) == {**told, "data_root": "/photos", "crop_scale": "1.0"}
    config = to_yaml({**config_of(settings, Simultaneous((20, 32, 64), 0.5)), "strategy": "own"})
    (run / "config.yaml").write_text(config)  # what its fields are unless they are given, nobody can tell
    assert changed(run) == {"data_root": "/photos", "crop_scale": "1.0"}
