"""CLAIM 2024, TRIPOD+AI and STARD-AI: every item, filled from the run, said by the author, or missing.

The three lists ask for much the same, so one row is one thing to report, with the numbers of the items that
ask for it (CLAIM: Tejani et al., Radiol Artif Intell 2024;6:e240300, 44 items; TRIPOD+AI: Collins et al.,
BMJ 2024;385:e078378, 27 items with parts; STARD-AI: Sounderajah et al., Nat Med 2025;31:3283, 40 items).
The wording, under ``item`` in the words, is our own and short.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from medtransfer.evaluate import Evaluation

Given = Callable[["Evaluation"], object]
LISTS = ("CLAIM", "TRIPOD+AI", "STARD-AI")


@dataclass(frozen=True)
class Item:
    """One thing to report.

    Parameters
    ----------
    topic : str
        Its wording is ``item.<topic>`` of the words.
    claim, tripod, stard : str
        Numbers of the items that ask for it, separated by commas.
    where : str
        Section that holds it.
    author : str
        Field of ``author`` in the config that fills it.
    given : function or None
        Whether the evaluation itself fills it.
    """

    topic: str
    claim: str
    tripod: str
    stard: str
    where: str = "use"
    author: str = ""
    given: Given | None = None


@dataclass(frozen=True)
class Row:
    """An item and how it stands: ``filled``, ``author`` or ``missing``; ``where`` is a section of this page."""

    topic: str
    claim: str
    tripod: str
    stard: str
    status: str
    where: str
    author: str


@dataclass(frozen=True)
class Checklist:
    """All rows, and of each list its name, the items that are done and all items."""

    rows: list[Row]
    counts: list[tuple[str, int, int]]


def _record(name: str) -> Given:
    return lambda r: r.record.get(name)


def _model(name: str) -> Given:
    def given(r: Evaluation) -> object:
        model = r.record.get("model")
        return isinstance(model, dict) and model.get(name)

    return given


def _always(r: Evaluation) -> object:
    return True


def _chosen(r: Evaluation) -> object:
    return r.threshold is None or "default" not in r.threshold.rule


def _calibrated(r: Evaluation) -> object:
    return bool(r.estimates.get("calibration_slope") or r.estimates.get("linear_slope"))


def _by_site(r: Evaluation) -> object:
    return any(s.grouping in ("site", "manufacturer", "scanner") for s in r.subgroups)


ITEMS = (
    Item("title", "1", "1", "1", "verdict", given=_record("title")),
    Item("abstract", "2", "2", "2", author="abstract"),
    Item("background", "3", "3a", "3", author="background"),
    Item("intended_use", "3", "3b", "3", author="intended_use"),
    Item("users", "", "3b, 27b", "15d", author="users"),
    Item("inequalities", "", "3c", "35", author="inequalities"),
    Item("objectives", "4, 6", "4", "4", author="objectives"),
    Item("design", "5", "", "5", author="design"),
    Item("data_source", "7", "5a", "11", author="data_source"),
    Item("setting", "", "5b, 6a", "9, 10", author="setting"),
    Item("eligibility", "8", "6b", "7, 8", author="eligibility"),
    Item("treatments", "", "6c", "", author="treatments"),
    Item("ethics", "", "17", "6", author="ethics"),
    Item("acquisition", "13", "", "13", author="acquisition"),
    Item("preparation", "9", "7, 12b", "14", "reproduce", given=_record("config")),
    Item("subsets", "10", "", "", "population", given=_record("flow")),
    Item("deidentification", "11", "", "", author="deidentification"),
    Item("missing_data", "12", "11", "19, 20", "population", "missing_data", _record("flow")),
    Item("reference_standard", "14", "8a", "16a, 16c", author="reference_standard"),
    Item("reference_rationale", "15", "", "16b", author="reference_rationale"),
    Item("annotation", "16, 17", "8b", "12", author="annotation"),
    Item("variability", "18", "", "", author="variability"),
    Item("blinding", "", "8c", "17a, 17b", author="blinding"),
    Item("index_test", "", "9a, 9b, 9c", "15a", author="index_test"),
    Item("partitions", "19", "12a", "15b", "population", given=_record("table1")),
    Item("disjoint", "20", "", "", "population", given=_record("audit")),
    Item("sample_size", "21", "10", "22", "enough", "sample_size", _record("learning_curve")),
    Item("model", "22", "12c", "15a", "model", given=_record("model")),
    Item("software", "23", "", "", "reproduce", given=_record("environment")),
    Item("initial", "24", "", "", "model", given=_model("backbone")),
    Item("training", "25", "12c", "15b", "model", given=_record("recipe")),
    Item("selection", "26", "", "", "model", given=_record("history")),
    Item("ensemble", "27", "", "", "verdict", given=_always),
    Item("imbalance", "", "13", "", "model", "imbalance"),
    Item("metrics", "28", "12e", "18", "discrimination", given=_always),
    Item("intervals", "29", "", "18", "reproduce", given=_always),
    Item("output", "", "15", "15c", "operating", given=_chosen),
    Item("fairness", "", "14", "23", "subgroups", "fairness", lambda r: r.subgroups),
    Item("heterogeneity", "", "12d, 23b", "", "subgroups", given=_by_site),
    Item("updating", "", "12f, 24", "", "calibration", "updating", lambda r: r.recalibrated),
    Item("whole_model", "", "12g, 22", "", "reproduce", given=_record("hashes")),
    Item("robustness", "30", "", "21", "robustness", given=_record("robustness")),
    Item("explanation", "31", "", "", "explanation", given=_record("explanation")),
    Item("internal", "32", "", "", "discrimination", given=lambda r: r.predictions.part != "external"),
    Item("external", "33", "", "29", "discrimination", given=lambda r: r.predictions.part == "external"),
    Item("flow", "35", "20a", "24", "population", given=_record("flow")),
    Item("characteristics", "36", "20b", "25, 26a", "population", given=_record("table1")),
    Item("differences", "", "16, 20c", "28, 29", "population", given=_record("table1")),
    Item("alternatives", "", "", "26b", author="alternatives"),
    Item("time_between", "", "", "27", author="time_between"),
    Item("events", "", "21", "", "verdict", given=_always),
    Item("cross_table", "", "", "30", "operating", given=_always),
    Item("performance", "37, 38", "23a", "31", "discrimination", given=lambda r: bool(r.estimates[r.primary])),
    Item("calibration", "", "12e", "", "calibration", given=_calibrated),
    Item("by_group", "", "23a", "35", "subgroups", given=lambda r: r.subgroups),
    Item("failures", "39", "", "", "errors", given=_always),
    Item("adverse_events", "", "", "32", author="adverse_events"),
    Item("interpretation", "", "25", "", author="interpretation"),
    Item("limitations", "40", "26", "33", author="limitations"),
    Item("implications", "41", "27c", "34", author="implications"),
    Item("poor_input", "", "27a", "", author="poor_input"),
    Item("registration", "34", "18d", "36", author="registration"),
    Item("protocol", "42", "18c", "37", author="protocol"),
    Item("availability", "43", "18e, 18f", "40a", author="availability"),
    Item("outputs", "", "", "40b", "reproduce", given=_always),
    Item("funding", "44", "18a", "38", author="funding"),
    Item("interests", "", "18b", "39", author="interests"),
    Item("involvement", "", "19", "", author="involvement"),
)
FIRST = ("intended_use", "index_test", "reference_standard", "eligibility", "ethics", "funding")
CARD = ("developer", "contact", "maintenance")
FIELDS = (*FIRST, *sorted({i.author for i in ITEMS if i.author} - {*FIRST}), *CARD)


def checklist(result: Evaluation, author: dict[str, str], sections: Collection[str]) -> Checklist:
    """How every item stands; links lead to ``sections``, the identifiers of this page."""
    rows = []
    for item in ITEMS:
        if item.given is not None and item.given(result):
            status, where = "filled", item.where if item.where in sections else "discrimination"
        else:
            status, where = ("author" if author.get(item.author) else "missing"), "use"
        rows.append(Row(item.topic, item.claim, item.tripod, item.stard, status, where, item.author))
    return Checklist(rows, [_count(name, rows) for name in LISTS])


def numbers(row: Row | Item, name: str) -> list[str]:
    """Numbers of the items of one list that a row answers."""
    text = {"CLAIM": row.claim, "TRIPOD+AI": row.tripod, "STARD-AI": row.stard}[name]
    return text.split(", ") if text else []


def _count(name: str, rows: list[Row]) -> tuple[str, int, int]:
    asked = {number for row in rows for number in numbers(row, name)}
    missing = {number for row in rows if row.status == "missing" for number in numbers(row, name)}
    return name, len(asked - missing), len(asked)
