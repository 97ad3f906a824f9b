"""report.html in a real browser: light and dark, wide and on a phone, on paper. Pictures are kept in build/report."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT
from tests.records import SHAPES, answer, end, write_records
from toolkit.runs.report import write_report

CHROMIUM = shutil.which("chromium")
PICTURES = ROOT / "build" / "report"
WIDTHS = {"desktop": 1100, "phone": 390}
LONG = "a-class-whose-name-is-longer-than-a-phone-is-wide-and-has-no-place-to-break"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium: apt-get install chromium"),
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Pages of runs of several kinds."""
    root = tmp_path_factory.mktemp("pages")
    many = [f"{LONG}-{i}" for i in range(1000)]
    runs = {
        "progressive": answer(end(write_records(root / "progressive"))),
        "simultaneous": answer(
            end(write_records(root / "simultaneous", strategy="simultaneous", classes=[*SHAPES, LONG, *many[:13]]))
        ),
        "ladder": answer(end(write_records(root / "ladder", scales=(64, 96, 112, 160, 224), strategy="simultaneous"))),
        "thousand": answer(
            end(write_records(root / "thousand", epochs=60, classes=many)), 2000, name=f"val/{LONG}{{}}.jpg"
        ),
        "preempted": end(write_records(root / "preempted", epochs=0), "preempted by SIGTERM"),
    }
    return {name: write_report(run) for name, run in runs.items()}


def opened(browser: Any, path: Path, width: int, scheme: str) -> tuple[Any, list[str]]:
    """A page, and what went wrong on it: console errors, and requests for anything but itself, which are refused."""
    page, wrong = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme), []

    def only_itself(route: Any) -> None:
        url = route.request.url
        if url == path.as_uri() or url.startswith("data:"):
            route.continue_()
        else:
            wrong.append(f"request {url}")
            route.abort()

    page.route("**/*", only_itself)
    page.on("console", lambda message: wrong.append(f"{message.type} {message.text}"))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.set_default_timeout(120_000)  # ms; a busy machine draws long pages slowly
    page.goto(path.as_uri())
    return page, wrong


def overflow(page: Any) -> int:
    """By how many px the page is wider than the window."""
    return page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("device", WIDTHS)
def test_a_page_is_quiet_and_fits_when_a_browser_shows_it(browser, pages: dict[str, Path], device: str, scheme: str):
    PICTURES.mkdir(parents=True, exist_ok=True)
    for name, path in pages.items():
        page, wrong = opened(browser, path, WIDTHS[device], scheme)
        if scheme == "light" or name == "progressive":
            page.screenshot(path=PICTURES / f"{name}-{device}-{scheme}.png", full_page=True)
        assert wrong == [], name
        assert overflow(page) == 0, name
        paper = page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
        assert paper == {"light": "rgb(255, 255, 255)", "dark": "rgb(22, 23, 27)"}[scheme]
        shown = page.evaluate("[...document.images].map(image => image.naturalWidth)")
        assert shown == [128] * (0 if name == "preempted" else 24)
        edges = page.evaluate(
            "[...document.querySelectorAll('svg text')].map(t => t.getBoundingClientRect()).map(b => [b.left, b.right])"
        )
        assert all(0 <= left < right <= WIDTHS[device] for left, right in edges), name
        page.close()
    print(f"wrote     {PICTURES}")


def test_text_in_plots_is_legible_when_a_phone_shows_them(browser, pages: dict[str, Path]):
    page, _ = opened(browser, pages["progressive"], WIDTHS["phone"], "dark")
    sizes = page.evaluate(
        "[...document.querySelectorAll('svg text')].map(t => parseFloat(getComputedStyle(t).fontSize)"
        " * t.ownerSVGElement.getBoundingClientRect().width / t.ownerSVGElement.viewBox.baseVal.width)"
    )
    assert len(sizes) > 50
    assert min(sizes) > 9
    colors = page.evaluate(
        "[...new Set([...document.querySelectorAll('svg text')].map(t => getComputedStyle(t).fill))]"
    )
    assert "rgb(155, 158, 170)" in colors  # the dark page's, not black
    page.close()


MEETING = """[...document.querySelectorAll('svg')].flatMap(svg => {
    const texts = [...svg.querySelectorAll('text')].map(t => [t.textContent, t.getBoundingClientRect()]);
    return texts.flatMap(([word, a], i) => texts.slice(i + 1).filter(([_, b]) =>
        a.left < b.right && b.left < a.right && a.top < b.bottom - 4 && b.top < a.bottom - 4).map(([other, _]) =>
        `${word} | ${other}`)) })"""


def test_labels_do_not_meet_when_a_run_has_many_sizes(browser, pages: dict[str, Path]):
    """Boxes of text hold room above and below the digits, which may meet."""
    page, _ = opened(browser, pages["ladder"], WIDTHS["desktop"], "light")
    assert page.evaluate("document.querySelectorAll('svg text').length") > 50
    assert page.evaluate(MEETING) == []
    page.close()


def test_a_page_prints_light_and_whole_when_the_screen_is_dark(browser, pages: dict[str, Path]):
    page, wrong = opened(browser, pages["progressive"], 794, "dark")
    assert page.pdf(path=PICTURES / "progressive.pdf", format="A4").startswith(b"%PDF")
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.documentElement).backgroundColor") == "rgb(255, 255, 255)"
    assert overflow(page) == 0
    page.screenshot(path=PICTURES / "progressive-print.png", full_page=True)
    assert wrong == []
    page.close()


def test_a_page_that_asks_or_overflows_is_noticed_when_it_is_broken(browser, pages: dict[str, Path], tmp_path: Path):
    source = pages["preempted"].read_text()
    stranger = '<img src="https://example.invalid/x.png"><p style="width: 900px">wide</p></body>'
    for name, text in {"guarded": source, "open": source.replace("Content-Security-Policy", "X")}.items():
        (tmp_path / f"{name}.html").write_text(text.replace("</body>", stranger))
    page, wrong = opened(browser, tmp_path / "open.html", WIDTHS["phone"], "light")
    assert "request https://example.invalid/x.png" in wrong
    assert overflow(page) > 0
    page.close()
    page, wrong = opened(browser, tmp_path / "guarded.html", WIDTHS["phone"], "light")
    assert not any(line.startswith("request") for line in wrong)  # the page's own policy forbids it
    assert any("Content Security Policy" in line for line in wrong)
    page.close()
