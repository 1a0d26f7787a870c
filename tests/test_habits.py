"""What contributors are told is so: the map is up to date, the hooks run what is there, the versions agree."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import medtransfer

ROOT = Path(__file__).resolve().parents[1]


def test_the_map_of_the_house_is_up_to_date():
    done = subprocess.run([sys.executable, ROOT / "tools" / "house.py", "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_file_says_in_its_first_line_what_it_is():
    table = [line for line in (ROOT / "docs" / "house.md").read_text().splitlines() if line.startswith("| ")][1:]
    assert len(table) > 100
    assert not [line for line in table if not re.fullmatch(r"\| \S.* \| \S.* \|", line)]


def read(name):
    from ruamel.yaml import YAML

    return YAML(typ="safe").load((ROOT / name).read_text())


def test_hooks_are_local_and_call_tools_of_the_environment():
    repos = read(".pre-commit-config.yaml")["repos"]
    assert [r["repo"] for r in repos] == ["local"]
    entries = [hook["entry"].split()[0] for hook in repos[0]["hooks"]]
    assert all(e.startswith(".venv/bin/") for e in entries)


@pytest.mark.parametrize("name", ["bug.yml", "wish.yml"])
def test_issue_forms_have_what_a_form_needs(name):
    form = read(f".github/ISSUE_TEMPLATE/{name}")
    assert {"name", "description", "body"} <= set(form)
    for part in form["body"]:
        assert part["type"] in ("markdown", "textarea", "input", "dropdown", "checkboxes")
        assert part["type"] == "markdown" or part["attributes"]["label"]


def test_versions_agree_and_the_changelog_has_them():
    version = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)[1]
    assert version == medtransfer.__version__
    assert f"version: {version}" in (ROOT / "CITATION.cff").read_text()
    heads = re.findall(r"^## \[(.+?)\](?: - (.+))?$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert heads[0] == ("Unreleased", "")
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\d", date) and re.fullmatch(r"\d+\.\d+\.\d+", v) for v, date in heads[1:])


def test_what_the_guide_names_is_there():
    guide = (ROOT / "CONTRIBUTING.md").read_text()
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"`make ([a-z-]+)`", guide)) <= targets
    for path in re.findall(r"`((?:docs|tests|tools)/[\w./]+|[A-Z]+\.md|[a-z]+\.(?:txt|toml))`", guide):
        assert (ROOT / path).exists(), path


@pytest.mark.slow
def test_the_wheel_runs_the_demo_without_the_repository(tmp_path):
    command = [sys.executable, ROOT / "tests" / "wheel.py", "--site", "--patients", "60", "--out", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if "No matching distribution" in done.stderr or "Could not find a version" in done.stderr:
        pytest.skip("the build backend cannot be had without a package index")
    assert done.returncode == 0, done.stderr + done.stdout
    assert float(re.search(r"([\d.]+) MB", done.stdout)[1]) < 12
