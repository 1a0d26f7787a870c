"""The viewer in Chromium with WebGL by software: what it draws, what it asks for, and what is there without it."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image as Picture
from test_report import PAYLOADS

from medtransfer.image import Geometry, Image
from medtransfer.metrics.intervals import ClusterBootstrap
from medtransfer.metrics.masks import score_masks
from medtransfer.metrics.segmentation import segmentation
from medtransfer.report.masks import write_masks_report
from medtransfer.report.outlines import look
from medtransfer.segment.evaluate import Segmented
from medtransfer.view import Shown, write_view

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = ["--no-sandbox", "--disable-quic", "--no-first-run", "--disable-background-networking"]
SOFTWARE = ["--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
PATIENCE = 240_000  # ms: software draws slowly on a busy machine
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def play() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine")
    with api.sync_playwright() as found:
        yield found


def launched(play: Any, flags: list[str]) -> Iterator[Any]:
    found = play.chromium.launch(executable_path=CHROMIUM, args=[*FLAGS, *flags], timeout=PATIENCE)
    yield found
    found.close()


class Seen:
    """A page with all that it asked for and complained of."""

    def __init__(self, browser: Any, path: Path, **context: Any) -> None:
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self.page = browser.new_context(viewport={"width": 1000, "height": 900}, **context).new_page()
        self.page.set_default_timeout(PATIENCE)
        self.page.add_init_script("window.boom = () => { window.boomed = true; }")
        self.page.add_init_script(
            "document.addEventListener('securitypolicyviolation', e => console.warn('refused ' + e.blockedURI))"
        )
        self.page.on("request", lambda r: self.requests.append(r.url))
        self.page.on(
            "console", lambda m: m.text.startswith("[.WebGL") or self.complaints.append(m.text)
        )  # the driver's
        self.page.on("pageerror", lambda e: self.complaints.append(str(e)))
        self.page.goto(path.as_uri(), timeout=PATIENCE)

    def shows(self, wanted: Callable[[NDArray[np.int64]], bool]) -> bool:
        """Whether the canvas comes to look as wanted: software takes its time to draw."""
        for _ in range(30):
            raw = self.page.screenshot(clip=self.page.locator("#viewer-canvas").bounding_box(), timeout=PATIENCE)
            if wanted(np.asarray(Picture.open(io.BytesIO(raw)).convert("RGB")).astype(np.int64)):
                return True
            self.page.wait_for_timeout(1000)
        return False

    def quiet(self, path: Path) -> bool:
        return self.complaints == [] and [r for r in self.requests if not r.startswith("data:")] == [path.as_uri()]


def near(pixels: NDArray[np.int64], colour: tuple[int, int, int]) -> int:
    return int((np.abs(pixels - np.array(colour)).max(axis=-1) < 40).sum())


def balls() -> tuple[Image, NDArray[np.uint8], NDArray[np.uint8]]:
    """Two balls; the prediction lies four voxels beside the reference."""
    at = np.stack(np.indices((40, 36, 30))).astype(float)
    masks = []
    for shift in (0, 4):
        labels = np.zeros((40, 36, 30), np.uint8)
        for value, x in ((1, 13), (2, 24)):
            middle = np.array([x, 16 + shift, 15])[:, None, None, None]
            labels[((at - middle) ** 2).sum(0) < 36] = value
        masks.append(labels)
    grey = 40 + 10 * at[2] / 30 + 5 * np.random.default_rng(0).normal(size=masks[0].shape)
    return Image(grey.astype(np.float32), Geometry.from_affine(np.diag([1.0, 1, 1.2, 1]))), masks[0], masks[1]


def report(folder: Path, names: tuple[str, str], title: str) -> Path:
    image, reference, predicted = balls()
    spacing = image.geometry.spacing_mm
    assert spacing is not None
    scores = [
        score_masks(reference, p, spacing, structures={n: i for i, n in enumerate(names, 1)}, tolerance_mm=1)
        for p in (predicted, np.roll(reference, 2, 2))
    ]
    who = ["patient-1", "patient-2"]
    panel, rows = segmentation(scores, ClusterBootstrap.draw(who, resamples=100))
    result = Segmented(("case-1", "case-2"), tuple(who), tuple(scores), panel, rows, 1.0)
    seen = [look("case-1", 0.3, image, reference, predicted)]
    seen.append(look(title, 0.6, image, reference, np.roll(reference, 2, 2)))
    return write_masks_report(result, seen, folder / "report.html", record={"title": title}, bootstrap=100)


@pytest.fixture(scope="module")
def browser(play: Any) -> Iterator[Any]:
    yield from launched(play, SOFTWARE)


def test_planes_and_masks_are_drawn_from_the_page_alone(browser: Any, tmp_path: Path) -> None:
    path = report(tmp_path, ("left", "right"), "A study")
    seen = Seen(browser, path)
    assert not seen.page.is_visible("#viewer")
    assert seen.page.evaluate("typeof window.niivue") == "undefined"  # nothing runs before it is asked for
    seen.page.click("button[data-scene='0']")
    seen.page.wait_for_selector("#viewer[data-shown='case-1']")
    orange, blue = (230, 159, 0), (86, 180, 233)
    assert seen.shows(lambda p: near(p, orange) > 100 and near(p, blue) > 100 and bool((p.std(axis=(0, 1)) > 20).all()))
    seen.page.uncheck("#viewer-predicted")
    assert seen.shows(lambda p: near(p, blue) < 20 and near(p, orange) > 100)
    seen.page.uncheck("#viewer-reference")
    assert seen.shows(lambda p: near(p, blue) < 20 and near(p, orange) < 20)
    seen.page.check("#viewer-predicted")
    seen.page.select_option("#viewer-planes", "4")
    assert seen.shows(lambda p: int((p[..., 2] > p[..., 0] + 40).sum()) > 500)  # blue, shaded, in 3D
    seen.page.select_option("#viewer-case", "1")
    seen.page.wait_for_selector("#viewer[data-shown='A study']")
    assert "mm" in seen.page.inner_text("#viewer-place")
    assert seen.quiet(path), (seen.complaints, seen.requests)


def test_the_planes_have_the_patients_right_on_the_left_as_the_outlines_do(browser: Any, tmp_path: Path) -> None:
    image, reference, _ = balls()
    only = np.where(reference == 1, reference, 0).astype(np.uint8)
    grey = np.zeros(only.shape, np.float32)
    grey[20:] = 100  # x grows towards the patient's right
    shown = Image(grey, image.geometry)
    axial = look("case-x", 0.5, shown, np.ones_like(only), only).views[0]
    assert axial.plane == "axial"
    assert axial.grey[:, :20].min() == 255
    assert axial.grey[:, 20:].max() == 0
    path = write_view(Shown("case-x", shown, {"predicted": only}), tmp_path / "v.html")
    seen = Seen(browser, path)
    seen.page.wait_for_selector("#viewer[data-shown]")
    seen.page.select_option("#viewer-planes", "0")  # axial
    seen.page.uncheck("#viewer-predicted")

    def right_is_left(pixels: NDArray[np.int64]) -> bool:
        columns = np.flatnonzero((pixels.min(axis=-1) > 60).sum(axis=0) > 50)
        return len(columns) > 20 and bool((columns < pixels.shape[1] / 2 + 5).all())

    assert seen.shows(right_is_left)
    assert seen.quiet(path), (seen.complaints, seen.requests)


@pytest.mark.parametrize("payload", [" ".join(PAYLOADS[k::3]) for k in range(3)])
def test_no_payload_runs_even_where_the_content_policy_is_off(browser: Any, payload: str, tmp_path: Path) -> None:
    path = report(tmp_path, (payload, "right"), payload)
    seen = Seen(browser, path, bypass_csp=True)
    seen.page.click("button[data-scene='1']")
    seen.page.wait_for_selector("#viewer[data-shown]")
    assert seen.page.evaluate("window.boomed === undefined")
    assert seen.quiet(path), (seen.complaints, seen.requests)


def test_without_webgl_the_page_says_so_and_shows_the_planes(play: Any, tmp_path: Path) -> None:
    path = report(tmp_path, ("left", "right"), "A study")
    for browser in launched(play, ["--disable-gpu", "--disable-3d-apis"]):
        seen = Seen(browser, path)
        assert seen.page.is_visible("#viewer-none")
        assert "WebGL" in seen.page.inner_text("#viewer-none")
        assert not seen.page.is_visible("#viewer")
        assert not seen.page.is_visible("button.look")
        assert seen.page.locator("svg.outlined image").count() == 6
        assert seen.quiet(path), (seen.complaints, seen.requests)
