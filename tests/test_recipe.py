"""Recipes are pure functions of sizes and steps: no model is needed to know what they do."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medtransfer import Recipe
from medtransfer.reasons import reasons

STAGES = ("stem", "layer1", "layer2", "layer3", "layer4")


@given(st.integers(1, 200_000), st.sampled_from([2, 3]), st.sampled_from(["classification", "segmentation"]))
def test_every_size_has_a_recipe_that_moves_more_with_more_cases(n, dims, task):
    recipe = Recipe.for_size(n, dims, task)
    assert Recipe(**recipe.model_dump()) == recipe  # model_copy skips validation; this does not
    assert reasons(recipe)
    if task == "classification":
        moved = [len(Recipe.for_size(m, dims).trainable(10**6, STAGES)) for m in (n, 2 * n)]
        assert moved[0] <= moved[1]


@pytest.mark.parametrize(
    ("first", "learn"),
    [(None, STAGES), ("layer3", STAGES[3:]), (-1, STAGES[4:]), (-2, STAGES[3:]), (-9, STAGES)],
)
def test_stages_learn_from_the_named_one_on(first, learn):
    recipe = Recipe(epochs=9, freeze_epochs=4, unfreeze_from=first)
    assert [recipe.trainable(e, STAGES) for e in (0, 3)] == [(), ()]
    assert [recipe.trainable(e, STAGES) for e in (4, 8)] == [learn, learn]
    assert Recipe(method="probe", epochs=9).trainable(8, STAGES) == ()


@pytest.mark.parametrize("schedule", ["cosine", "one_cycle", "poly"])
@given(steps=st.integers(1, 500), warmup=st.floats(0, 0.9))
def test_rates_rise_to_one_and_fall_towards_zero(schedule, steps, warmup):
    recipe = Recipe(schedule=schedule, warmup=warmup)
    factors = np.array([recipe.lr_factor(s, steps) for s in range(steps)])
    assert (factors >= 0).all()
    assert (factors <= 1).all()
    top = int(factors.argmax())
    assert (np.diff(factors[: top + 1]) >= 0).all()
    assert (np.diff(factors[top:]) <= 1e-12).all()
    assert top <= round(warmup * steps)


def test_deeper_stages_have_the_higher_rates():
    rates = Recipe(lr=1e-3, backbone_lr_scale=0.5, layer_decay=0.75).stage_lr(STAGES)
    assert list(rates.values()) == pytest.approx([5e-4 * 0.75**k for k in (4, 3, 2, 1, 0)])


@pytest.mark.parametrize(
    "settings",
    [{"unfreeze_from": 0}, {"unfreeze_from": 3}, {"schedule": "step"}, {"average": 0}, {"accumulate": 0}, {"views": -1},
     {"focal": -1.0}, {"cache": "disk"}, {"epochs": 0}, {"lr": 0}, {"rate": 1}],
)  # fmt: skip
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(ValueError):
        Recipe(**settings)


def test_phases_cover_all_epochs_once():
    for method in ("probe", "finetune", "full"):
        for frozen in (0, 3, 9, 12):
            recipe = Recipe(method=method, epochs=9, freeze_epochs=frozen)
            covered = [e for a, b in recipe.phases() for e in range(a, b)]
            assert covered == list(range(9))
            assert all(len({recipe.trainable(e, STAGES) for e in range(a, b)}) == 1 for a, b in recipe.phases())


def test_a_segmentation_is_trained_to_its_end_and_its_weights_are_averaged():
    for n in (8, 25, 260, 1500):
        for dims in (2, 3):
            recipe = Recipe.for_size(n, dims=dims, task="segmentation")
            assert recipe.patience >= recipe.epochs  # validations are at most as many as epochs
            assert recipe.ema == 0.998
            fewest = recipe.epochs * max(25, min(250, math.ceil(n / 16)))  # steps of a plan, with its largest batch
            assert 1 / (1 - recipe.ema) <= 0.25 * fewest  # steps that count
            assert recipe.lr_factor(10**4 - 1, 10**4) < 0.01
    said = reasons(recipe, "segmentation")
    assert all(text in said for text in ("the best comes last", "averaged over some 500 steps"))
    assert "stop when validation" not in said


def test_the_moving_average_forgets_where_a_short_training_started():
    recipe, shadow = Recipe(ema=0.998), 1.0  # where it starts; every step is at 0
    for step in range(20):
        shadow *= recipe.ema_decay(step)
    assert shadow < 1e-6
    assert 0.998**20 > 0.95  # without a beginning of its own
