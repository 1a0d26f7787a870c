"""Audits that run with every evaluation: shortcut probes, shuffled labels, learning curve, stored decisions, groups."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from small_cohorts import blobs

from medtransfer import Case, Cohort, Prepare, Recipe, Run, fit, load_model, split_by_patient
from medtransfer.decisions import decide, stored_rule
from medtransfer.enough import STRENGTHS, chances, curve_of, how_many
from medtransfer.groups import bands, groupings
from medtransfer.judge import judge
from medtransfer.metrics.growth import at, enough_cases, law, summary
from medtransfer.probes import coded, corners, geometry_features, header_features, shuffle_by_patient

QUICK = {"bootstrap": 200, "shuffled_labels": False, "learning_curve": False}


def small_run(cohort: Cohort, out: Path, seed: int = 0, **split: object) -> Run:
    """A run that learns nothing but the logistic regression on an untrained network."""
    model = load_model("random/resnet18", until="stem", pool="mean_std")
    options = {"val": 0.2, "test": 0.3, "seed": seed} | split
    return fit(model, cohort, split_by_patient(cohort, **options), Prepare(size=32, scale="range"),
               Recipe(method="logistic"), out=out, seed=seed, progress=False)  # fmt: skip


def marked(n: int, seed: int, *, side: int = 32) -> Cohort:
    """Noise; a bright marker in a corner carries the label and nothing else does."""
    rng = np.random.default_rng(seed)
    cases = []
    for i in range(n):
        image = rng.integers(0, 200, (side, side)).astype(np.uint8)
        if i % 2:
            image[1:4, side - 4 : side - 1] = 255
        cases.append(Case(f"c{i}", f"p{i}", image, label=i % 2))
    return Cohort(tuple(cases), ("no", "yes"))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return small_run(blobs(120, side=32), tmp_path_factory.mktemp("runs") / "run")


def test_a_marker_in_a_corner_is_flagged_and_an_honest_cohort_is_not(tmp_path: Path, run: Run) -> None:
    found = judge(small_run(marked(160, 3), tmp_path / "r"), controls=("corners", "histogram", "geometry"), **QUICK)
    flags = [c for c in found.checks if c.name == "Shortcut" and "Corners" in c.text]
    assert [c.status in ("serious", "caution") for c in flags] == [True]
    assert not any("Size" in c.name for c in found.controls)  # all images have one size
    honest = judge(run, controls=("corners",), **QUICK)
    assert not [c for c in honest.checks if c.name == "Shortcut" and c.status == "serious"]


def test_size_that_tells_the_label_is_flagged(tmp_path: Path) -> None:
    cases = [
        replace(c, image=np.pad(c.image, ((0, 8 * (c.label or 0)), (0, 0)), mode="wrap")) for c in blobs(120, side=32)
    ]
    found = judge(small_run(Cohort(tuple(cases), ("no", "yes")), tmp_path / "r"), controls=("geometry",), **QUICK)
    control = found.controls[0]
    assert control.value.value == 1
    assert control.image_free
    assert any(c.name == "Shortcut" and c.status == "serious" for c in found.checks)


def test_features_of_probes() -> None:
    image = np.zeros((1, 40, 40), np.float32)
    assert corners(image).shape == (4 * 38,)
    for row, col, corner in ((0, 0, 0), (0, -1, 1), (-1, 0, 2), (-1, -1, 3)):
        marker = image.copy()
        marker[0, row, col] = 1
        loud = corners(marker).reshape(4, 38)
        assert np.flatnonzero(loud.any(axis=1)).tolist() == [corner]
        assert loud[corner, 36] == 1  # the largest value
    middle = image.copy()
    middle[0, 8:32, 8:32] = 1
    assert not corners(middle).any()
    assert corners(np.zeros((2, 9, 20, 30), np.float32)).shape == (4 * 2 * (3 * 4 + 2),)  # of the middle plane
    assert geometry_features(blobs(10)) is None
    assert header_features(blobs(10)) is None
    both = coded({"kVp": ["120", "", "90", "100"], "id": ["a", "b", "c", "d"], "same": ["x"] * 4})
    assert both is not None
    assert both.tolist() == [[120, 0], [100, 1], [90, 0], [100, 0]]


def test_labels_are_shuffled_among_patients() -> None:
    patients = np.repeat([f"p{i}" for i in range(50)], 3)[np.random.default_rng(0).permutation(150)]
    of_patient = {f"p{i}": i % 2 for i in range(50)}
    labels = np.array([of_patient[p] for p in patients])
    shuffled = shuffle_by_patient(labels, patients, seed=4)
    assert sorted(shuffled) == sorted(labels)
    assert all(len(set(shuffled[patients == p])) == 1 for p in of_patient)  # whole patients swap
    assert (shuffled != labels).mean() > 0.3


def test_shuffled_labels_stay_at_chance_and_a_leak_does_not(run: Run) -> None:
    found = judge(run, controls=(), bootstrap=300, shuffled_labels=True, learning_curve=False)
    stored = run.record()["shuffled_labels"]
    assert stored["low"] <= stored["value"] <= stored["high"]
    assert any(c.name == "Shuffled labels" for c in found.checks)
    from medtransfer.metrics.checks import shuffle_check

    assert shuffle_check({"value": 0.7, "low": 0.6, "high": 0.8})[0].status == "caution"
    assert shuffle_check({"value": 0.5, "low": 0.4, "high": 0.6})[0].status == "ok"
    assert shuffle_check(None) == shuffle_check({"value": None}) == []


def test_the_law_finds_its_own_curves_and_keeps_its_limits() -> None:
    n = np.geomspace(20, 2000, 7).round()
    for a, b, c in ((0.9, 1.0, 0.5), (0.95, 2.0, 0.8), (0.7, 0.0, 0.2)):
        fitted = law(n, a - b * n**-c, np.full(7, 0.01))
        assert at(fitted, 8000) == pytest.approx(a - b * 8000.0**-c, abs=1e-6)
    steep = law(n, np.minimum(1, 0.5 + 0.07 * np.log(n)), np.full(7, 0.01))
    assert steep[0] <= 1
    assert at(steep, 1e6) <= 1
    falling = law(n, 0.9 - 0.01 * np.log(n), np.full(7, 0.01))
    assert falling[1] == 0  # more cases never hurt
    gone = law(n, np.where(n < 50, np.nan, 0.9 - n**-0.5), np.full(7, 0.01))
    assert gone == pytest.approx([0.9, 1, 0.5], abs=1e-6)
    k = enough_cases(np.array([0.9, 1.0, 0.5]))
    assert float(at(np.array([0.9, 1.0, 0.5]), 2 * k) - at(np.array([0.9, 1.0, 0.5]), k)) == pytest.approx(0.005)


def test_a_learning_curve_rises_to_what_the_features_hold() -> None:
    """Two normal classes at a known distance: the best possible AUROC is known."""
    from scipy.stats import norm

    rng, n, width = np.random.default_rng(0), 900, 30
    y = np.arange(n) % 2
    x = rng.normal(size=(n, width))
    x[:, :4] += 0.75 * y[:, None]
    patients = np.array([f"p{i // 2}" for i in range(n)])
    train, scored = np.arange(300), np.arange(300, n)
    curve = curve_of(x, y, patients, [(train, scored)], classes=2, draws=3, bootstrap=100)
    assert curve.cases[-1] == 300
    found = summary(curve)
    best = norm.cdf(0.75 * 2 / np.sqrt(2))
    means = [p["value"]["value"] for p in found["points"]]
    assert means[0] < means[-1] <= best + 0.03
    twice = found["predicted"]["value"]
    assert twice["low"] <= twice["value"] <= twice["high"]
    assert twice["value"] == pytest.approx(best, abs=0.06)
    assert abs(found["check"]["error"]) < 0.05
    assert json.loads(json.dumps(found))["note"].startswith("With 300 training cases")


def test_fewer_components_give_the_model_of_all_features() -> None:
    """Against scikit-learn on all the standardised features, at the penalty that ours chose."""
    from sklearn.linear_model import LogisticRegression

    rng = np.random.default_rng(2)
    x, y = rng.normal(size=(60, 150)) * rng.uniform(0.1, 3, 150), np.arange(60) % 2
    x[:, :5] += y[:, None]
    new, patients = rng.normal(size=(20, 150)), np.array([f"p{i}" for i in range(60)])
    ours = chances(x, y, patients, new, 2)[:, 1]
    z, w = (x - x.mean(0)) / x.std(0), (new - x.mean(0)) / x.std(0)
    theirs = [LogisticRegression(C=c, tol=1e-8, max_iter=5000).fit(z, y).predict_proba(w)[:, 1] for c in STRENGTHS]
    assert min(np.abs(ours - t).max() for t in theirs) < 0.02


def test_parts_are_nested_whole_patients_of_all_classes() -> None:
    from medtransfer.enough import _order

    labels = np.repeat(np.arange(60) % 3 == 0, 2).astype(np.int64)
    patients = np.repeat([f"p{i}" for i in range(60)], 2)
    order = _order(np.arange(120), labels, patients, np.random.default_rng(1))
    assert sorted(order.tolist()) == list(range(120))
    for cut in (24, 48, 90):
        assert len(set(patients[order[:cut]])) == cut // 2
        assert abs(labels[order[:cut]].mean() - 1 / 3) < 0.06


def test_a_run_stores_its_learning_curve_and_test_cases_play_no_part(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    first = how_many(run, sizes=4, draws=2, bootstrap=100)
    tested = list(run.split.test)
    spoiled = run.kept["start"].copy()
    spoiled[tested] = np.nan
    monkeypatch.setitem(run.kept, "start", spoiled)
    assert how_many(run, sizes=4, draws=2, bootstrap=100) == first
    assert first["sizes"][-1] <= len(run.split.train)
    monkeypatch.undo()
    monkeypatch.setattr("medtransfer.judge.how_many", lambda run, **options: first)
    judge(run, controls=(), bootstrap=200, shuffled_labels=False)
    assert run.record()["learning_curve"]["points"]


def test_decisions_are_fitted_once_and_read_back(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    first, _ = decide(run, "youden")
    _, calibrator = decide(run, "youden", calibrator=True)
    stored = json.loads((run.folder / "threshold.json").read_text())
    assert stored["rule"] == "youden" == stored_rule(run)

    def fail(self: Run) -> None:
        raise AssertionError("validation was looked at again")

    other, _ = decide(run, "sensitivity >= 0.9")
    monkeypatch.setattr(Run, "validation", fail)
    assert decide(run, "youden", calibrator=True) == (first, calibrator)
    assert decide(run, "sensitivity>=0.9")[0] == other != first
    with pytest.raises(AssertionError):
        decide(run, "cost=5")
    (run.folder / "threshold.json").write_text("{")
    from medtransfer.errors import RunError

    with pytest.raises(RunError, match="remove the file"):
        decide(run, "youden")
    (run.folder / "threshold.json").unlink()


def test_bands_and_groupings() -> None:
    ages = ["17", "18", "39.9", "40", "79", "80", ""]
    assert bands(ages, (18, 40, 60, 80)).tolist() == [
        "below 18", "18 to below 40", "18 to below 40", "40 to below 60", "60 to below 80", "at least 80", "unknown",
    ]  # fmt: skip
    assert bands(["1", "2", "1"]).tolist() == ["1", "2", "1"]
    assert bands(["1", "two"] * 8).tolist() == ["1", "two"] * 8
    cohort = blobs(40)
    assert set(groupings(cohort, range(40), ["age", "sex", "nothing"])) == {"age"}


def test_gaps_are_widened_for_their_number_and_several_classes_have_them() -> None:
    from statistics import NormalDist

    from test_evaluate import predictions

    from medtransfer.evaluate import evaluate

    test = predictions(5, n=600)
    sites = np.array(["a", "b", "c"])[np.arange(600) // 2 % 3]
    worse = sites == "c"
    signs = np.random.default_rng(1).choice([-1, 1], (600, 1))
    flat = np.where(worse[:, None], 0.5 + 0.3 * (test.probability - 0.5) * signs, test.probability)
    found = evaluate(replace(test, probability=flat), subgroups={"site": sites}, threshold=0.5, bootstrap=400)
    by = {s.level: s for s in found.subgroups}
    for s in by.values():
        assert s.gap_adjusted.high - s.gap_adjusted.low > s.gap.high - s.gap.low
        assert "for 3 gaps" in s.gap_adjusted.method
    wide = (by["a"].gap_adjusted.high - by["a"].gap_adjusted.value) / NormalDist().inv_cdf(1 - 0.025 / 3)
    assert wide == pytest.approx((by["a"].gap.high - by["a"].gap.low) / 2 / 1.96, rel=0.2)
    flag = next(c for c in found.checks if c.name == "Subgroups")
    assert flag.status == "caution"
    assert "site c" in flag.text
    two = evaluate(test, subgroups={"sex": np.array(["F", "M"])[np.arange(600) // 2 % 2]}, threshold=0.5, bootstrap=200)
    assert "for 1 gaps" in two.subgroups[0].gap_adjusted.method
    assert next(c for c in two.checks if c.name == "Subgroups").status == "ok"
    three = predictions(6, n=600, classes=("x", "y", "z"))
    found = evaluate(three, subgroups={"site": sites}, bootstrap=200)
    from sklearn.metrics import roc_auc_score

    first = found.subgroups[0]
    inside = sites == "a"
    wanted = np.mean([roc_auc_score(three.reference[inside] == k, three.probability[inside, k]) for k in range(3)])
    assert first.auroc.value == pytest.approx(wanted, abs=1e-12)
    assert first.sensitivity.value is None
    few = evaluate(test, subgroups={"rare": np.where(np.arange(600) < 12, "few", "many")}, threshold=0.5, bootstrap=100)
    assert few.subgroups[0].auroc.value is None
    assert "suppressed" in few.subgroups[0].auroc.note
