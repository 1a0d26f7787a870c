"""External validation: nothing is fitted again, overlap is refused, recalibration is a step of its own."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Picture
from scipy.optimize import brentq
from small_cohorts import blobs
from test_audits import small_run

from medtransfer import Cohort, Predictions, Run
from medtransfer.dataset import Prepared
from medtransfer.decisions import decide
from medtransfer.errors import CohortError, ConfigError, LeakageError
from medtransfer.external import evaluate_external, fit_locally, predict_external, recalibrated
from medtransfer.predict import probabilities
from medtransfer.run import load_checkpoint


def elsewhere(n: int = 60, seed: int = 7) -> Cohort:
    """Other patients, other images."""
    cases = [
        replace(c, case_id=f"e{c.case_id}", patient_id=f"e{c.patient_id}", covariates={"site": "AB"[i // 4 % 2]})
        for i, c in enumerate(blobs(n, side=32, seed=seed))
    ]
    return Cohort(tuple(cases), ("no", "yes"), name="elsewhere")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    cohort = blobs(120, side=32)
    return small_run(cohort, tmp_path_factory.mktemp("runs") / "run", folds=2)


def test_all_folds_speak_and_the_stored_threshold_decides(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    cohort = elsewhere()
    point, _ = decide(run, "youden", calibrator=True)
    assert point is not None

    def fail(self: Run) -> None:
        raise AssertionError("validation was looked at again")

    monkeypatch.setattr(Run, "validation", fail)
    found = evaluate_external(run, cohort, calibrate=True, bootstrap=200, subgroups=("site",))
    prepared = Prepared(cohort.cases, run.prepare, progress=False)
    files = sorted(run.folder.glob("fold-*/model.safetensors"))
    assert len(files) == 2
    wanted = np.mean([probabilities(load_checkpoint(f), prepared, range(60)) for f in files], axis=0)
    np.testing.assert_allclose(found.predictions.probability, wanted, atol=1e-12)
    middle = np.mean([point.by_fold[0], point.by_fold[1]])
    assert (found.called == (wanted[:, 1] >= middle)).all()
    assert found.predictions.part == "external"
    assert found.recalibrated
    assert {s.level for s in found.subgroups} == {"A", "B"}
    assert "elsewhere" in str(found.record["title"])
    assert "learning_curve" not in found.record


def test_missing_classes_and_labels_are_fine_and_strange_ones_are_not(run: Run) -> None:
    cohort = elsewhere()
    sick = [c for c in cohort if c.label == 1]
    only = Cohort(tuple(replace(c, label=0) for c in sick), ("YES",), name="sick")
    found = evaluate_external(run, only, bootstrap=100)
    assert found.estimates["auroc"].value is None
    assert found.estimates["sensitivity"].value is not None
    assert found.estimates["specificity"].value is None
    blind = Cohort(tuple(replace(c, label=None) for c in cohort), ())
    assert (predict_external(run, blind).reference == -1).all()
    with pytest.raises(CohortError, match="does not know"):
        predict_external(run, replace(cohort, classes=("no", "maybe")))


def test_patients_and_images_of_the_training_are_refused(run: Run) -> None:
    cohort = elsewhere()
    seen = run.cohort.cases[run.split.folds[0].train[0]]
    same_patient = replace(cohort, cases=(*cohort.cases, replace(cohort.cases[0], patient_id=f" {seen.patient_id} ")))
    with pytest.raises(LeakageError, match="1 of 61 external cases") as caught:
        predict_external(run, same_patient)
    assert seen.patient_id not in str(caught.value).replace("patients", "")
    assert len(predict_external(run, same_patient, accept=("same_ids",))) == 61
    copy = replace(cohort, cases=(*cohort.cases, replace(seen, case_id="other", patient_id="other")))
    with pytest.raises(LeakageError, match="1 of 61 external images"):
        predict_external(run, copy)
    assert len(predict_external(run, copy, accept=("same_images",))) == 61


def predictions(n: int = 400, shift: float = 1.5, seed: int = 0) -> Predictions:
    """Risks whose log odds are too high by ``shift``."""
    rng = np.random.default_rng(seed)
    odds = rng.normal(0, 1.5, n)
    y = (rng.random(n) < 1 / (1 + np.exp(-odds))).astype(int)
    p = 1 / (1 + np.exp(-odds - shift))
    ids = np.array([f"c{i}" for i in range(n)])
    patients = np.array([f"p{i // 2}" for i in range(n)])
    return Predictions(ids, patients, y, np.c_[1 - p, p], ("no", "yes"), np.zeros(n, int), "external")


def test_local_recalibration_mends_what_is_off_and_reports_the_rest() -> None:
    from medtransfer.evaluate import evaluate

    found = evaluate(predictions(), threshold=0.5, bootstrap=300)
    after = recalibrated(found, 0.4)
    local = set(found.predictions.patient) - set(after.predictions.patient)
    assert abs(len(local) - 80) <= 2
    assert not local & set(after.predictions.patient)
    assert abs(after.estimates["calibration_intercept"].value) > 1
    assert abs(after.recalibrated["calibration_intercept"].value) < 0.5
    assert after.estimates["auroc"].value == pytest.approx(
        evaluate(after.predictions, threshold=0.5, bootstrap=100).estimates["auroc"].value
    )
    for share in (0.0, 1.0, 0.001):
        with pytest.raises(ConfigError):
            recalibrated(found, share)


def test_few_local_patients_move_the_intercept_alone() -> None:
    local = predictions(30)
    fitted = fit_locally(local)
    assert fitted.slope == {0: 1.0}
    odds = np.log(local.positive / (1 - local.positive))
    wanted = brentq(lambda a: (1 / (1 + np.exp(-odds - a)) - local.reference).sum(), -10, 10)
    assert fitted.intercept[0] == pytest.approx(wanted, abs=1e-6)
    assert fit_locally(predictions(400)).slope[0] != 1


def test_the_command_writes_a_report_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from click.testing import CliRunner

    from medtransfer.cli import cli

    monkeypatch.chdir(tmp_path)
    for name, cohort in (("here", blobs(120, side=32)), ("there", elsewhere())):
        (tmp_path / name).mkdir()
        rows = ["who,case_id,image,finding"]
        for case in cohort:
            Picture.fromarray(case.image).save(tmp_path / name / f"{case.case_id}.png")
            rows.append(f"{case.patient_id},{case.case_id},{case.case_id}.png,{('no', 'yes')[case.label]}")
        (tmp_path / f"{name}.csv").write_text("\n".join(rows) + "\n")
    (tmp_path / "config.yaml").write_text(
        "cohort: {csv: here.csv, root: here, label: finding, patient: who}\n"
        "split: {val: 0.2, test: 0.25}\nprepare: {size: 32, scale: range}\n"
        "model: {weights: random/resnet18, until: stem, pool: mean_std}\nrecipe: {method: logistic}\n"
        "evaluate: {bootstrap: 200, controls: [], learning_curve: false, shuffled_labels: false}\nout: run\n"
    )

    def call(*arguments: str) -> str:
        done = CliRunner().invoke(cli, [*arguments, "-q"], catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return done.output

    call("train", "config.yaml")
    stored = (tmp_path / "run" / "threshold.json").read_bytes()
    mine = (tmp_path / "run" / "report.html").read_bytes()
    call("evaluate", "run", "--cohort", "there.csv", "--root", "there", "--recalibrate", "0.5")
    out = tmp_path / "run" / "external-there"
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["part"] == "external"
    assert metrics["threshold"]["rule"] == "youden"
    assert metrics["counts"]["cases"] == 60
    assert len((out / "predictions.csv").read_text().splitlines()) == 61
    assert json.loads((out / "recalibrated" / "metrics.json").read_text())["recalibrated"]
    assert "External validation on there" in (out / "report.html").read_text()
    assert (tmp_path / "run" / "threshold.json").read_bytes() == stored
    assert (tmp_path / "run" / "report.html").read_bytes() == mine
    (tmp_path / "other.yaml").write_text(
        "cohort: {csv: there.csv, root: there, label: finding, patient: who, classes: [no, yes]}\n"
    )
    call(
        "evaluate", "run", "--cohort", "other.yaml", "--name", "site B", "--set", "evaluate.threshold=sensitivity>=0.9"
    )
    again = json.loads((tmp_path / "run" / "external-site-B" / "metrics.json").read_text())
    assert again["threshold"]["rule"] == "sensitivity>=0.9"
    assert again["estimates"]["auroc"]["value"] == metrics["estimates"]["auroc"]["value"]
    refused = CliRunner().invoke(cli, ["evaluate", "run", "--cohort", "here.csv", "--root", "here", "-q"])
    assert refused.exit_code == 3
    assert "training patient" in refused.output
