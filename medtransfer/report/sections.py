"""Which sections a page has, in the order of the reporting guidelines."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Section:
    """A part of the page: identifier, template, and the name of its title in the words."""

    id: str
    template: str
    title: str


def sections(view: dict[str, Any]) -> list[Section]:
    """Sections of this evaluation: by its task, and by what was recorded.

    Parameters
    ----------
    view : dict
        What the templates need; ``task``, ``binary`` and the contents of the optional sections decide.
    """
    task, binary = view["task"], view["binary"]
    results = {
        "multilabel": [Section("discrimination", "_multilabel.html", "labels")],
        "ordinal": [Section("discrimination", "_ordinal.html", "ordinal")],
        "regression": [Section("discrimination", "_regression.html", "agreement")],
    }.get(task, [Section("discrimination", "_discrimination.html", "discrimination")])
    if binary:
        results += [_plain("calibration"), _plain("operating"), _plain("decision")]
    elif task == "classification":
        results += [Section("operating", "_classes.html", "classes")]
    optional = [_plain(name) for name in ("uncertainty", "enough", "segmentation") if view.get(name)]
    return [
        _plain("verdict"),
        _plain("use"),
        Section("population", "_flow.html", "population"),
        _plain("model"),
        *results,
        _plain("subgroups"),
        _plain("controls"),
        *([_plain("robustness")] if task == "classification" else []),
        *optional,
        _plain("errors"),
        *([_plain("explanation")] if task in ("classification", "ordinal") else []),
        _plain("cases"),
        _plain("reproduce"),
        _plain("checklists"),
    ]


def _plain(name: str) -> Section:
    return Section(name, f"_{name}.html", name)
