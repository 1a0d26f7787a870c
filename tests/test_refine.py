"""From a config to a search and to a comparison of strategies, through the command line."""

import json

import pytest
from click.testing import CliRunner
from PIL import Image as Picture
from small_cohorts import blobs

from medtransfer.cli import cli

CONFIG = """\
cohort: {csv: cohort.csv, root: images}
split: {val: 0.2, test: 0.25, seed: 0}
prepare: {size: 32, scale: range}
model: {weights: random/resnet18, until: layer1}
recipe: {method: logistic}
search: {trials: 1, folds: 2, sizes: [24]}
out: run
"""


@pytest.fixture
def study(tmp_path, monkeypatch):
    (tmp_path / "images").mkdir()
    rows = ["case_id,patient_id,image,label,sex"]
    for case in blobs(60, side=36):
        Picture.fromarray(case.image).save(tmp_path / "images" / f"{case.case_id}.png")
        rows.append(f"{case.case_id},{case.patient_id},{case.case_id}.png,{'yes' if case.label else 'no'},F")
    (tmp_path / "cohort.csv").write_text("\n".join(rows) + "\n")
    (tmp_path / "config.yaml").write_text(CONFIG.replace("out: run", f"data: {tmp_path}\nout: {tmp_path / 'run'}"))
    return tmp_path


def call(*arguments):
    return CliRunner().invoke(cli, [str(a) for a in arguments])


@pytest.mark.slow
def test_search_writes_what_it_found_and_goes_on(study):
    pytest.importorskip("optuna", reason="the extra hpo is not installed")
    first = call("search", study / "config.yaml", "--json", "-q")
    assert first.exit_code == 0, first.output
    found = json.loads(first.stdout)
    assert found["trials"] == 2
    assert json.loads((study / "run" / "search.json").read_text()) == found
    more = call("search", study / "config.yaml", "--trials", 2, "-q")
    assert more.exit_code == 0, more.output
    assert more.stdout.startswith("3 trials")
    nested = call("search", study / "config.yaml", "--nested", "--json", "-q", "--set", "split.folds=2")
    assert nested.exit_code == 0, nested.output
    record = json.loads(nested.stdout)
    assert len(record["folds"]) == 2
    assert record["metrics"]["counts"]["cases"] == 60


def test_a_typo_in_the_search_section_is_named(study):
    wrong = call("search", study / "config.yaml", "--set", "search.trails=3", "-q")
    assert wrong.exit_code == 2
    assert "did you mean 'trials'" in wrong.output
