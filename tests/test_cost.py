"""The cost told beforehand: counted by hand where the time of each piece is known."""

import time
from dataclasses import replace

import pytest
import torch
from small_cohorts import blobs

from medtransfer import Augment, Cohort, Prepare, Recipe, Split, fit, load_model, split_by_patient
from medtransfer.bulk import cost_of_predicting
from medtransfer.cost import Cost, Stage, cost_of_training, say_s
from medtransfer.errors import DataError


class Slow:
    """An image that takes a known time to read."""

    def __init__(self, array, seconds):
        self.array, self.seconds = array, seconds

    def read(self):
        from medtransfer._case import _wrap

        time.sleep(self.seconds)
        return _wrap(self.array)


def slow_cohort(n, seconds):
    cases = blobs(n, side=36).cases
    return Cohort(tuple(replace(c, image=Slow(c.image, seconds)) for c in cases), ("no", "yes"))


def costs(recipe, *, augment=None, cohort=None, **options):
    cohort = cohort or blobs(60, side=36)
    split = split_by_patient(cohort, folds=options.pop("folds", None), val=0.2, test=0.2)
    model = load_model("random/resnet18", until="layer1")
    prepare = Prepare(size=32, scale="range")
    return split, cost_of_training(model, cohort, split, prepare, recipe, augment or Augment(), **options)


def times(cost):
    return {s.name: (s.times, s.fewest) for s in cost.stages}


def test_ranges_add_up_and_a_single_measurement_leaves_everything_open():
    sure = Stage("a", 10, (0.2, 0.2, 0.2))
    early = Stage("b", 100, (0.01, 0.01), fewest=20)
    cost = Cost((sure, early), 3)
    assert cost.total_s() == pytest.approx((2.2, 3.0, 3.0))
    assert str(cost).splitlines()[-1].startswith("about 3 s, between 2.2 s and 3 s: measured on 3 cases")
    low, mean, high = Stage("c", 10, (1.0,)).range_s()
    assert low == mean == 10
    assert high > 10 * mean  # t with one degree of freedom
    assert say_s(90) == "1.5 min"


def test_reading_is_counted_twice_and_threads_share_it():
    _, alone = costs(Recipe(method="logistic"), cohort=slow_cohort(60, 0.2), workers=1)
    read = alone.stages[0]
    assert read.name == "read"
    told = read.range_s()[1]
    assert 0.9 < told / (2 * 60 * 0.2) < 3  # audited and prepared; a busy machine takes longer
    _, shared = costs(Recipe(method="logistic"), cohort=slow_cohort(60, 0.2), workers=3)
    assert 0.25 < shared.stages[0].range_s()[1] / told < 0.8


def test_the_counts_of_each_recipe_are_those_of_the_training():
    split, cost = costs(Recipe(method="logistic", views=2), augment=Augment(noise_std=0.1))
    train, val, test = (len(p) for p in split.folds[0].parts())
    assert times(cost)["features, once"] == (train * 3 + val, None)
    assert times(cost)["predict val and test"] == (val + test, None)
    assert times(cost)["predict changed test images"][0] == test * 13  # 12 changes and none
    recipe = Recipe(epochs=8, freeze_epochs=2, unfreeze_from="layer1", patience=3)
    _, cost = costs(recipe)
    found = times(cost)
    assert found["first 2 stages, once"] == (train + val, None)  # before the head alone learns: all that is frozen
    assert found["head, forward and back"] == (train * 2, train * 2)
    assert found["fine-tune, forward and back"] == (train * 6, train * 4)
    assert found["fine-tune, validate"] == (val * 6, val * 4)
    _, cost = costs(recipe, augment=Augment(noise_std=0.1), robustness=False)
    found = times(cost)
    assert found["first 1 stages, each epoch"] == ((train + val) * 6, (train + val) * 4)
    assert "predict changed test images" not in found


def test_folds_share_what_is_frozen_and_processes_share_the_steps():
    split, cost = costs(Recipe(epochs=2, freeze_epochs=0, unfreeze_from="layer1"), folds=3, processes=2)
    found = times(cost)
    rows = sum(len(f.train) for f in split.folds)
    every = {i for f in split.folds for i in f.train}, {i for f in split.folds for i in f.val}
    assert found["first 1 stages, once"][0] == (len(every[0]) + len(every[1])) / 2
    assert found["fine-tune, forward and back"][0] == rows * 2 / 2


def test_of_a_prediction(tmp_path):
    from PIL import Image as Picture

    cohort = blobs(40, side=36)
    run = fit(load_model("random/resnet18", until="layer1"), cohort, split_by_patient(cohort), Prepare(
        size=32, scale="range"), Recipe(method="logistic"), out=tmp_path / "run", progress=False)  # fmt: skip
    for i in range(9):
        Picture.fromarray(cohort[i].image).save(tmp_path / f"{i}.png")
    cost = cost_of_predicting(run.folder, sorted(tmp_path.glob("*.png")))
    assert [(s.name, s.times) for s in cost.stages] == [("read", 9), ("prepare", 9), ("predict", 9)]
    assert cost.cases == 6
    assert cost.to_record()["seconds"][0] > 0
    (tmp_path / "x.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match="none of the cases"):
        cost_of_predicting(run.folder, [tmp_path / "x.png"])


def test_of_a_segmentation_the_counts_are_those_of_the_training(tmp_path):
    from small_masks import write_balls

    from medtransfer._cost_masks import cost_of_masks
    from medtransfer.segment import Plan, load_segmenter

    root = write_balls(tmp_path)
    cohort = Cohort.from_csv(root / "cohort.csv", root=root, mask="mask", part="part")
    split = Split.from_column(cohort)
    plan = Plan(patch=(16, 16, 16), width=4, steps_per_epoch=5, mirror=("x",), overlap=0.5)
    model = load_segmenter("random/unet", classes=3, width=4)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    train, val, test = (len(p) for p in split.folds[0].parts())
    cost = cost_of_masks(model, cohort, split, plan, Recipe(method="full", epochs=40, freeze_epochs=0, patience=3))
    found = times(cost)
    assert found["read, onto the grid"] == (train + val, None)
    assert found["step, all learns"] == (40 * 5, 4 * 2 * 5)  # a validation each second epoch, and three without a gain
    assert found["validate"] == ((20 + 1) * val, 4 * val)  # the last epoch is looked at in any case
    assert found["segment val and test"] == (val + test, None)
    windows = next(s.seconds for s in cost.stages if s.name == "validate")
    twice = next(s.seconds for s in cost.stages if s.name == "segment val and test")
    assert twice == pytest.approx([2 * s for s in windows])  # one mirrored view
    # 18 to 20 x 20 x 14 voxels by windows of 16 that go on by 8: 2 x 2 x 1
    assert len(set(windows)) == 1
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
