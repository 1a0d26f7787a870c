"""The report: whole, escaped, self-contained, repeatable, and quick."""

from __future__ import annotations

import base64
import csv
import hashlib
import json
import re
import shutil
import subprocess
import time
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from medtransfer.errors import RunError
from medtransfer.evaluate import calibrate, evaluate, youden
from medtransfer.predictions import Predictions
from medtransfer.report import write_report

PAYLOADS = [
    "<script>boom()</script>",
    "<ScRiPt src=//x>boom()</sCrIpT>",
    "</script><script>boom()</script>",
    "</style><script>boom()</script>",
    "</title><script>boom()</script>",
    "<img src=x onerror=boom()>",
    '"><img src=x onerror=boom()>',
    "'><img src=x onerror=boom()>",
    "<svg onload=boom()>",
    '" onmouseover="boom()',
    "' onfocus='boom()' autofocus='",
    "<a href=javascript:boom()>x</a>",
    "javascript:boom()",
    "<iframe srcdoc='<script>boom()</script>'>",
    "<object data=x>",
    "<link rel=stylesheet href=//x>",
    "<meta http-equiv=refresh content='0;url=//x'>",
    "<base href=//x>",
    "<math><mtext></mtext><script>boom()</script></math>",
    "<![CDATA[<script>boom()</script>]]>",
    "<!--<script>boom()</script>-->",
    "{{ 7 * 7 }}",
    "{% raw %}",
    "${7*7}",
    "$\\frac{1$",
    "\\u003cscript\\u003eboom()",
    "&lt;script&gt;boom()&lt;/script&gt;",
    "<body onload=boom()>",
    "<input autofocus onfocus=boom()>",
    "<style>@import '//x'</style>",
    "=cmd|'/c calc'!A1",
    "@SUM(1)",
]


class Source:
    """A run that wrote down a given record and shows the same picture of every case."""

    def __init__(self, record: dict[str, object]) -> None:
        self.written = record

    def record(self) -> dict[str, object]:
        return self.written

    def picture(self, case: str) -> np.ndarray:
        return np.arange(64, dtype=np.uint8).reshape(8, 8)


def predictions(
    seed: int = 0,
    classes: tuple[str, ...] = ("no", "yes"),
    part: str = "test",
    record: dict[str, object] | None = None,
    n: int = 160,
) -> Predictions:
    rng = np.random.default_rng(seed)
    y = rng.integers(0, len(classes), n)
    scores = rng.normal(size=(n, len(classes)))
    scores[np.arange(n), y] += 1.5
    p = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    ids = np.array([f"case-{part}-{i:04d}" for i in range(n)])
    patient = np.array([f"patient-{part}-{i // 2:04d}" for i in range(n)])
    source = None if record is None else Source(record)
    return Predictions(ids, patient, y, p, classes, np.zeros(n, int), part, source)


def full_record(text: str) -> dict[str, object]:
    """A record with the same text wherever a person or a file can put one."""
    return {
        "title": text,
        "synthetic": True,
        "command": text,
        "config": text,
        "author": {"intended_use": text, "index_test": text, "reference_standard": text, "ethics": text},
        "flow": [[text, 10, []], [text, 8, [[text, 2]]]],
        "table1": {"columns": [text, "test"], "rows": [[text, text, 3]]},
        "audit": {"findings": [{"name": text, "severity": "warning", "message": text, "count": 2}], "accepted": [text]},
        "model": {
            "backbone": text, "weights": text, "source": text, "sha256": text, "licence": text, "parameters": 10,
            "trainable": 2, "dims": 2, "in_channels": 1, "input": text, "head": text,
            "receipt": {"loaded": 3, "reshaped": [text], "new": [text] * 9, "unused": []},
            "frozen": [text], "trained": [text],
        },
        "recipe": {text: text, "lr": 0.1},
        "history": [
            {"fold": 0, "phase": text, "epoch": i, "train_loss": 1 / (i + 1), "val_loss": 0.7, "val_auroc": None}
            for i in range(3)
        ],
        "environment": {text: text},
        "seed": 1,
        "runtime_s": 3.2,
        "hashes": {text: text},
        "version": text,
    }  # fmt: skip


def full_report(text: str, folder: Path, *, classes: int = 2, seed: int = 1) -> Path:
    names = tuple(f"{text}{k}" for k in range(classes))
    test = predictions(seed, names, record=full_record(text))
    other = replace(test, probability=predictions(seed + 1, names).probability)
    two = classes == 2
    val = predictions(seed + 2, names, part="val")
    result = evaluate(
        test,
        threshold=youden(val) if two else None,
        calibrator=calibrate(val),
        controls={text: other},
        subgroups={text: np.array([text, "other"] * 80)},
        prevalences=(0.1,),
        bootstrap=100,
    )
    return write_report(result, folder / "report.html")


class Collector(HTMLParser):
    """Tags and attributes as a parser sees them."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def parse(path: Path) -> Collector:
    found = Collector()
    found.feed(path.read_text(encoding="utf-8"))
    return found


@pytest.mark.parametrize("text", PAYLOADS[::4] + [" ".join(PAYLOADS[k::8]) for k in range(8)])
def test_hostile_text_stays_text(text: str, tmp_path: Path) -> None:
    page = parse(full_report(text, tmp_path))
    tags = [tag for tag, _ in page.tags]
    assert tags.count("script") == 2
    assert tags.count("style") == 1
    assert not {"iframe", "object", "link", "base", "embed", "form", "math"} & set(tags)
    for tag, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on")], (tag, attributes)
        assert "javascript:" not in (attributes.get("href") or "")
        if tag == "img":
            assert str(attributes["src"]).startswith("data:image/png;base64,")
    assert text in "".join(page.words)  # shown as it was written
    card = (tmp_path / "model_card.md").read_text(encoding="utf-8")
    assert "<" not in card.replace("> **Synthetic", "")
    with open(tmp_path / "predictions.csv", encoding="utf-8", newline="") as file:
        cells = [cell for row in csv.reader(file) for cell in row]
    assert not [c for c in cells if c[:1] in {"=", "+", "@"}]


def test_no_request_leaves_the_page_and_only_its_own_script_runs(tmp_path: Path) -> None:
    path = full_report("plain", tmp_path)
    text = path.read_text(encoding="utf-8")
    page = parse(path)
    policy = next(str(a["content"]) for tag, a in page.tags if tag == "meta" and "http-equiv" in a)
    assert policy.startswith("default-src 'none'; style-src 'unsafe-inline'; img-src data:;")
    script = re.search(r"<script>(.*?)</script>", text, re.S)
    assert script
    digest = base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy
    for tag, attributes in page.tags:
        for name in ("src", "href", "xlink:href", "srcset", "action", "data"):
            value = attributes.get(name)
            assert value is None or value.startswith(("#", "data:image/png")), (tag, name, value)
    assert "@import" not in text
    assert not re.search(r"url\((?!#)", text)
    assert "http" not in re.sub(r'http-equiv|xmlns(:\w+)?="[^"]*"', "", text)


def test_identifiers_are_unique_and_links_lead_somewhere(tmp_path: Path) -> None:
    page = parse(full_report("plain", tmp_path))
    anchors = [
        a["id"] for tag, a in page.tags if "id" in a and tag in {"section", "header", "input", "output", "g", "td"}
    ]
    assert len(anchors) == len(set(anchors))
    ids = {a["id"] for _, a in page.tags if "id" in a}
    assert not [a["href"] for tag, a in page.tags if tag == "a" and str(a["href"])[1:] not in ids]
    for tag, a in page.tags:
        if tag == "img":
            assert a.get("alt")
        if tag == "svg" and a.get("aria-hidden") is None:
            assert a.get("role") == "img"
            assert a.get("aria-label")


@pytest.mark.parametrize("classes", [2, 4])
def test_same_input_same_bytes(classes: int, tmp_path: Path) -> None:
    full_report("a title", tmp_path / "one", classes=classes)
    full_report("a title", tmp_path / "two", classes=classes)
    for name in ("report.html", "metrics.json", "predictions.csv", "model_card.md"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name


def test_an_empty_record_says_not_recorded(tmp_path: Path) -> None:
    path = write_report(evaluate(predictions(), bootstrap=100), tmp_path)
    assert path == tmp_path / "report.html"
    text = path.read_text(encoding="utf-8")
    assert text.count("ot recorded") >= 6
    assert "Synthetic cohort" not in text
    assert "No threshold was chosen on validation data" in text
    back = Predictions.from_csv(tmp_path / "predictions.csv")
    np.testing.assert_array_equal(back.probability, predictions().probability)


@pytest.mark.parametrize("kind", [0, 1])
def test_undefined_numbers_are_shown_as_such(kind: int, tmp_path: Path) -> None:
    test = predictions()
    path = write_report(evaluate(test.take(test.reference == kind), bootstrap=100), tmp_path)
    words = " ".join(parse(path).words)
    assert "not defined" in words
    assert not re.search(r"\bnan\b", words, re.I)
    json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8"), parse_constant=lambda name: pytest.fail(name))


def test_synthetic_cohorts_are_said_to_be(tmp_path: Path) -> None:
    path = write_report(evaluate(predictions(record={"synthetic": True}), bootstrap=100), tmp_path)
    assert "Synthetic cohort." in path.read_text(encoding="utf-8")
    assert "Synthetic cohort." in (tmp_path / "model_card.md").read_text(encoding="utf-8")


def test_a_folder_that_cannot_be_written_is_an_error_of_ours(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x", encoding="utf-8")
    with pytest.raises(RunError, match="cannot be written"):
        write_report(evaluate(predictions(), bootstrap=100), tmp_path / "file" / "report.html")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_it_is_quick_and_leaves_no_drafts(tmp_path: Path) -> None:
    result = evaluate(predictions(n=600, record=full_record("x")), bootstrap=200)
    start = time.perf_counter()
    write_report(result, tmp_path)
    assert time.perf_counter() - start < 6
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "metrics.json",
        "model_card.md",
        "model_card.xml",
        "predictions.csv",
        "report.html",
    ]


@pytest.mark.slow
def test_a_browser_runs_the_slider_and_none_of_the_payloads(tmp_path: Path) -> None:
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no Chromium on this machine")
    path = full_report("".join(PAYLOADS[:20]).replace("boom()", "document.title='boom'"), tmp_path)
    flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    flags += " --disable-component-update --disable-sync"
    found = subprocess.run(
        [browser, *flags.split(), f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", path.as_uri()],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert re.search(r'id="live-se">[0-9.]+ %<', found.stdout)
    assert "<title>boom" not in found.stdout
