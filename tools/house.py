"""Write docs/house.md, the map of the package, from the order of its rooms and the first line of every file.

python tools/house.py            writes it
python tools/house.py --check    fails where it is not up to date
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "house.md"
HEAD = """\
# A map of the house

Data walk through the package in one direction, and a file imports only from files above it in this list; private files
(`_name.py`) belong to the room in brackets. `tests/test_house.py` holds the list and proves the rule. This page is made
by `python tools/house.py`; a test refuses one that is out of date.

    files -> Image -> Cohort -> Split -> Prepare, Augment -> Model (Backbone + Head) -> Run -> Predictions -> Evaluation -> Report

`io/` and `metrics/` import neither torch nor each other; nobody imports `config` or `cli` besides the commands. Importing
the package loads nothing heavy. A file stays below 400 lines; past 250 it is time to think of splitting it by meaning.

| room | what it does |
|---|---|
"""  # noqa: E501


def constant(name: str) -> object:
    """A list or dict of tests/test_house.py."""
    tree = ast.parse((ROOT / "tests" / "test_house.py").read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == name:
            return ast.literal_eval(node.value)
    raise SystemExit(f"tests/test_house.py has no {name}")


def first_line(path: Path) -> str:
    """The first line of a file's docstring."""
    found = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return found.split("\n\n")[0].replace("\n", " ").replace("|", "\\|")


def page() -> str:
    """The map as Markdown."""
    rooms, private = constant("ROOMS"), constant("PRIVATE")
    assert isinstance(rooms, list)
    assert isinstance(private, dict)
    package, rows = ROOT / "medtransfer", []
    for room in rooms:
        folder = package / room
        file = folder / "__init__.py" if folder.is_dir() else package / f"{room}.py"
        rows.append(f"| **{room}{'/' if folder.is_dir() else ''}** | {first_line(file)} |")
        inside = sorted(p for p in folder.rglob("*.py") if p.name != "__init__.py") if folder.is_dir() else []
        rows += [f"| {p.relative_to(package).with_suffix('').as_posix()} | {first_line(p)} |" for p in inside]
        rows += [
            f"| {name} ({room}) | {first_line(package / f'{name}.py')} |" for name in private if private[name] == room
        ]
    return HEAD + "\n".join(rows) + "\n"


if __name__ == "__main__":
    if "--check" in sys.argv[1:]:
        raise SystemExit(0 if PAGE.is_file() and PAGE.read_text(encoding="utf-8") == page() else
                         "docs/house.md is out of date: python tools/house.py")  # fmt: skip
    PAGE.write_text(page(), encoding="utf-8")
