"""The words of the report: one file a language, the same keys in each.

English is what the statistics themselves say, so a sentence that comes with the numbers (a red flag, the
reason why a value is not defined) is known by its English form under ``said`` and put into the other
languages from there. What a person wrote (titles, names of classes, audit messages) stays as it is.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

from markupsafe import Markup, escape

from medtransfer.metrics.intervals import Estimate

LANGUAGES = ("en", "de", "fr", "es")


@cache
def load(language: str) -> dict[str, str]:
    """Texts by ``section.name``."""
    from ruamel.yaml import YAML

    path = Path(__file__).with_name(f"{language}.yaml")
    nested = YAML(typ="safe").load(path.read_text(encoding="utf-8"))
    return {f"{section}.{name}": str(text) for section, texts in nested.items() for name, text in texts.items()}


@cache
def _patterns() -> list[tuple[str, re.Pattern[str]]]:
    found = []
    for key, text in load("en").items():
        if key.startswith("said."):
            parts = re.split(r"\{(\w+)\}", text)
            pattern = "".join(f"(?P<{p}>.+?)" if i % 2 else re.escape(p) for i, p in enumerate(parts))
            found.append((key, re.compile(pattern, re.S)))
    return found


class Words:
    """The words of one language.

    Parameters
    ----------
    language : {'en', 'de', 'fr', 'es'}

    Examples
    --------
    >>> words = Words("de")
    >>> words.plain("section.calibration")
    'Kalibrierung'
    >>> print(words("use.set", key="<b>"))
    in der Konfiguration <code>author.&lt;b&gt;</code> angeben
    """

    def __init__(self, language: str = "en") -> None:
        self.language = language
        self._texts = load(language)

    def __call__(self, key: str, /, **values: object) -> Markup:
        """A text as markup; what is put into it is escaped."""
        return Markup(self._texts[key]).format(**values)  # noqa: S704  our own words

    def plain(self, key: str, /, **values: object) -> str:
        """A text without markup, for figures and Markdown."""
        return self._texts[key].format(**values)

    def __contains__(self, key: str) -> bool:
        return key in self._texts

    def label(self, name: str) -> str:
        """What a reader calls an estimate."""
        from medtransfer.metrics.names import LABELS

        return self._texts.get(f"label.{name}") or LABELS.get(name, name.replace("_", " "))

    def reading(self, name: str) -> str:
        """What a reader should hope for in an estimate."""
        return self._texts.get(f"read.{name}", "")

    def put(self, text: str) -> str:
        """A sentence that came with the numbers, in this language where it is known."""
        return self._known(text) or text

    def said(self, text: str) -> Markup:
        """As :meth:`put`, marked as English where it stayed so."""
        found = self._known(text)
        return Markup('<span lang="en">{}</span>').format(text) if found is None else escape(found)

    def _known(self, text: str) -> str | None:
        if self.language == "en":
            return text
        for key, pattern in _patterns():
            if match := pattern.fullmatch(text):
                parts = {name: self.put(value) for name, value in match.groupdict().items()}
                return self._texts[key].format(**parts)
        parts_of = [self._known(part) for part in text.split("; ")] if "; " in text else [None]
        return "; ".join(filter(None, parts_of)) if all(parts_of) else None

    def estimate(self, value: Estimate | None) -> str:
        """An estimate with its interval as text."""
        if value is None or value.value is None:
            return self.plain("word.not_defined")
        return str(value).replace(" to ", self.plain("word.to"))

    def tight(self, value: Estimate | None) -> Markup:
        """As :meth:`estimate`, for narrow columns: it breaks before the interval and nowhere else."""
        text, _, interval = self.estimate(value).partition(" (")
        if not interval:
            return escape(text)
        return Markup('{} <span class="whole">({}</span>').format(text, interval)

    def number(self, value: object) -> str:
        """A count with thin spaces, or 'not recorded'."""
        if value is None or value == "":
            return self.plain("word.not_recorded")
        if isinstance(value, int) and not isinstance(value, bool):
            return f"{value:,}".replace(",", "\u202f")
        return f"{value:.4g}" if isinstance(value, float) else str(value)

    def method(self, value: Estimate) -> str:
        """How an interval was made, in a word or two."""
        key = method_key(value)
        return self.plain(f"method.{key}") if f"method.{key}" in self else value.method.split("'")[0]

    def methods(self, values: list[Estimate]) -> list[str]:
        """How the intervals were made, a sentence for each way that occurs."""
        found = sorted({method_key(v) for v in values if v.method})
        return [self.plain(f"made.{key}") for key in found if f"made.{key}" in self]


def method_key(value: Estimate) -> str:
    """Key of the way an interval was made."""
    text = value.method
    if not text:
        return "none"
    if text.startswith("patient-cluster bootstrap"):
        return "bootstrap_logit" if "log-odds" in text else "bootstrap_t" if "standard error" in text else "bootstrap"
    if "Wilson" in text:
        return "wilson_clusters" if "effective" in text else "wilson"
    return re.sub(r"\W+", "_", text.split("'")[0].strip().lower())


def markdown(value: Any) -> str:
    """Text that stays text in Markdown: one line, no markup, no HTML."""
    text = " ".join(str(value).split())
    return re.sub(
        r"([\\`*_{}\[\]()#!|~])", r"\\\1", text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    )
