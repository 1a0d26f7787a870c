"""The dry run tells the sizes that the caches then have, and a reason for every choice."""

import pytest
from small_cohorts import blobs

from medtransfer import Augment, Prepare, Recipe, fit, load_model, split_by_patient
from medtransfer.boundary import Boundary
from medtransfer.dryrun import as_text, cache_sizes
from medtransfer.reasons import _WHY, reasons


@pytest.mark.parametrize(
    ("recipe", "augment"),
    [
        (Recipe(method="logistic"), Augment()),
        (Recipe(method="logistic", views=2), Augment(noise_std=0.1)),
        (Recipe(epochs=2, freeze_epochs=1, unfreeze_from="layer1", cache="float16"), Augment()),
        (Recipe(epochs=1, freeze_epochs=0, unfreeze_from="layer1", start="logistic", views=2), Augment(noise_std=0.1)),
        (Recipe(epochs=1, freeze_epochs=0, unfreeze_from="layer1"), Augment(noise_std=0.1)),
    ],
)
def test_the_sizes_told_are_the_sizes_kept(tmp_path, monkeypatch, recipe, augment):
    kept, keep = {}, Boundary.keep

    def spied(self, *rest, **options):
        done = keep(self, *rest, **options)
        kept[self.first] = (self._pooled.nbytes + (0 if self._kept is None else self._kept.nbytes), self.whole)
        return done

    monkeypatch.setattr(Boundary, "keep", spied)
    cohort, prepare = blobs(40), Prepare(size=32, scale="range")
    split, model = split_by_patient(cohort), load_model("random/resnet18", until="layer1")
    told = cache_sizes(model, recipe, augment, split, (1, 32, 32), len(cohort))
    run = fit(model, cohort, split, prepare, recipe, out=tmp_path / "r", augment=augment, progress=False)
    assert told.pop("prepared images") == run.prepared._kept.nbytes
    assert {k == "features": v for k, v in told.items()} == {whole: size for size, whole in kept.values()}


def test_every_setting_of_a_recipe_has_a_reason_with_a_source():
    assert set(_WHY) == set(Recipe.model_fields)
    assert all(why and source for why, source in _WHY.values())
    assert len(reasons(Recipe.for_size(5000)).splitlines()) == len(Recipe.model_fields)
    assert reasons(Recipe.for_size(100)).startswith("method         logistic")


def test_the_plan_reads_as_a_table():
    model = load_model("random/resnet18", until="layer2")
    recipe = Recipe(epochs=10, freeze_epochs=3, unfreeze_from="layer2")
    planned = {
        "cohort": "Cohort(60)", "model": repr(model), "out": "runs/a", "parts": {"train": 40, "val": 10, "test": 10},
        "prepared": [1, 32, 32], "receipt": {"loaded": ["a"], "new": []}, "plan": recipe.describe(model),
        "caches": {"features": 2**20}, "reasons": "",
    }  # fmt: skip
    lines = as_text(planned).splitlines()
    head = sum(p.numel() for p in model.head.parameters())
    first = next(line for line in lines if line.startswith("1 to 3"))
    assert f" {head:,} " in first
    assert "stem, layer1, layer2" in first
    assert next(line for line in lines if line.startswith("4 to 10")).endswith("stem, layer1")
    assert any(line.startswith("features") and line.endswith("1.0 MiB") for line in lines)
