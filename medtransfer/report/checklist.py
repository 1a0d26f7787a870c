"""Reporting checklists, condensed: what the report fills in, what the author must say, what is missing."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from medtransfer.evaluate import Evaluation

# asked by: C = CLAIM 2024, T = TRIPOD+AI, S = STARD-AI; the key names the author's field in the config
AUTHOR = [
    ("Intended use and clinical role", "CTS", "intended_use"),
    ("Index test", "S", "index_test"),
    ("Reference standard and how it was made", "CTS", "reference_standard"),
    ("Eligibility of participants, setting, dates", "CTS", "eligibility"),
    ("Ethics approval", "CTS", "ethics"),
    ("Funding and interests", "CTS", "funding"),
]
Given = Callable[["Evaluation"], object]
FILLED: list[tuple[str, str, str, Given]] = [
    ("Flow of participants, exclusions with reasons", "CTS", "population", lambda r: r.record.get("flow")),
    ("Characteristics of participants by part", "CTS", "population", lambda r: r.record.get("table1")),
    ("Parts are disjoint by patient; leakage audit", "CT", "population", lambda r: r.record.get("audit")),
    ("Number of events and of patients", "CTS", "verdict", lambda r: True),
    ("Cases without a reference label", "TS", "population", lambda r: True),
    ("Model: structure, source and licence of weights", "CT", "model", lambda r: r.record.get("model")),
    ("Preparation of images and training settings", "CT", "reproduce", lambda r: r.record.get("config")),
    (
        "How the threshold was chosen",
        "CTS",
        "operating",
        lambda r: r.threshold is None or "default" not in r.threshold.rule,
    ),
    ("Discrimination with intervals", "CTS", "discrimination", lambda r: bool(r.estimates[r.primary])),
    ("Calibration", "T", "calibration", lambda r: bool(r.estimates.get("calibration_slope")) or bool(r.per_class)),
    ("2×2 or confusion table", "CS", "operating", lambda r: True),
    ("Clinical utility (decision curve)", "T", "decision", lambda r: "net_benefit" in r.curves),
    ("Subgroups and fairness", "CT", "subgroups", lambda r: r.subgroups),
    ("Comparison with simpler models", "CT", "controls", lambda r: r.controls),
    ("Failure analysis", "C", "errors", lambda r: True),
    ("Software, versions, seed", "CT", "reproduce", lambda r: r.record.get("environment")),
    ("External validation", "CTS", "population", lambda r: r.predictions.part == "external"),
]
NAMES = {"C": "CLAIM", "T": "TRIPOD+AI", "S": "STARD-AI"}


def checklist(result: Evaluation, author: dict[str, str]) -> list[tuple[str, str, str, str]]:
    """(item, asked by, status, where): status is 'filled', 'author' (said by the author) or 'missing'."""
    rows = []
    for item, by, key in AUTHOR:
        said = bool(author.get(key))
        rows.append(
            (item, _names(by), "author" if said else "missing", "use" if said else f"author.{key} in the config")
        )
    for item, by, section, given in FILLED:
        rows.append((item, _names(by), "filled" if given(result) else "missing", section))
    return rows


def _names(letters: str) -> str:
    return ", ".join(NAMES[letter] for letter in letters)
