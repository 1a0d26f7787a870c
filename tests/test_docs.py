"""The manual, without building it: complete, linked, and its cheap blocks run. ``make docs`` does the rest."""

import ast
import json
import re
import sys
from pathlib import Path

import pytest

import medtransfer

ROOT = Path(__file__).resolve().parents[1]
DOCS, EXAMPLES = ROOT / "docs", ROOT / "examples"
sys.path.append(str(DOCS / "_ext"))

import blocks  # noqa: E402
import reference  # noqa: E402

PAGES = sorted(p for p in DOCS.rglob("*.md") if not {"_made", "_build", "examples"} & {*p.relative_to(DOCS).parts})
NOTEBOOKS = sorted(EXAMPLES.glob("*.ipynb"))
CHEAP = ["why/fine_tuning.md", "why/volumes.md"]


def test_every_public_name_is_in_the_reference():
    text = (DOCS / "reference" / "python.md").read_text(encoding="utf-8")
    named = re.findall(r"^\.\. auto\w+:: medtransfer\.(\w+)$", text, re.M)
    assert sorted([*named, "__version__"]) == sorted([*medtransfer.__all__, "errors"])
    assert len(set(named)) == len(named)


def test_everything_in_the_reference_can_be_imported():
    from importlib import import_module

    text = (DOCS / "reference" / "python.md").read_text(encoding="utf-8")
    for full in re.findall(r"^\.\. auto(?:function|class|exception):: (medtransfer[\w.]*)$", text, re.M):
        module, _, name = full.rpartition(".")
        thing = getattr(import_module(module), name)
        assert thing.__doc__, full


def test_every_key_of_a_config_is_explained():
    from medtransfer.config import sections

    told = reference.documented_keys()
    for kind in ("csv", "dicom", "medmnist"):
        for name, model in sections(kind).items():
            missing = set(model.model_fields) - told[f"{name}/{kind}" if name == "cohort" else name]
            assert not missing, f"{name} of {kind}: {missing}"
    for name in ("plan", "model", "evaluate"):
        missing = set(sections("csv", "segmentation")[name].model_fields) - told[f"{name}/masks"]
        assert not missing, f"{name} of a segmentation: {missing}"


def test_the_config_reference_has_a_meaning_beside_every_key():
    text = reference.config_reference()
    assert not re.findall(r"^\| `(\w+)` \|.*\|\s*\|$", text, re.M)
    assert "| `threshold` |" in text
    assert "| `epochs` | whole number ≥ 1 | `40` |" in text


def test_the_command_reference_has_every_command():
    from medtransfer.cli import cli

    text = reference.command_reference()
    for name, command in cli.commands.items():
        for inner in getattr(command, "commands", {"": None}):
            assert f"## medtransfer {name} {inner}".rstrip() in text


def listed(page: Path) -> list[Path]:
    """Pages that a page's toctrees name."""
    text, found = page.read_text(encoding="utf-8"), []
    for tree in re.findall(r"^```\{toctree\}\n(.*?)^```", text, re.M | re.S):
        for entry in (line for line in tree.splitlines() if line and not line.startswith(":")):
            named = page.parent / f"{entry}.md"
            found += sorted(page.parent.glob(f"{entry}.md")) if "*" in entry else [named]
    return found


def test_every_page_is_in_a_table_of_contents():
    trees = [p for page in PAGES for p in listed(page)]
    assert {p for p in trees if not p.is_file()} == set()
    assert {*PAGES} - {*trees} == {DOCS / "index.md"}
    assert len({*trees}) == len(trees)


def slug(heading: str) -> str:
    """The anchor of a heading, as GitHub and MyST make it."""
    return re.sub(r"[^\w\- ]", "", re.sub(r"[`*]", "", heading).lower()).strip().replace(" ", "-")


@pytest.mark.parametrize("page", [*PAGES, ROOT / "README.md"], ids=lambda p: p.name)
def test_links_lead_somewhere(page):
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        file, _, anchor = target.partition("#")
        place = page.parent / file if file else page
        assert place.exists(), f"{page.name}: {target}"
        if anchor:
            headings = re.findall(r"^#+ (.+)$", place.read_text(encoding="utf-8"), re.M)
            assert anchor in {slug(h) for h in headings}, f"{page.name}: {target}"


@pytest.mark.parametrize("page", [*PAGES, ROOT / "README.md"], ids=lambda p: p.name)
def test_blocks_are_well_formed(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for block in blocks.blocks_of(page.read_text(encoding="utf-8"), page.name):
        if block.language in ("python", "py"):
            ast.parse(block.code)
        elif block.language in ("yaml", "yml"):
            blocks.check_yaml(block.code, tmp_path)
        assert "not run" not in block.marks, f"{page.name}:{block.line} gives no reason"


def test_no_page_hides_a_block_from_the_runner():
    """An indented block, or one without a language, would be shown and never run."""
    for page in PAGES:
        if page.name in ("pacs.md", "export.md", "sharing.md", "scale.md", "viewer.md"):
            continue
        opened = re.findall(r"^(```+.*)$", page.read_text(encoding="utf-8"), re.M)[::2]
        assert not [fence for fence in opened if fence == "```"], page.name


@pytest.mark.parametrize("name", CHEAP)
def test_cheap_pages_run(name, tmp_path):
    outcomes = blocks.run_page(DOCS / name, name, tmp_path)
    assert [o.output for o in outcomes if o.status == "failed"] == []
    assert any(o.status == "ran" for o in outcomes)


def test_the_runner_sees_failures(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("```python\n1 / 0\n```\n\n```python\nprint(1)\n```\n", encoding="utf-8")
    outcomes = blocks.run_page(page, "page.md", tmp_path)
    assert [o.status for o in outcomes] == ["failed"]
    assert "ZeroDivisionError" in outcomes[0].output


def test_the_runner_knows_exit_codes_and_reasons(tmp_path):
    page = tmp_path / "page.md"
    marked = "<!-- not run: no cluster -->\n```sh\nsbatch x\n```\n<!-- exit 3 -->\n<!-- quiet -->\n```sh\nexit 3\n```\n"
    page.write_text("```{note}\na\n```\n```sh\nfalse\n```\n" + marked, encoding="utf-8")
    found = blocks.blocks_of(page.read_text(encoding="utf-8"), "page.md")
    assert [(b.exit_code, b.reason) for b in found] == [(0, ""), (0, "no cluster"), (3, "")]
    assert [o.status for o in blocks.run_page(page, "page.md", tmp_path)] == ["failed"]


def test_broken_links_of_built_pages_are_found(tmp_path):
    import links

    (tmp_path / "a.html").write_text('<a href="b.html#here">b</a><a href="b.html#gone">b</a><a href="c.html">c</a>')
    (tmp_path / "b.html").write_text('<p id="here">b</p>')
    assert links.broken(tmp_path) == ["a.html: b.html#gone", "a.html: c.html"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebooks_are_stored_without_outputs_and_compile(path):
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    code = [c for c in cells if c["cell_type"] == "code"]
    assert cells[0]["cell_type"] == "markdown"
    assert cells[0]["source"][0].startswith("# ")
    assert code
    for cell in code:
        assert cell["outputs"] == []
        assert cell["execution_count"] is None
        ast.parse("".join(cell["source"]))


def test_there_is_a_notebook_for_each_main_task():
    assert {p.stem for p in NOTEBOOKS} >= {
        "classification_2d", "classification_3d", "segmentation", "multilabel", "external_validation",
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebooks_run(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "Agg")
    names: dict[str, object] = {"__name__": "__main__"}
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            blocks.execute("".join(cell["source"]), names, path.name)
