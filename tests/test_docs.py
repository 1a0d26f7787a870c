"""The manual, without building it: complete, linked, and its cheap blocks run. ``make docs`` does the rest."""

import ast
import json
import os
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
    from medtransfer.config import _COHORTS, sections

    told = reference.documented_keys()
    for kind in _COHORTS:
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


def test_hardly_a_block_is_shown_without_being_run():
    """What needs a package index, and what would set up and test this repository inside of its own build."""
    found = [
        page.name
        for page in [*PAGES, ROOT / "README.md"]
        for block in blocks.blocks_of(page.read_text(encoding="utf-8"), page.name)
        if any(mark.startswith("not run") for mark in block.marks)
    ]
    assert found == ["offline.md", "README.md"]


def test_what_pages_need_is_something_that_can_be_prepared():
    from here import MAKERS
    from running import SERVICES
    from scans import SCANS

    known = {*MAKERS, *SCANS, *SERVICES}
    assert len(known) == len(MAKERS) + len(SCANS) + len(SERVICES)
    for page in [*PAGES, ROOT / "README.md"]:
        named = [word for names in blocks.HERE.findall(page.read_text(encoding="utf-8")) for word in names.split()]
        assert {*named} <= known, page.name


def test_no_page_hides_a_block_from_the_runner():
    """An indented block, or one without a language, would be shown and never run."""
    for page in PAGES:
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


def test_a_block_without_its_packages_is_told_of_and_the_rest_runs(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("<!-- needs: json no_such_thing -->\n```sh\nfalse\n```\n```sh\necho there\n```\n", encoding="utf-8")
    found = blocks.run_page(page, "page.md", tmp_path)
    assert [(o.status, o.reason) for o in found] == [("not run", "no_such_thing is not installed"), ("ran", "")]


def test_a_page_whose_surroundings_cannot_be_had_is_told_of(tmp_path, monkeypatch):
    import running

    monkeypatch.setattr("orthanc._program", lambda: None)
    monkeypatch.setattr(blocks, "find_spec", lambda name: name)
    assert running  # its import puts the archive's module on the path
    page = tmp_path / "page.md"
    text = "<!-- here: archive -->\n```sh\nfalse\n```\n"
    page.write_text(text, encoding="utf-8")
    (found,) = blocks.run_page(page, "page.md", tmp_path)
    assert found.status == "not run"
    assert "Orthanc is not installed" in found.reason
    page.write_text(text.replace("```sh", "<!-- needs: archive -->\n```sh", 1) + "```sh\ntrue\n```\n", encoding="utf-8")
    assert [o.status for o in blocks.run_page(page, "page.md", tmp_path)] == ["not run", "ran"]


def test_what_a_page_changes_around_it_lasts_as_long_as_the_page(tmp_path):
    before = Path.cwd(), os.environ.get("ONE"), os.environ.get("TWO")
    page = tmp_path / "page.md"
    first = "mkdir inner\ncd inner\nexport ONE=1 TWO=$(printf 'a b')\nnumber=$(echo 7)\n"
    page.write_text(f"```sh\n{first}```\n```sh\npwd; echo $ONE $TWO $number\n```\n", encoding="utf-8")
    found = blocks.run_page(page, "page.md", tmp_path)
    assert found[1].output.splitlines() == ["./inner", "1 a b 7"]
    assert (Path.cwd(), os.environ.get("ONE"), os.environ.get("TWO")) == before


def test_jobs_of_a_cluster_are_run_where_there_is_none(tmp_path):
    (tmp_path / "job").write_text(
        "#SBATCH --nodes=2\n#SBATCH --requeue\n"
        'srun bash -c "echo $SLURM_ARRAY_TASK_ID $1 \\$SLURM_PROCID of $SLURM_NTASKS on \\$SLURM_NODEID >> out"\n'
    )
    page = tmp_path / "page.md"
    page.write_text(
        "<!-- here: queue -->\n```sh\njob=$(sbatch --parsable --array=3-4 --ntasks-per-node=1 job x)\n"
        "sbatch --dependency=afterok:$job job y\nsort out\n```\n"
        "<!-- exit 7 -->\n```sh\necho exit 7 > bad\nsbatch bad\n```\n",
        encoding="utf-8",
    )
    first, second = blocks.run_page(page, "page.md", tmp_path)
    wanted = [
        "3 x 0 of 2 on 0",
        "3 x 1 of 2 on 1",
        "4 x 0 of 2 on 0",
        "4 x 1 of 2 on 1",
        "y 0 of 2 on 0",
        "y 1 of 2 on 1",
    ]
    assert sorted(line.strip() for line in first.output.splitlines() if " of " in line) == wanted
    assert (first.status, second.status) == ("ran", "ran")


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
