"""Memory: what is there, what a step keeps, and that computing less at once or twice changes no gradient."""

import copy
import ctypes
import json
import math
import os
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import medtransfer as mt
from medtransfer import loop
from medtransfer.boundary import tail
from medtransfer.capacity import Need, at_once, capacity_of, fit_step, measure_step
from medtransfer.dryrun import as_text, memory_of
from medtransfer.errors import ConfigError, Interrupted
from medtransfer.memory import available, keeping, reusing_pages, through
from medtransfer.predict import speak
from medtransfer.run import read_checkpoint
from medtransfer.segment.need import fit_plan, patch_need
from medtransfer.segment.network import load_segmenter
from medtransfer.segment.plan import Plan
from medtransfer.tuned import choose, faster

WHOLE = mt.Recipe(method="full", freeze_epochs=0)


def kept_by_hooks(model, images):
    """What autograd keeps at the real size: every storage once, weights and images left out."""
    sizes, held = {}, []

    def pack(tensor):
        storage = tensor.untyped_storage()
        held.append(storage)
        sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        answer = model(images)
    for tensor in (*model.parameters(), *model.buffers(), images):
        sizes.pop(tensor.untyped_storage().data_ptr(), None)
    del answer
    return sum(sizes.values())


@pytest.mark.parametrize(
    ("name", "options", "shape"),
    [
        ("random/monai_segresnet8", {"dims": 3, "until": "down1"}, (1, 56, 56, 64)),
        ("embedded/compact3d", {"dims": 3}, (1, 80, 56, 64)),
        ("random/resnet18", {"dims": 3, "depth": "acs", "until": "layer1"}, (1, 60, 56, 64)),
        ("random/resnet18", {"dims": 2, "until": "layer2"}, (1, 160, 136)),
    ],
)
def test_the_estimate_is_what_is_kept_at_the_real_size(name, options, shape):
    model = mt.load_model(name, **options)
    need = measure_step(model, WHOLE, shape)
    probe = copy.deepcopy(model)
    choose(probe, list(probe.stages), "all", True)
    with faster(probe):
        found = kept_by_hooks(probe, torch.rand(2, *shape))
    assert need.folded + 2 * need.kept == pytest.approx(found, rel=0.2)
    assert need.kept_again <= need.kept


@pytest.mark.parametrize("frozen_norms", [True, False])
@pytest.mark.parametrize("name", ["embedded/compact3d", "random/monai_segresnet8"])
def test_computing_again_gives_the_ordinary_gradients(name, frozen_norms):
    plain = mt.load_model(name, dims=3)
    again = copy.deepcopy(plain)
    again.recompute = True
    images, said = torch.rand(3, 1, 32, 24, 24), torch.tensor([0, 1, 1])
    for model in (plain, again):
        choose(model, list(model.stages)[1:], "all", frozen_norms)
        torch.manual_seed(0)
        nn.functional.cross_entropy(model(images), said).backward()
    mine, theirs = dict(again.named_parameters()), dict(plain.named_parameters())
    for name, parameter in theirs.items():
        assert (parameter.grad is None) == (mine[name].grad is None), name
        if parameter.grad is not None:
            assert torch.equal(parameter.grad, mine[name].grad), name
    for name, buffer in plain.named_buffers():  # running statistics are followed once
        assert torch.equal(buffer, dict(again.named_buffers())[name]), name


def test_computing_again_repeats_dropout_and_keeps_less():
    stage = nn.Sequential(*(nn.Sequential(nn.Linear(64, 64), nn.Dropout(0.5), nn.Tanh()) for _ in range(4)))
    x = torch.rand(8, 64, requires_grad=True)
    found = []
    for again in (False, True):
        torch.manual_seed(1)
        with keeping([*stage.parameters(), x]) as kept:
            answer = through(stage, x, again=again)
        answer.sum().backward()
        found.append((answer.detach().clone(), x.grad.clone(), kept.total))
        x.grad = None
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])
    assert found[1][2] < found[0][2]


def test_what_autograd_keeps_is_counted_by_hand():
    x, w = torch.rand(10, 20), torch.rand(20, 30, requires_grad=True)
    with keeping([w]) as kept:
        y = torch.relu(x @ w)  # x for the weight's gradient, the result for that of relu
        z = y.reshape(-1) ** 2  # y again, through a view
    assert kept.total == 4 * (10 * 20 + 10 * 30)
    assert z.shape == (300,)


@pytest.mark.parametrize("name", ["embedded/compact3d", "random/monai_segresnet8"])
def test_no_single_volume_reaches_a_convolution(name):
    model = mt.load_model(name, dims=3)
    sizes = []
    for module in model.modules():
        if isinstance(module, nn.Conv3d):
            module.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    one = torch.rand(1, 1, 32, 32, 32)
    with torch.no_grad():
        both = model(torch.cat([one, 1 - one]))[:1]
    assert torch.allclose(tail(model, 0, one, one), both, atol=1e-5)
    said = torch.softmax(both.double(), 1)
    assert np.allclose(speak(model.eval(), one.numpy()), said, atol=1e-5)
    x = model.walk(torch.cat([one, one]), list(model.stages)[:2])[1][:1]
    pooled = one.new_zeros(1, 0)
    assert torch.allclose(tail(model, 2, pooled, x), both, atol=1e-5)
    assert set(sizes) == {2}


def test_a_lone_volume_has_its_own_gradient():
    model = mt.load_model("embedded/compact3d", dims=3)
    choose(model, list(model.stages), "all", True)
    one, other = torch.rand(2, 1, 1, 32, 32, 32)
    tail(model, 0, one, one)[:, 0].sum().backward()
    alone = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    model(torch.cat([one, other]))[:1, 0].sum().backward()
    beside = [p.grad for p in model.parameters() if p.grad is not None]
    assert all(torch.allclose(a, b, rtol=1e-3, atol=1e-6) for a, b in zip(alone, beside, strict=True))


def test_memory_is_what_the_tightest_limit_leaves(tmp_path):
    proc, groups = tmp_path / "proc", tmp_path / "groups"
    (proc / "self").mkdir(parents=True)
    (proc / "meminfo").write_text("MemTotal: 1000 kB\nMemAvailable:   600 kB\n")
    (proc / "self" / "cgroup").write_text("0::/job/step\n")
    assert available(proc=proc, groups=groups) == 600 * 1024
    for path, most, now, cache in (("job", 500_000, 300_000, 50_000), ("job/step", "max", 1, 0)):
        folder = groups / path
        folder.mkdir(parents=True)
        (folder / "memory.max").write_text(f"{most}\n")
        (folder / "memory.current").write_text(f"{now}\n")
        (folder / "memory.stat").write_text(f"anon 5\ninactive_file {cache}\n")
    assert available(proc=proc, groups=groups) == 500_000 - 250_000
    (proc / "self" / "cgroup").write_text("9:name=systemd:/\n4:memory:/docker/a\n0::/\n")
    old = groups / "memory" / "docker" / "a"
    old.mkdir(parents=True)
    (old / "memory.limit_in_bytes").write_text("200000")
    (old / "memory.usage_in_bytes").write_text("150000")
    (old / "memory.stat").write_text("total_inactive_file 20000\n")
    assert available(proc=proc, groups=groups) == 70_000


def test_batches_shrink_before_activations_are_computed_again():
    need = Need(fixed=100, folded=0, kept=70, kept_again=20, moved=10, image=10)  # 100 a case, or 50
    recipe = mt.Recipe(batch_size=16)

    def chosen(there, **more):
        found = fit_step(need, recipe.model_copy(update=more), there, (1, 64, 64, 64))
        assert found.need <= 0.8 * there or found.batch == 1
        return found.batch, found.again

    assert chosen(10_000) == (16, False)
    assert chosen(1250) == (9, False)
    assert chosen(375) == (2, False)
    assert chosen(374) == (3, True)  # three that are computed again fit where two that are kept do not
    assert chosen(374, checkpoint=False) == (1, False)
    assert chosen(10_000, checkpoint=True) == (16, True)
    with pytest.raises(ConfigError, match="does not fit") as error:
        chosen(140)
    assert "prepare.size: [" in str(error.value)


def balls(n=14):
    """Volumes in memory with a bright ball, or without."""
    rng = np.random.default_rng(0)
    at = np.stack(np.indices((16, 16, 16))) - 7.5
    ball = (at**2).sum(0) < 25
    cases = []
    for i in range(n):
        array = (rng.normal(100, 10, (16, 16, 16)) + 60 * ball * (i % 2)).astype(np.float32)
        part = "train" if i < n - 4 else "val" if i < n - 2 else "test"
        cases.append(mt.cohort.Case(f"c{i}", f"p{i}", array, label=i % 2, part=part))
    return mt.Cohort(tuple(cases), classes=("no", "yes"))


def small_run(tmp_path, monkeypatch, name, **more):
    cohort = balls()
    model = mt.load_model("embedded/compact3d", dims=3)
    recipe = mt.Recipe(method="full", freeze_epochs=0, epochs=2, batch_size=5, lr=1e-2, backbone_lr_scale=1.0, **more)
    return mt.fit(model, cohort, mt.Split.from_column(cohort), mt.Prepare(size=(16, 16, 16)), recipe,
                  out=tmp_path / name, progress=False)  # fmt: skip


def test_little_memory_changes_how_a_step_is_computed_and_not_what_it_learns(tmp_path, monkeypatch):
    small_run(tmp_path, monkeypatch, "plenty")
    model, recipe = mt.load_model("embedded/compact3d", dims=3), mt.Recipe(method="full", freeze_epochs=0, batch_size=5)
    need = measure_step(model, recipe, (1, 16, 16, 16))
    room, held = need.step(2) / 0.8 + 100, 14 * 4 * 16**3
    monkeypatch.setattr("medtransfer.capacity.available", lambda device: int(room + held))
    small_run(tmp_path, monkeypatch, "little")
    stored = json.loads((tmp_path / "little" / "memory.json").read_text())
    assert (stored["batch"], stored["asked"], stored["again"]) == (2, 5, False)
    monkeypatch.setattr(
        "medtransfer.capacity.available", lambda device: int((need.step(2) - need.case() // 4) / 0.8 + held)
    )
    small_run(tmp_path, monkeypatch, "least")
    assert json.loads((tmp_path / "least" / "memory.json").read_text())["again"]
    plenty, little, least = (
        read_checkpoint(tmp_path / n / "fold-0" / "last.safetensors")[0] for n in ("plenty", "little", "least")
    )
    for key, value in plenty.items():
        if key.startswith("model."):
            assert torch.allclose(value, little[key], atol=2e-3), key
            assert torch.allclose(value, least[key], atol=2e-3), key


def test_an_interrupted_run_keeps_its_batches(tmp_path, monkeypatch):
    model, recipe = mt.load_model("embedded/compact3d", dims=3), mt.Recipe(method="full", freeze_epochs=0, batch_size=5)
    need = measure_step(model, recipe, (1, 16, 16, 16))
    room = int((need.step(2) - need.case() // 4) / 0.8 + 14 * 4 * 16**3)
    monkeypatch.setattr("medtransfer.capacity.available", lambda device: room)
    small_run(tmp_path, monkeypatch, "whole", ema=0.9)
    step, calls = loop._Training._step, []

    def interrupted(self, *rest):
        step(self, *rest)
        calls.append(1)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(loop._Training, "_step", interrupted)
    with pytest.raises(Interrupted):
        small_run(tmp_path, monkeypatch, "parts", ema=0.9)
    monkeypatch.setattr("medtransfer.capacity.available", lambda device: 10**12)  # others have ended meanwhile
    small_run(tmp_path, monkeypatch, "parts", ema=0.9)
    assert json.loads((tmp_path / "parts" / "memory.json").read_text())["again"]
    for name in ("model", "last"):
        files = [tmp_path / run / "fold-0" / f"{name}.safetensors" for run in ("whole", "parts")]
        assert files[0].read_bytes() == files[1].read_bytes()


def test_what_is_told_has_the_numbers():
    model = mt.load_model("embedded/compact3d", dims=3)
    found = capacity_of(model, WHOLE, (1, 48, 48, 48), exact=True)
    assert f"{found.need / 2**30:.1f} GiB" in str(found) or "MiB" in str(found)
    assert "are there" in str(found)
    assert capacity_of(model, mt.Recipe(method="logistic"), (1, 48, 48, 48)) is None
    quick = capacity_of(model, WHOLE, (1, 16, 16, 16))
    assert quick.bound
    assert quick.need > measure_step(model, WHOLE, (1, 16, 16, 16)).step(WHOLE.batch_size)
    assert math.isclose(quick.whole, quick.need)


@pytest.mark.parametrize("name", ["random/unet", "embedded/compact3d", "random/segresnet"])
def test_the_estimate_for_patches_is_what_is_kept_at_the_real_size(name):
    plan = Plan(patch=(56, 64, 48), batch_size=2, width=8, strides=((1, 1, 1), (2, 2, 2), (2, 2, 2)))
    more = {"strides": plan.steps} if name == "random/unet" else {}
    model = load_segmenter(name, classes=3, width=8, **more)
    need = patch_need(model, plan, WHOLE)
    probe = copy.deepcopy(model)
    choose(probe, list(probe.stages), "all", True)
    images = torch.rand(2, 1, *plan.window)
    found = sum(level.numel() * 16 for level in probe.pyramid(images))  # what the loss holds
    found += kept_by_hooks(_Pyramid(probe), images)
    assert need.folded + 2 * need.kept == pytest.approx(found, rel=0.2)


class _Pyramid(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return self.model.pyramid(x)


def test_patches_shrink_where_memory_is_short():
    plan = Plan(patch=(64, 64, 32), batch_size=8, strides=((1, 1, 1), (2, 2, 2), (2, 2, 1)))
    need = Need(fixed=100, folded=0, kept=70, kept_again=20, moved=10, image=10)  # 100 a patch, or 50

    def fitted(there, **more):
        given = {"given": more.pop("given", ())}
        return fit_plan(need, plan, WHOLE.model_copy(update=more), there, **given)

    found, recipe, capacity = fitted(2000)
    assert (found, recipe.checkpoint, capacity.batch) == (plan, "auto", 8)
    found, recipe, capacity = fitted(500)
    assert (found.batch_size, found.patch, recipe.checkpoint) == (3, plan.patch, "auto")
    found, recipe, capacity = fitted(300)
    assert (found.batch_size, found.patch, recipe.checkpoint) == (2, plan.patch, True)
    found, recipe, capacity = fitted(200)  # 60 for two patches of 50: .6 of the voxels, .84 of the side
    assert (found.batch_size, found.patch, recipe.checkpoint) == (2, (52, 52, 26), True)
    assert capacity.need <= 0.8 * 200
    for given in (("patch",), ("patch", "batch_size")):
        with pytest.raises(ConfigError, match="does not fit"):
            fitted(200, given=given)
    assert fitted(500, given=("batch_size",))[1].checkpoint is True


def test_passes_without_gradients_take_as_many_cases_as_fit(monkeypatch):
    model = mt.load_model("embedded/compact3d", dims=3)
    assert at_once(model, (1, 16, 16, 16)) == 32
    widest = []
    for module in model.modules():
        if isinstance(module, nn.Conv3d):
            module.register_forward_hook(lambda _, i, o: widest.append(4 * (i[0].numel() + o.numel()) / len(o)))
    with torch.no_grad():
        model(torch.zeros(2, 1, 64, 64, 64))
    for cases in (5, 12):
        room = 2 * cases * (2 * max(widest) + 4 * 64**3) / 0.8
        monkeypatch.setattr("medtransfer.capacity.available", lambda device, room=room: int(room))
        assert abs(at_once(model, (1, 64, 64, 64)) - cases) <= 1
    monkeypatch.setattr("medtransfer.capacity.available", lambda device: 1000)
    assert at_once(model, (1, 64, 64, 64)) == 2


@pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="the kernel's count of pages is read as Linux gives it"
)
def test_pages_are_used_again_and_given_back():
    import resource

    def faults():
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(5):
            torch.zeros(16 * 2**20)  # 64 MiB
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    if ctypes.CDLL(None)._name is not None or not hasattr(ctypes.CDLL(None), "mallopt"):
        pytest.skip("another C library than glibc")
    if available() < 5 * 2**30:
        pytest.skip("too little memory is free for pages to be kept")
    with reusing_pages():
        faults()
        with reusing_pages():
            again = faults()
        still = faults()
        held = int(Path("/proc/self/statm").read_text().split()[1])
    assert again < 1000  # of 5 × 16,384
    assert still < 1000  # the outer one holds on
    assert held - int(Path("/proc/self/statm").read_text().split()[1]) > 10_000


def test_a_dry_run_tells_what_a_step_takes():
    model = mt.load_model("embedded/compact3d", dims=3)
    told = memory_of(model, WHOLE, (1, 48, 40, 32), "cpu", 20)
    assert told["need"] == measure_step(model, WHOLE, (1, 48, 40, 32)).step(WHOLE.batch_size)
    planned = {"cohort": "c", "model": "m", "out": "o", "parts": {}, "prepared": [1], "receipt": {}, "plan": [],
               "caches": {}, "reasons": "", "memory": told}  # fmt: skip
    assert f"memory     {told['text']}" in as_text(planned)
    assert "for a training step" in told["text"]
    assert memory_of(model, mt.Recipe(method="logistic"), (1, 48, 40, 32), "cpu", 20) == {}
