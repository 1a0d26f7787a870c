"""Small trainings from end to end: they learn, go on where they were stopped, and answer for new images."""

import json
import os
import signal

import nibabel
import numpy as np
import pytest
import torch

import medtransfer as mt
from medtransfer.errors import ConfigError, DataError, Interrupted, ReadError
from medtransfer.segment.evaluate import evaluate_masks
from medtransfer.segment.fingerprint import fingerprint_of
from medtransfer.segment.finish import dice
from medtransfer.segment.masks import read_pair
from medtransfer.segment.network import load_segmenter
from medtransfer.segment.plan import Plan
from medtransfer.segment.run import SegmentationRun
from medtransfer.segment.train import _Training, train_segmentation


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """Bright balls of two sizes in noise, on grids that are turned and not cubic."""
    root = tmp_path_factory.mktemp("balls")
    rng = np.random.default_rng(0)
    rows = ["case_id,patient_id,image,mask,part"]
    for i in range(10):
        shape = (18 + i % 3, 20, 14)
        at = np.stack(np.indices(shape)).astype(float)
        labels = np.zeros(shape, np.uint8)
        for value, radius in ((1, 4.5), (2, 3)):
            middle = np.array([5.5 if value == 1 else 13, rng.uniform(6, 13), rng.uniform(5, 9)])
            labels[((at - middle[:, None, None, None]) ** 2).sum(0) < radius**2] = value
        image = 100 * labels + rng.normal(0, 10, shape)
        affine = np.diag([-1.0, 1.0, 1.0, 1.0])
        for name, array in (("image", image.astype(np.float32)), ("mask", labels)):
            nibabel.save(nibabel.Nifti1Image(array, affine), root / f"{name}{i}.nii.gz")
        part = "train" if i < 6 else "val" if i < 8 else "test"
        rows.append(f"c{i},p{i},image{i}.nii.gz,mask{i}.nii.gz,{part}")
    (root / "cohort.csv").write_text("\n".join(rows))
    return root


def prepared(root):
    cohort = mt.Cohort.from_csv(root / "cohort.csv", root=root, mask="mask", part="part")
    split = mt.Split.from_column(cohort)
    plan = Plan(patch=(16, 16, 16), width=4, strides=((1, 1, 1), (2, 2, 2)), steps_per_epoch=10, spacing_mm=(1, 1, 1))
    model = load_segmenter("random/unet", classes=3, width=4, strides=plan.steps)
    recipe = mt.Recipe(method="full", freeze_epochs=0, epochs=5, patience=5, lr=1e-2, backbone_lr_scale=1.0,
                       layer_decay=1.0, schedule="poly", ema=0.8)  # fmt: skip
    return cohort, split, plan, model, recipe


def test_it_learns_and_its_folder_is_opened_again(table, tmp_path):
    cohort, split, plan, model, recipe = prepared(table)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    run = train_segmentation(model, cohort, split, plan, recipe, out=tmp_path / "run", structures=("large", "small"),
                             precision="32-true", progress=False)  # fmt: skip
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    again = SegmentationRun.open(tmp_path / "run", cohort)
    for index in split.test:
        image, reference, _ = read_pair(cohort.cases[index], 3)
        found = again.segment(image)
        assert found.shape == image.spatial_shape
        assert min(dice(found, reference, 3)) > 0.8
        assert np.array_equal(found, run.segment(image))
    result = evaluate_masks(again, split.test, bootstrap=50, out=tmp_path / "masks")
    assert result.structures == ("large", "small")
    for index, alias, scores in zip(split.test, result.cases, result.scores, strict=True):
        _, reference, _ = read_pair(cohort.cases[index], 3)
        written = nibabel.load(tmp_path / "masks" / f"{alias}.nii.gz")  # as a user would open it
        stored = nibabel.load(cohort.cases[index].mask)
        assert np.array_equal(written.affine, stored.affine)
        by_hand = dice(np.asarray(written.dataobj).astype(np.uint8), np.asarray(stored.dataobj).astype(np.uint8), 3)
        assert [s.dice for s in scores.values()] == pytest.approx(by_hand)
    result.save(tmp_path)
    assert json.loads((tmp_path / "segmentation.json").read_text())["structures"]["large"]["dice"]["value"] > 0.8
    assert len((tmp_path / "segmentation.csv").read_text().splitlines()) == 5
    assert result.compare(result, bootstrap=20)["small"]["dice"].value == 0
    record = again.record()
    assert record["structures"] == ["large", "small"]
    assert len(record["history"]) == 5
    assert Plan.load(tmp_path / "run" / "plan.yaml") == plan


def test_a_stopped_run_ends_in_the_same_bytes(table, tmp_path, monkeypatch):
    cohort, split, plan, model, recipe = prepared(table)
    recipe = recipe.model_copy(update={"epochs": 2})
    settings = {"precision": "32-true", "progress": False}
    train_segmentation(model, cohort, split, plan, recipe, out=tmp_path / "whole", **settings)
    step, calls = _Training._step, []

    def interrupted(self, state, *rest):
        step(self, state, *rest)
        calls.append(1)
        if len(calls) in (4, 13):  # in the middle of both epochs
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(_Training, "_step", interrupted)
    for _ in range(2):
        with pytest.raises(Interrupted):
            train_segmentation(model, cohort, split, plan, recipe, out=tmp_path / "parts", **settings)
    train_segmentation(model, cohort, split, plan, recipe, out=tmp_path / "parts", **settings)
    names = ("fold-0/model.safetensors", "fold-0/last.safetensors", "fold-0/finish.json", "fold-0/history.json")
    for name in names:
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "parts" / name).read_bytes(), name


@pytest.mark.slow
def test_the_encoder_stays_frozen_where_the_recipe_says_so(table, tmp_path):
    cohort, split, plan, _, recipe = prepared(table)
    model = load_segmenter("embedded/compact3d", classes=3, width=4)
    plan = plan.model_copy(update={"steps_per_epoch": 2})
    for method, freeze, moved in (("probe", 0, False), ("finetune", 1, True)):
        chosen = recipe.model_copy(update={"method": method, "epochs": 2, "freeze_epochs": freeze, "lr": 0.1, "ema": 0})
        run = train_segmentation(model, cohort, split, plan, chosen, out=tmp_path / method, precision="32-true",
                                 progress=False)  # fmt: skip
        history = json.loads((tmp_path / method / "fold-0" / "history.json").read_text())
        assert [h["phase"] for h in history] == ["decoder", "fine-tuning" if moved else "decoder"]
        last = {k: v for k, v in run.model().state_dict().items() if k.startswith("stages.")}
        if not moved:
            assert all(torch.equal(v, model.state_dict()[k]) for k, v in last.items())


def test_the_fingerprint_by_hand(table):
    cohort, split, _, _, _ = prepared(table)
    found = fingerprint_of(cohort, list(split.train), 3)
    assert (found.n, found.shape, found.spacing_mm) == (6, (19, 20, 14), (1.0, 1.0, 1.0))
    assert 60 < found.intensity[0] < 100 < 200 < found.intensity[1] < 240
    counts = sum(np.bincount(nibabel.load(table / f"mask{i}.nii.gz").get_fdata().ravel().astype(int)) for i in range(6))
    assert found.share == pytest.approx(counts / counts.sum(), abs=1e-6)


def test_masks_of_other_voxels_are_refused_or_resampled_with_a_note(table, tmp_path):
    cohort, _, _, _, _ = prepared(table)
    case = cohort.cases[0]
    mask = nibabel.load(table / "mask0.nii.gz")
    coarse = np.asarray(mask.dataobj)[:, ::2]
    affine = mask.affine @ np.diag([1, 2.0, 1, 1])
    nibabel.save(nibabel.Nifti1Image(coarse, affine), tmp_path / "coarse.nii.gz")
    from dataclasses import replace

    other = replace(case, mask=tmp_path / "coarse.nii.gz")
    with pytest.raises(ReadError, match="another shape"):
        read_pair(other, 3)
    _, labels, note = read_pair(other, 3, resample=True)
    _, reference, _ = read_pair(case, 3)
    assert "nearest" in note
    assert np.array_equal(labels[:, ::2], reference[:, ::2])
    assert min(dice(labels, reference, 3)) > 0.8
    with pytest.raises(DataError, match="no class"):
        read_pair(case, 2)


def test_what_does_not_fit_is_said_before_anything_is_trained(table, tmp_path):
    cohort, split, plan, model, recipe = prepared(table)
    with pytest.raises(ConfigError, match="3 classes"):
        train_segmentation(model, cohort, split, plan, recipe, out=tmp_path / "a", structures=("one",))
    flat = Plan(patch=(16, 16))
    with pytest.raises(ConfigError, match="2D patches"):
        train_segmentation(model, cohort, split, flat, recipe, out=tmp_path / "b")
    assert not (tmp_path / "a").exists()


def test_images_in_2d_with_colours_and_raster_masks(tmp_path):
    from PIL import Image as Picture

    rng = np.random.default_rng(0)
    rows = ["case_id,patient_id,image,mask,part"]
    for i, part in enumerate(["train"] * 4 + ["val", "test"]):
        labels = np.zeros((24, 30), np.uint8)
        r, c = rng.integers(4, 14, 2)
        labels[r : r + 7, c : c + 9] = 1
        colours = np.stack([labels * 200, 30 * np.ones_like(labels), 90 * np.ones_like(labels)], -1)
        Picture.fromarray(colours).save(tmp_path / f"i{i}.png")
        Picture.fromarray(labels).save(tmp_path / f"m{i}.png")
        rows.append(f"c{i},p{i},i{i}.png,m{i}.png,{part}")
    (tmp_path / "cohort.csv").write_text("\n".join(rows))
    cohort = mt.Cohort.from_csv(tmp_path / "cohort.csv", root=tmp_path, mask="mask", part="part")
    split = mt.Split.from_column(cohort)
    found = fingerprint_of(cohort, list(split.train), 2)
    assert (found.channels, found.spacing_mm, found.shape) == (3, None, (24, 30))
    plan = Plan(patch=(16, 16), scale=(0.0, 255.0), steps_per_epoch=8, mirror=("x",), strides=((1, 1), (2, 2)))
    model = load_segmenter("random/unet", dims=2, in_channels=3, classes=2, width=4, strides=plan.steps)
    recipe = mt.Recipe(method="full", freeze_epochs=0, epochs=3, patience=3, lr=2e-2, backbone_lr_scale=1.0,
                       layer_decay=1.0)  # fmt: skip
    run = train_segmentation(model, cohort, split, plan, recipe, out=tmp_path / "run", precision="32-true",
                             progress=False)  # fmt: skip
    (scores,) = evaluate_masks(run, split.test, bootstrap=10).scores
    assert scores["structure 1"].dice > 0.8


def test_steps_that_half_precision_cannot_compute_are_repeated_in_float32(table, tmp_path, monkeypatch):
    cohort, split, plan, _, recipe = prepared(table)
    recipe = recipe.model_copy(update={"epochs": 2, "frozen_norms": False})
    model = load_segmenter("random/compact3d", classes=3, width=4)  # with statistics of batch normalisation
    honest = _Training._loss

    def overflows(self, network, images, labels, half):
        loss = honest(self, network, images, labels, False)
        if half:
            for buffer in network.buffers():
                if buffer.is_floating_point():
                    buffer.data.fill_(torch.nan)
        return loss * torch.nan if half else loss

    whole = train_segmentation(model, cohort, split, plan, recipe, out=tmp_path / "whole", precision="32-true",
                               progress=False)  # fmt: skip
    monkeypatch.setattr(_Training, "_loss", overflows)
    run = train_segmentation(model, cohort, split, plan, recipe, out=tmp_path / "half", precision="bf16-mixed",
                             progress=False)  # fmt: skip
    files = [r.folder / "fold-0" / "model.safetensors" for r in (run, whole)]
    assert files[0].read_bytes() == files[1].read_bytes()
    told = [json.loads(line) for line in (run.folder / "log.jsonl").read_text().splitlines()]
    assert [entry["steps_repeated_in_float32"] for entry in told] == [10, 10]
