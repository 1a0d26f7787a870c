"""The page in Chromium, driven by Playwright: what a reader does with it, and what it must never do."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from evaluations import EXTRAS, result
from test_report import PAYLOADS, full_report

from medtransfer.report import write_report

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine")
    with api.sync_playwright() as play:
        found = play.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield found
        found.close()


class Watched:
    """A page with all that it asked for and complained of."""

    def __init__(self, browser: Any, path: Path, **context: Any) -> None:
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self.page = browser.new_context(**context).new_page()
        self.page.add_init_script("window.boom = () => { window.boomed = true; }")
        self.page.on("request", lambda r: self.requests.append(r.url))
        self.page.on("console", lambda m: self.complaints.append(m.text))
        self.page.on("pageerror", lambda e: self.complaints.append(str(e)))
        self.page.on("dialog", lambda d: (self.complaints.append(d.message), d.dismiss()))
        self.page.goto(path.as_uri())

    def text(self, selector: str) -> str:
        return str(self.page.inner_text(selector))

    def number(self, name: str) -> float:
        return float(self.text(f"#live-{name}").replace(" %", ""))


@pytest.fixture(scope="module")
def study(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    return write_report(result("classification", ("no", "yes"), EXTRAS), folder)


def test_it_opens_from_disk_without_a_complaint_or_a_request(browser: Any, study: Path) -> None:
    seen = Watched(browser, study)
    assert seen.requests == [study.as_uri()]
    assert seen.complaints == []


def test_the_slider_moves_table_values_and_natural_frequencies_together(browser: Any, study: Path) -> None:
    seen = Watched(browser, study)
    seen.page.focus("#slider")
    states = []
    for press in ("Home", "End"):
        seen.page.keyboard.press(press)
        tp, fn, fp, tn = (int(seen.text(f"#live-{k}")) for k in ("tp", "fn", "fp", "tn"))
        assert tp + fn + fp + tn == 200
        assert seen.number("se") == pytest.approx(100 * tp / (tp + fn), abs=0.051)
        assert seen.number("sp") == pytest.approx(100 * tn / (fp + tn), abs=0.051)
        if tp + fp:
            assert seen.number("ppv") == pytest.approx(100 * tp / (tp + fp), abs=0.051)
        kinds = seen.page.eval_on_selector_all("#live-hundred .hundred circle", "c => c.map(x => x.className.baseVal)")
        said = [int(n) for n in "".join(c if c.isdigit() else " " for c in seen.text("#live-words")).split()]
        assert said[0] == 100
        assert said[2:] == [kinds.count(k) for k in ("found", "missed", "alarm", "clear")]
        states.append((tp, fp, tuple(said)))
    assert states[0] != states[1]


def test_the_prevalence_field_works(browser: Any, study: Path) -> None:
    seen = Watched(browser, study)
    se, sp = seen.number("se") / 100, seen.number("sp") / 100
    for percent in (1, 50):
        seen.page.fill("#prevalence", str(percent))
        p = percent / 100
        assert seen.number("ppv") == pytest.approx(100 * se * p / (se * p + (1 - sp) * (1 - p)), abs=0.5)
        assert f"Of 100 cases {percent} have" in seen.text("#live-words")


def test_the_case_table_sorts_and_filters_by_keyboard(browser: Any, study: Path) -> None:
    seen = Watched(browser, study)
    rows = "#case-table tbody tr:not([hidden])"
    column = "#case-table tbody tr:not([hidden]) td:last-child"
    seen.page.focus("#case-table thead th:last-child button")
    for direction in ("ascending", "descending"):
        seen.page.keyboard.press("Enter")
        assert seen.page.get_attribute("#case-table thead th:last-child", "aria-sort") == direction
        values = [float(v) for v in seen.page.eval_on_selector_all(column, "c => c.map(x => x.textContent)")]
        assert values == sorted(values, reverse=direction == "descending")
        assert len(values) == 200
    assert seen.page.locator("#case-table [aria-sort]").count() == 1
    seen.page.fill("#find", "case-0001")
    assert seen.page.locator(rows).count() == 10
    assert seen.text("#shown") == "10 / 200"
    seen.page.fill("#find", "")
    seen.page.check("#only-wrong")
    wrong = seen.page.locator(rows).count()
    assert 0 < wrong < 200
    assert seen.page.locator(f"{rows}.wrong").count() == wrong


def test_it_prints_to_pdf(browser: Any, study: Path) -> None:
    seen = Watched(browser, study)
    pdf = seen.page.pdf(prefer_css_page_size=True)
    assert pdf.startswith(b"%PDF-")
    assert len(pdf) > 50_000
    seen.page.emulate_media(media="print")
    assert not seen.page.is_visible("nav")
    assert not seen.page.is_visible("#interactive")


@pytest.mark.parametrize("width", [380, 800, 1240])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_is_wider_than_the_window(browser: Any, study: Path, width: int, scheme: str) -> None:
    seen = Watched(browser, study, viewport={"width": width, "height": 800}, color_scheme=scheme)
    assert seen.page.evaluate("document.documentElement.scrollWidth") <= width
    clipped = """() => Array.from(document.querySelectorAll('main p, main h1, main h2, main dd, main figcaption'))
        .filter(e => e.scrollWidth > e.clientWidth + 1).map(e => e.textContent.slice(0, 60))"""
    assert seen.page.evaluate(clipped) == []


@pytest.mark.parametrize("payload", PAYLOADS)
def test_no_payload_runs_even_where_the_content_policy_is_off(browser: Any, payload: str, tmp_path: Path) -> None:
    path = full_report(payload, tmp_path)
    seen = Watched(browser, path, bypass_csp=True)
    seen.page.evaluate(
        """() => document.querySelectorAll('body *').forEach(e =>
            ['mouseover', 'focus', 'click', 'error', 'load', 'toggle'].forEach(n => e.dispatchEvent(new Event(n))))"""
    )
    assert seen.page.evaluate("window.boomed === undefined")
    assert seen.complaints == []
    assert [r for r in seen.requests if not r.startswith("data:")] == [path.as_uri()]
