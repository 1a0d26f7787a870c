"""Labels that occur together, ordered classes, numbers, and bags of images: from a table to the report."""

import json

import numpy as np
import pytest
from PIL import Image as Picture

import medtransfer as mt
from medtransfer.config import Experiment
from medtransfer.errors import CohortError, ConfigError
from medtransfer.linear import fit_linear
from medtransfer.losses import criterion
from medtransfer.pipeline import predict_files, train
from medtransfer.predictions import Predictions

CONFIG = """
cohort: {csv: cohort.csv, %s}
split: {val: 0.2, test: 0.3}
prepare: {size: [32, 32]}
model: {weights: embedded/compact2d%s}
evaluate: {bootstrap: 200, controls: [histogram]}
%s
out: %s
data: %s
"""


def picture(path, marks, rng):
    """Noise with bright squares at the named corners."""
    image = rng.integers(0, 90, (32, 32)).astype(np.uint8)
    for mark in marks:
        r, c = {"left": (4, 3), "right": (18, 19)}[mark]
        image[r : r + 9, c : c + 9] += 120
    Picture.fromarray(image).save(path)


@pytest.fixture
def table(tmp_path):
    """Sixty patients with two images each: findings, a grade and a size."""
    rng = np.random.default_rng(0)
    lines = ["case_id,patient_id,study,image,left,right,findings,grade,count"]
    for i in range(120):
        marks = [m for m, yes in zip(("left", "right"), rng.random(2) < 0.5, strict=True) if yes]
        picture(tmp_path / f"{i}.png", marks, rng)
        left = "" if i % 17 == 5 else int("left" in marks)
        lines.append(f"c{i},p{i // 2},s{i // 2},{i}.png,{left},{'yes' if 'right' in marks else 'no'},"
                     f"{'|'.join(marks) or 'no finding'},grade {len(marks)},{10 + 5 * len(marks)}")  # fmt: skip
    (tmp_path / "cohort.csv").write_text("\n".join(lines) + "\n")
    return tmp_path


def run(table, cohort, *, task="", head="", more="", out="run"):
    text = CONFIG % (cohort, head, f"{f'task: {task}' if task else ''}\n{more}", table / out, table)
    return train(Experiment.from_text(text), progress=False)


def check_files(result, task):
    """What stands beside the report says the same as the evaluation."""
    folder = result.report.parent
    stored = json.loads((folder / "metrics.json").read_text())
    assert stored["task"] == task
    assert stored["estimates"][stored["primary"]]["value"] == pytest.approx(
        result.evaluation.estimates[stored["primary"]].value, rel=1e-9
    )
    again = Predictions.from_csv(folder / "predictions.csv")
    assert again.task == task
    assert np.allclose(again.reference, result.evaluation.predictions.reference, equal_nan=True)
    assert np.array_equal(again.probability, result.evaluation.predictions.probability)
    assert "<html" in result.report.read_text()


def test_several_labels(table):
    result = run(table, "label: [left, right]")
    p = result.evaluation.predictions
    assert (p.task, p.classes) == ("multilabel", ("left", "right"))
    assert np.isnan(p.reference).any()
    assert result.evaluation.estimates["macro_auroc"].value > 0.9
    assert set(result.evaluation.thresholds) == {"left", "right"}
    # counts by hand, at each label's own threshold
    for k, name in enumerate(p.classes):
        limit = result.evaluation.thresholds[name].by_fold[0]
        known = ~np.isnan(p.reference[:, k])
        hits = ((p.probability[:, k] >= limit) & (p.reference[:, k] == 1) & known).sum()
        assert result.evaluation.table[k, 1, 1] == hits
    check_files(result, "multilabel")


def test_one_column_of_findings(table):
    cohort = mt.Cohort.from_csv(table / "cohort.csv", root=table, label="findings", task="multilabel")
    other = mt.Cohort.from_csv(table / "cohort.csv", root=table, label=("left", "right"))
    known = ~np.isnan(other.references)
    assert cohort.classes == other.classes == ("left", "right")
    assert np.array_equal(cohort.references[known], other.references[known])


def test_ordered_classes(table):
    result = run(table, "label: grade", task="ordinal")
    assert result.evaluation.primary == "kappa_quadratic"
    assert result.evaluation.estimates["kappa_quadratic"].value > 0.5
    assert list(result.evaluation.per_class) == ["grade 1 or above", "grade 2 or above"]
    check_files(result, "ordinal")


def test_numbers_in_their_own_units_by_both_ways(table):
    solved = run(table, "target: count", out="a").evaluation
    descent = "recipe: {method: probe, epochs: 60, lr: 0.01, patience: 60}"
    trained = run(table, "target: count", more=descent, out="b")
    for found in (solved, trained.evaluation):
        assert found.estimates["r2"].value > 0.3
        assert 10 < found.predictions.probability.mean() < 20
    check_files(trained, "regression")
    lines = predict_files(table / "b", [str(table / "0.png")], progress=False).splitlines()
    assert lines[0] == "row,case,p:count"
    assert 5 < float(lines[1].split(",")[2]) < 25


def test_images_of_a_study_are_one_case(table):
    """The patient is positive where any image is; attention has to find it."""
    rows = (table / "cohort.csv").read_text().splitlines()
    positive: dict[str, bool] = {}
    for row in rows[1:]:
        cells = row.split(",")
        positive[cells[2]] = positive.get(cells[2], False) or "left" in cells[6]
    keep = [r for i, r in enumerate(rows[1:]) if i % 6 != 1]  # studies of one and of two images
    seen = {r.split(",")[2]: False for r in keep}
    for r in keep:
        seen[r.split(",")[2]] |= "left" in r.split(",")[6]
    lines = [f"{r},{'yes' if seen[r.split(',')[2]] else 'no'}" for r in keep]
    (table / "cohort.csv").write_text("\n".join([rows[0] + ",any", *lines]) + "\n")
    result = run(table, "label: any, bag: study", head=", head: {attention: 16}")
    run_ = result.run
    assert run_.cohort.bags == 2
    assert len(run_.cohort) == 60
    batch = run_.prepared.batch([0, 1, 2])
    assert batch.shape == (3, 1, 2, 32, 32)
    model = run_.model(0)
    alone = next(i for i in range(60) if len(run_.cohort[i].images) == 1)
    x = run_.prepared.batch([alone])
    assert bool(x[:, :, 1].isnan().all())
    assert model(x).isfinite().all()
    two = run_.prepared.batch([next(i for i in range(60) if len(run_.cohort[i].images) == 2)])
    assert np.allclose(model(two).detach(), model(two.flip(2)).detach(), atol=1e-5)  # order does not matter
    assert result.evaluation.estimates["auroc"].value > 0.6
    folder = table / "new"
    folder.mkdir()
    (table / "0.png").rename(folder / "0.png")
    assert len(predict_files(table / "run", [str(folder), str(table / "3.png")], progress=False).splitlines()) == 3


def test_bags_learn_with_augmentation_and_a_trained_backbone(table):
    recipe = "recipe: {method: finetune, epochs: 2, freeze_epochs: 1, unfreeze_from: -1}\naugment: radiograph"
    result = run(table, "label: [left, right], bag: case_id", more=recipe)
    assert result.run.cohort.bags == 1
    assert np.isfinite(result.evaluation.predictions.probability).all()


@pytest.mark.parametrize(
    ("cohort", "words"),
    [
        ("label: [left, study]", "must say yes or no"),
        ("target: study", "must hold numbers"),
        ("label: grade, task: regression", "must hold numbers"),
        ("label: [left], bag: patient_id", "differ in their target"),
    ],
)
def test_refusals_name_the_line(table, cohort, words):
    with pytest.raises(CohortError, match=words) as caught:
        run(table, cohort)
    assert "cohort.csv line" in str(caught.value)


def test_an_order_that_words_do_not_say_is_asked_for(table):
    text = (table / "cohort.csv").read_text()
    words = text.replace("grade 0", "mild").replace("grade 1", "severe").replace("grade 2", "deadly")
    (table / "cohort.csv").write_text(words)
    with pytest.raises(CohortError, match="order of the classes is not known"):
        run(table, "label: grade", task="ordinal")
    found = mt.Cohort.from_csv(
        table / "cohort.csv", root=table, label="grade", task="ordinal", classes=("mild", "severe", "deadly")
    )
    assert found.classes == ("mild", "severe", "deadly")


def test_model_and_cohort_must_speak_of_one_task(table):
    with pytest.raises(ConfigError, match="made for regression and the cohort for classification"):
        run(table, "label: right", head=", task: regression, classes: 2")


def test_a_head_that_is_not_linear_is_refused_by_logistic(table):
    with pytest.raises(ConfigError, match="linear head"):
        run(table, "label: right", head=", head: {hidden: [8]}", more="recipe: {method: logistic}")


def test_ridge_and_ordered_regression_against_scikit_learn():
    from sklearn.linear_model import Ridge
    from sklearn.preprocessing import StandardScaler

    rng = np.random.default_rng(0)
    x, patients = rng.normal(3, 2, (90, 4)), np.array([f"p{i // 2}" for i in range(90)])
    y = x @ [1.0, -2, 0, 0.5] + rng.normal(0, 1, 90)
    found = fit_linear(x, y[:, None], patients, 1, task="regression", strengths=(0.1,))
    scaler = StandardScaler().fit(x)
    wanted = Ridge(alpha=10).fit(scaler.transform(x), y).predict(scaler.transform(x))
    assert np.allclose(found.says(x)[:, 0], wanted, atol=1e-8)
    grade = np.digitize(y, [-4, 0, 4])
    ordered = fit_linear(x, grade, patients, 4, task="ordinal")
    chances = ordered.says(x)
    assert np.allclose(chances.sum(1), 1)
    assert (np.diff(ordered.bias) <= 0).all()
    assert np.allclose(ordered.weight, ordered.weight[0])
    assert (chances.argmax(1) == grade).mean() > 0.6
    # held out: no case was judged by a model that saw its patient, so it is a little worse
    assert criterion("ordinal", grade, ordered.held_out) > criterion("ordinal", grade, chances)


def test_splits_keep_labels_and_numbers_in_proportion(table):
    labels = mt.Cohort.from_csv(table / "cohort.csv", root=table, label=("left", "right"))
    numbers = mt.Cohort.from_csv(table / "cohort.csv", root=table, target="count")
    for cohort in (labels, numbers):
        split = mt.split_by_patient(cohort, val=0.2, test=0.3, seed=1)
        whole = np.nanmean(cohort.references, axis=0)
        part = np.nanmean(cohort.references[list(split.test)], axis=0)
        assert np.allclose(part, whole, rtol=0.2)


def test_parts_have_the_sizes_that_were_asked_for(table):
    cohort = mt.Cohort.from_csv(table / "cohort.csv", root=table, label=("left", "right"))
    for seed in range(5):
        split = mt.split_by_patient(cohort, val=0.15, test=0.15, seed=seed)
        assert [len(p) for p in (split.train, split.val, split.test)] == pytest.approx([84, 18, 18], abs=2)
        for part in (split.val, split.test):
            share = np.nanmean(cohort.references[list(part)], axis=0)
            assert np.allclose(share, np.nanmean(cohort.references, axis=0), atol=0.12)


def test_hounsfield_units_of_eight_bit_pictures_are_refused(table):
    from medtransfer.errors import PrepareError

    cohort = mt.Cohort.from_csv(table / "cohort.csv", root=table, label="right")
    with pytest.raises(PrepareError, match="8 bits of grey"):
        mt.Prepare(size=(32, 32), window_hu="lung")(cohort[0].read())
