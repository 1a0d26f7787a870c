"""Every way of tuning: the fast form gives the plain numbers, and exactly what is named learns."""

import copy
import json

import numpy as np
import pytest
import torch
from small_cohorts import blobs
from torch import nn
from torch.nn import functional as F

from medtransfer import Augment, Head, Prepare, Recipe, fit, load_model, split_by_patient
from medtransfer.boundary import Boundary, Views
from medtransfer.dataset import Prepared
from medtransfer.errors import ConfigError, DataError, Interrupted
from medtransfer.losses import class_weights, losses
from medtransfer.run import read_checkpoint
from medtransfer.training import average
from medtransfer.tuned import Adapters, choose, faster, pairs

PREPARE = Prepare(size=48, scale="range")
BASE = {"epochs": 4, "freeze_epochs": 1, "unfreeze_from": "layer2", "batch_size": 8, "lr": 3e-3}
SHAKE = Augment(rotate_deg=10, noise_std=0.05)


def small(**changes):
    return load_model("random/resnet18", until="layer2", pool_from=("layer1", "layer2"), **changes)


def train(tmp_path, name, cohort, recipe, model=None, **options):
    model = small() if model is None else model
    return fit(model, cohort, split_by_patient(cohort), PREPARE, recipe, out=tmp_path / name, progress=False, **options)


def last(run):
    found = read_checkpoint(run.folder / "fold-0" / "last.safetensors")[0]
    return {k[6:]: v for k, v in found.items() if k.startswith("model.")}


def final(run):
    return read_checkpoint(run.folder / "fold-0" / "model.safetensors")[0]


@pytest.mark.parametrize(
    ("settings", "augment"),
    [({}, Augment()), ({"views": 2}, SHAKE), ({}, SHAKE), ({"mixup": 0.4}, Augment()),
     ({"method": "probe", "views": 2, "unfreeze_from": None}, SHAKE)],
    ids=["plain", "views", "new views", "mixup", "probe with views"],
)  # fmt: skip
def test_what_is_computed_once_gives_the_numbers_of_computing_it_every_epoch(cohort, tmp_path, settings, augment):
    cached = train(tmp_path, "a", cohort, Recipe(**BASE | settings), augment=augment)
    again = train(tmp_path, "b", cohort, Recipe(**BASE | settings, cache="off"), augment=augment)
    for a, b in zip(cached.record()["history"], again.record()["history"], strict=True):
        assert a["train_loss"] == pytest.approx(b["train_loss"], abs=2e-4)
        assert a["val_loss"] == pytest.approx(b["val_loss"], abs=2e-4)
    x, y = last(cached), last(again)
    assert all(torch.allclose(x[k], y[k], atol=2e-3) for k in x)


def test_half_precision_costs_next_to_nothing(cohort, tmp_path):
    whole = train(tmp_path, "a", cohort, Recipe(**BASE)).record()["history"]
    half = train(tmp_path, "b", cohort, Recipe(**BASE, cache="float16")).record()["history"]
    assert [e["val_loss"] for e in half] == pytest.approx([e["val_loss"] for e in whole], abs=5e-3)


@pytest.mark.parametrize("augment", [Augment(), SHAKE])
def test_the_trunk_runs_once_a_case_and_view(cohort, tmp_path, monkeypatch, augment):
    from medtransfer.model import Model

    seen, walk = [], Model.walk

    def counted(self, x, names):
        seen.extend([len(x)] if "stem" in names else [])
        return walk(self, x, names)

    monkeypatch.setattr(Model, "walk", counted)
    split = split_by_patient(cohort)
    recipe = Recipe(**BASE | {"freeze_epochs": 0, "epochs": 6, "views": 2})
    fit(small(), cohort, split, PREPARE, recipe, out=tmp_path / "r", augment=augment, progress=False)
    shape = 1  # one image more tells the shape
    assert sum(seen) == len(split.train) * (2 if augment.active else 1) + len(split.val) + shape


def test_activations_are_told_apart_by_case_and_view_wherever_they_lie(cohort, tmp_path, monkeypatch):
    import medtransfer.boundary as boundary

    prepared = Prepared(cohort.cases, PREPARE, progress=False)
    model, wanted = small().eval(), [(i, v) for i in range(12) for v in (0, 1, 2)]
    kept = []
    for limit in (boundary.MEMORY_BYTES, 0):
        monkeypatch.setattr(boundary, "MEMORY_BYTES", limit)
        made = Boundary(model, Views(prepared, SHAKE, 0), 2, half=False, device="cpu")
        live = Boundary(model, Views(prepared, SHAKE, 0), 2, half=False, device="cpu")
        assert made.keep(wanted, tmp_path, progress=False, batch_size=5)
        for view in (0, 1, 2):
            a, b = made.at([7, 3], view), live.at([7, 3], view)
            assert all(torch.allclose(x, y, atol=1e-4) for x, y in zip(a, b, strict=True))
        kept.append(made.at([1, 2], 1)[1])
    assert torch.equal(*kept)
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(boundary, "DISK_BYTES", 0)
    large = Boundary(model, Views(prepared, SHAKE, 0), 2, half=False, device="cpu")
    with pytest.warns(UserWarning, match="too large"):
        assert not large.keep(wanted, tmp_path, progress=False)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("tune", ["all", "lora"])
def test_folding_changes_neither_outputs_nor_gradients(dims, tune):
    model = small(dims=dims)
    for norm in model.modules():
        if isinstance(norm, nn.modules.batchnorm._BatchNorm):
            nn.init.uniform_(norm.running_mean, -1, 1)
            nn.init.uniform_(norm.running_var, 0.5, 2)
            nn.init.uniform_(norm.weight, 0.5, 2)
    choose(model, ["layer2"], tune, True)
    adapters = Adapters(model, ["layer2"], 4, seed=0) if tune == "lora" else None
    assert len(pairs(model.stages["layer2"])) == 5
    x = torch.rand(2, 1, *[32] * dims)
    if adapters is None:
        plain = copy.deepcopy(model)
        plain(x).sum().backward()
        wanted = {n: p.grad for n, p in plain.named_parameters() if p.grad is not None}
    with faster(model, adapters):
        fast = model(x)
        fast.sum().backward()
    assert torch.allclose(fast, model(x), atol=1e-4)  # low-rank additions start at zero
    assert not any("forward" in m.__dict__ for m in model.modules())
    if adapters is None:
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                assert torch.allclose(parameter.grad, wanted[name], rtol=1e-3, atol=1e-3), name
    else:
        assert all(p.grad is None for n, p in model.named_parameters() if not n.startswith("head"))
        assert all(p.grad.abs().sum() > 0 for p in adapters.up.values())


def test_merged_additions_compute_what_was_trained():
    model = small()
    choose(model, ["layer2"], "lora", True)
    adapters = Adapters(model, ["layer2"], 4, seed=0)
    for up in adapters.up.values():
        nn.init.normal_(up, std=0.1)
    x = torch.rand(3, 1, 48, 48)
    with faster(model, adapters):
        wanted = model(x)
    merged = copy.deepcopy(model)
    merged.load_state_dict(adapters.merge(model.state_dict()))
    assert torch.allclose(merged(x), wanted, atol=1e-4)
    assert not torch.allclose(model(x), wanted, atol=1e-3)


@pytest.mark.parametrize(
    ("tune", "moves"),
    [
        ("all", lambda k: "conv" in k or "downsample.0" in k),
        ("norms", lambda k: (".bn" in k or "downsample.1" in k) and k.endswith(("weight", "bias"))),
        ("biases", lambda k: k.endswith("bias")),
        ("lora", lambda k: "conv" in k or "downsample.0" in k),
    ],
)
def test_exactly_what_is_named_learns(cohort, tmp_path, tune, moves):
    model = small()
    before = model.state_dict()
    recipe = Recipe(**BASE | {"freeze_epochs": 0, "epochs": 2, "warmup": 0}, tune=tune, average=5)
    after = final(train(tmp_path, "r", cohort, recipe, model))
    for name, value in before.items():
        stage = name.startswith("stages.layer2")
        wanted = name.startswith("head") or (stage and moves(name))
        assert torch.equal(after[name], value) != wanted, name


def test_the_plan_counts_what_learns():
    model = small()
    head = sum(p.numel() for p in model.head.parameters())
    plan = Recipe(**BASE).describe(model)
    convolutions = sum(p.numel() for p in model.stages["layer2"].parameters() if p.ndim > 1)
    assert [p["parameters"] for p in plan] == [head, head + convolutions]
    assert plan[1]["computed_once"] == ["stem", "layer1"]
    low = Recipe(**BASE, tune="lora", lora_rank=2).describe(model)[1]["parameters"]
    widths = [(128, 64 * 9), (128, 128 * 9), (128, 64), (128, 128 * 9), (128, 128 * 9)]
    assert low == head + sum(2 * (a + b) for a, b in widths)
    assert json.loads(json.dumps(plan)) == plan
    assert Recipe(method="logistic").describe(model)[0]["parameters"] == head


@pytest.mark.parametrize(
    "settings",
    [{"average": 3, "ema": 0.5}, {"tune": "lora"}, {"start": "logistic"},
     {"focal": 2.0, "class_weights": 0.9, "mixup": 0.2, "views": 2}],
    ids=["average and ema", "lora", "logistic start", "losses and views"],
)  # fmt: skip
def test_every_way_goes_on_exactly_after_an_interruption(cohort, tmp_path, monkeypatch, settings):
    from test_fit import interrupted_at

    model = small(head=Head(dropout=0.3))
    recipe = Recipe(**BASE | settings)
    whole = train(tmp_path, "whole", cohort, recipe, model, augment=SHAKE)
    for at in (7, 9):  # in the second epoch, and once more
        with interrupted_at(monkeypatch, at), pytest.raises(Interrupted):
            train(tmp_path, "cut", cohort, recipe, model, augment=SHAKE)
    again = train(tmp_path, "cut", cohort, recipe, model, augment=SHAKE)
    for name in ("model", "last"):
        a, b = (r.folder / "fold-0" / f"{name}.safetensors" for r in (whole, again))
        assert a.read_bytes() == b.read_bytes(), name


def test_accumulated_gradients_are_those_of_the_larger_batch(cohort, tmp_path):
    one = train(tmp_path, "a", cohort, Recipe(**BASE | {"batch_size": 8}))
    two = train(tmp_path, "b", cohort, Recipe(**BASE | {"batch_size": 4, "accumulate": 2}))
    a, b = last(one), last(two)
    assert all(torch.allclose(a[k], b[k], atol=2e-3) for k in a)


def test_the_average_is_kept_only_where_validation_is_not_worse(tmp_path):
    cohort = blobs(120)
    recipe = Recipe(epochs=6, freeze_epochs=0, batch_size=8, lr=3e-3, backbone_lr_scale=0.3, average=3)
    run = train(tmp_path, "r", cohort, recipe, load_model("random/resnet18", until="layer1"))
    best = min(e["val_loss"] for e in run.record()["history"])
    val = run.predict(run.split.val)
    loss = -np.log(val.probability[np.arange(len(val.case)), val.reference]).mean()
    assert loss <= best + 1e-5
    assert not list(run.folder.rglob("kept-*"))


def test_averages_are_means(tmp_path):
    from medtransfer.run import save_checkpoint

    for i, value in enumerate((1.0, 3.0)):
        save_checkpoint(tmp_path / f"{i}", {"a": torch.full((2,), value), "n": torch.tensor(7 + i)}, {"x": ""})
    found = average([tmp_path / "0", tmp_path / "1"])
    assert found["a"].tolist() == [2.0, 2.0]
    assert found["n"].item() == 7


def test_losses_by_hand():
    logits, labels = torch.randn(6, 3), torch.tensor([0, 1, 2, 0, 1, 2])
    smooth = F.cross_entropy(logits, labels, label_smoothing=0.1)
    assert torch.allclose(losses(logits, labels, smoothing=0.1).mean(), smooth)
    weight = torch.tensor([1.0, 2.0, 0.5])
    wanted = F.cross_entropy(logits, labels, weight=weight, reduction="none")
    assert torch.allclose(losses(logits, labels, weight=weight), wanted)
    chance = torch.softmax(logits, 1)[torch.arange(6), labels]
    assert torch.allclose(losses(logits, labels, focal=1.5), -((1 - chance) ** 1.5) * chance.log(), atol=1e-6)
    few = np.array([0] * 90 + [1] * 10)
    between = class_weights(few, 2, 0.9)
    effective = [(1 - 0.9**n) / 0.1 for n in (90, 10)]
    assert (between[1] / between[0]).item() == pytest.approx(effective[0] / effective[1], rel=1e-5)
    assert (between[torch.from_numpy(few)]).mean().item() == pytest.approx(1, rel=1e-5)


def test_a_loss_that_is_not_finite_names_the_cases(cohort, tmp_path):
    recipe = Recipe(**BASE | {"lr": 1e30, "freeze_epochs": 0, "clip": 1e30, "warmup": 0, "backbone_lr_scale": 1})
    with pytest.raises(DataError, match="not finite") as caught:
        train(tmp_path, "r", cohort, recipe)
    assert any(alias in str(caught.value) for alias in cohort.aliases)
    assert not any(c.case_id in str(caught.value).split() for c in cohort.cases)


def test_the_log_has_a_line_an_epoch(cohort, tmp_path):
    run = train(tmp_path, "r", cohort, Recipe(**BASE))
    lines = [json.loads(x) for x in (run.folder / "log.jsonl").read_text().splitlines()]
    history = run.record()["history"]
    assert [x["val_loss"] for x in lines] == [e["val_loss"] for e in history]
    assert all(x["seconds"] > 0 for x in lines)


def test_logistic_regression_learns_from_views(tmp_path):
    cohort = blobs(100)
    plain = train(tmp_path, "a", cohort, Recipe(method="logistic"))
    views = train(tmp_path, "b", cohort, Recipe(method="logistic", views=3), augment=SHAKE)
    rng = [r.predict(r.split.val).probability for r in (plain, views)]
    assert not np.array_equal(*rng)
    assert (views.folder / "fold-0" / "held_out.json").is_file()


def test_fine_tuning_from_logistic_regression_is_never_worse_on_validation(cohort, tmp_path):
    solved = train(tmp_path, "a", cohort, Recipe(method="logistic"))
    broken = Recipe(**BASE | {"start": "logistic", "freeze_epochs": 0, "lr": 3.0, "backbone_lr_scale": 1, "warmup": 0})
    kept = train(tmp_path, "b", cohort, broken)
    a, b = final(solved), final(kept)
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert kept.record()["history"][0]["phase"] == "logistic"
    better = train(tmp_path, "c", cohort, Recipe(**BASE | {"start": "logistic", "lr": 1e-4}))
    history = better.record()["history"]
    assert min(e["val_loss"] for e in history) <= history[0]["val_loss"] == solved.record()["history"][0]["val_loss"]


@pytest.mark.parametrize(
    ("settings", "word"),
    [({"tune": "norms", "model": "random/vgg16", "until": "block2"}, "no normalisation")],
)
def test_what_cannot_learn_is_refused(cohort, tmp_path, settings, word):
    model = load_model(settings["model"], until=settings["until"])
    with pytest.raises(ConfigError, match=word):
        train(tmp_path, "r", cohort, Recipe(tune=settings["tune"], epochs=2, freeze_epochs=1), model)


@pytest.mark.parametrize("settings", [{"method": "full", "unfreeze_from": "layer2"}, {"tune": "some"}, {"ema": 1.0}])
def test_recipes_that_contradict_themselves_are_refused(settings):
    with pytest.raises(ValueError):
        Recipe(**settings)


@pytest.mark.parametrize("writes", [6, 9, 11])
def test_a_disk_that_fills_up_costs_nothing_but_time(cohort, tmp_path, monkeypatch, writes):
    import os

    from medtransfer.errors import RunError

    recipe = Recipe(**BASE | {"average": 2})
    whole, left, flush = train(tmp_path, "whole", cohort, recipe), [writes], os.fsync

    def full(handle):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(28, "No space left on device")
        flush(handle)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(RunError, match="bytes cannot be written"):
            train(tmp_path, "cut", cohort, recipe)
    again = train(tmp_path, "cut", cohort, recipe)
    for name in ("model", "last"):
        a, b = (r.folder / "fold-0" / f"{name}.safetensors" for r in (whole, again))
        assert a.read_bytes() == b.read_bytes()
