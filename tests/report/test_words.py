"""The words: whole in every language, and no sentence outside them."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from evaluations import EXTRAS, predictions, result

from medtransfer import report
from medtransfer.errors import ConfigError
from medtransfer.evaluate import evaluate
from medtransfer.metrics.names import LABELS
from medtransfer.report.checklist import FIELDS, ITEMS
from medtransfer.report.words import LANGUAGES, Words, load
from medtransfer.report.write import model_card, page

HERE = Path(report.__file__).parent
OTHERS = [language for language in LANGUAGES if language != "en"]


@pytest.mark.parametrize("language", OTHERS)
def test_every_text_is_in_every_language_with_the_same_places(language: str) -> None:
    english, other = load("en"), load(language)
    assert set(english) == set(other)
    for key, text in english.items():
        for pattern in (r"\{\w+\}", r"</?\w+>"):
            assert sorted(re.findall(pattern, text)) == sorted(re.findall(pattern, other[key])), key
    same = [k for k, text in english.items() if len(text) > 24 and text == other[k]]
    assert not [k for k in same if not k.startswith(("label.", "author."))], same


def test_every_estimate_author_field_and_item_has_its_words() -> None:
    words = load("en")
    assert not [name for name in LABELS if f"label.{name}" not in words]
    assert not [name for name in FIELDS if f"author.{name}" not in words]
    assert {f"item.{item.topic}" for item in ITEMS} == {key for key in words if key.startswith("item.")}


def test_templates_hold_no_sentence() -> None:
    names = {"medtransfer", "SHA-256", "D", "CLAIM", "TRIPOD+AI", "STARD-AI", "p", "px"}
    for path in [*sorted((HERE / "templates").glob("[_r]*.html")), HERE / "templates" / "model_card.md"]:
        text = re.sub(r"\{#.*?#\}|\{%.*?%\}|\{\{.*?\}\}", " ", path.read_text(encoding="utf-8"), flags=re.S)
        text = re.sub(r"<(script|style)\b.*?</\1>|<[^>]*>|&\w+;", " ", text, flags=re.S)
        assert not set(re.findall(r"[A-Za-z][\w+-]*", text)) - names, path.name


def test_every_key_that_code_and_templates_name_exists() -> None:
    words = load("en")
    places = [*(HERE / "templates").iterdir(), *HERE.glob("*.py")]
    for path in places:
        text = path.read_text(encoding="utf-8")
        for key in re.findall(r'\bw(?:ords)?(?:\.plain)?\("([a-z_0-9]+\.[a-z_0-9]+)"[,)]', text):
            assert key in words, f"{path.name}: {key}"


@pytest.mark.parametrize(
    ("task", "language"),
    [(task, "en") for task in ("classification", "multilabel", "ordinal", "regression")]
    + [("classification", "de"), ("multilabel", "fr"), ("ordinal", "es"), ("regression", "de")],
)
def test_a_page_in_every_language_and_task(task: str, language: str) -> None:
    found = result(task, ("one", "two"), record=EXTRAS)  # type: ignore[arg-type]
    words = Words(language)
    text = page(found, words)
    assert f'<html lang="{language}">' in text
    assert words.plain("section.population") in text
    assert words.plain("section.checklists") in text
    assert "Traceback" not in text
    assert "{" not in re.sub(r"<(script|style)\b.*?</\1>|<pre>.*?</pre>", "", text, flags=re.S)
    card = model_card(found, words)
    assert words.plain("card.results") in card
    if language != "en":
        assert load("en")["cases.what"].split(".")[0] not in text


@pytest.mark.parametrize("language", OTHERS)
def test_what_the_statistics_say_is_put_into_the_language(language: str) -> None:
    words, left, whole = Words(language), [], predictions("classification", ("no", "yes"))
    for take in (slice(None), slice(0, 12)):
        for fixed in (None, 0.0, 1.0, 0.3):
            p = whole.take(np.arange(len(whole))[take])
            found = evaluate(p, threshold=fixed, bootstrap=100)
            said = [t for c in found.checks for t in (c.name, c.text)]
            said += [e.note for e in found.estimates.values() if e.note]
            left += [text for text in said if "lang=" in words.said(text)]
    assert not left


def test_a_sentence_that_is_not_known_stays_and_is_marked_as_english() -> None:
    assert str(Words("fr").said("A <new> finding.")) == '<span lang="en">A &lt;new&gt; finding.</span>'
    assert str(Words("de").said("PPV of 0.5; why not")) == '<span lang="en">PPV of 0.5; why not</span>'
    assert str(Words("en").said("A <new> finding.")) == "A &lt;new&gt; finding."


def test_another_language_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such language"):
        report.write_report(result("classification", ("no", "yes")), tmp_path, language="it")  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())
