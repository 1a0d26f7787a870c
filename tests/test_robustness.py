"""Changes of images by hand, and the result on changed images against scikit-learn."""

import json

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from small_cohorts import blobs

import medtransfer as mt
from medtransfer import robustness
from medtransfer.model import load_model
from medtransfer.robustness import contrast, noise, resolution, shift


@pytest.fixture
def run(tmp_path):
    split = {"val": 0, "test": 0.5}
    cohort = blobs(80)
    recipe = mt.Recipe(method="logistic")
    model = load_model("random/resnet18", until="layer1")
    folds = mt.split_by_patient(cohort, **split)
    return mt.fit(model, cohort, folds, mt.Prepare(size=40), recipe, out=tmp_path / "run", progress=False)


def rng():
    return np.random.default_rng(0)


def test_noise_has_its_standard_deviation_and_stays_in_range():
    grey = torch.full((4, 1, 64, 64), 0.5)
    changed = noise(grey, 0.1, rng())
    assert float((changed - grey).std()) == pytest.approx(0.1, rel=0.02)
    assert 0 <= float(noise(grey, 2.0, rng()).min()) <= float(noise(grey, 2.0, rng()).max()) <= 1


def test_contrast_is_a_power_or_its_inverse():
    images = torch.full((40, 1, 2, 2), 0.25)
    values = set(contrast(images, 2.0, rng())[:, 0, 0, 0].round(decimals=6).tolist())
    assert values == {0.0625, 0.5}


@pytest.mark.parametrize("shape", [(1, 1, 8, 8), (1, 2, 4, 8, 8)])
def test_resolution_keeps_what_is_smooth_and_loses_what_is_fine(shape):
    flat = torch.full(shape, 0.3)
    assert torch.allclose(resolution(flat, 2.0, rng()), flat)
    board = torch.zeros(shape)
    board[..., ::2, ::2] = board[..., 1::2, 1::2] = 1.0
    assert torch.allclose(resolution(board, 2.0, rng()), torch.full(shape, 0.5))


@pytest.mark.parametrize("shape", [(20, 1, 21, 31), (20, 1, 3, 21, 31)])
def test_shift_moves_by_its_share_of_the_shorter_side(shape):
    images = torch.zeros(shape)
    images[..., 10, 15] = 1.0
    moved = shift(images, 0.2, rng())
    for image in moved:
        plane = image[0] if image.ndim == 3 else image[0, 0]
        row, column = np.unravel_index(int(plane.argmax()), plane.shape)
        assert np.hypot(row - 10, column - 15) == pytest.approx(0.2 * 21, abs=0.71)  # whole pixels
        assert float(plane.sum()) == 1
    assert len({int(m.argmax()) for m in moved}) > 5
    gradient = torch.arange(31.0).expand(1, 1, 21, 31)
    assert set(shift(gradient, 0.2, rng()).unique().tolist()) <= set(range(31))  # edges are continued


def test_unchanged_images_lose_nothing_and_changed_ones_are_measured_as_sklearn_does(run, monkeypatch):
    def darker(images, level, generator):
        return images * (1 - level)

    changes = {"Same": (darker, (0.0,), "{:g}"), "Dark": (darker, (0.9,), "{:g}")}
    monkeypatch.setattr(robustness, "CHANGES", changes)
    found = robustness.robustness(run, bootstrap=100)
    json.dumps(found, allow_nan=False)
    same, dark = found["rows"]
    assert found["cases"] == found["of"] == len(run.split.test)
    assert same["loss"]["value"] == same["moved"] == 0
    test, model = list(run.split.test), run.model(0)
    with torch.no_grad():
        logits = [model(run.prepared.batch(test) * scale).double() for scale in (1.0, 0.1)]
    before, after = (torch.softmax(v, 1)[:, 1].numpy() for v in logits)
    y = run.cohort.labels[test]
    assert found["unchanged"]["value"] == pytest.approx(roc_auc_score(y, before), abs=1e-9)
    assert dark["value"]["value"] == pytest.approx(roc_auc_score(y, after), abs=1e-9)
    lost = roc_auc_score(y, before) - roc_auc_score(y, after)
    assert dark["loss"]["value"] == pytest.approx(lost, abs=1e-9)
    assert dark["moved"] == pytest.approx(np.abs(before - after).mean(), abs=1e-5)


def test_a_drawn_part_has_all_classes_and_repeats_itself(run):
    a, b = (robustness.robustness(run, cases=12, bootstrap=50) for _ in range(2))
    assert a["cases"] == 12
    assert a | {"seconds": 0} == b | {"seconds": 0}
    assert len(a["rows"]) == 12
    drawn = robustness._draw(run, run.split.test, 12, 0)
    assert np.bincount(run.cohort.labels[drawn]).tolist() == [6, 6]
    assert set(drawn) <= set(run.split.test)


def test_other_tasks_pass(run):
    run.model(0).description.__dict__["task"] = "multilabel"
    assert robustness.robustness(run)["rows"] == []
