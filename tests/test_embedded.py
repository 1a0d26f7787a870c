"""The embedded weights: whole, small, of the network they claim, and better than none; their generator is seeded."""

import hashlib
import importlib
import itertools
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from medtransfer.compact import CompactNet
from medtransfer.weights import read_tensors

ROOT = Path(__file__).resolve().parents[1]
EMBEDDED = ROOT / "medtransfer" / "embedded"
RECORDS = json.loads((EMBEDDED / "record.json").read_text(encoding="utf-8"))


@pytest.fixture
def tool(monkeypatch):
    """Import a script of tools/pretrain."""
    if not (ROOT / "tools" / "pretrain").is_dir():
        pytest.skip("the training scripts are not beside the tests")
    monkeypatch.syspath_prepend(str(ROOT / "tools" / "pretrain"))
    yield importlib.import_module
    for name in ("scenes", "projections", "views", "choose", "train"):
        sys.modules.pop(name, None)


def trained(dims):
    network = CompactNet(dims)
    tensors = {k: v.float() for k, v in read_tensors(EMBEDDED / f"compact{dims}d.safetensors").items()}
    network.load_state_dict(network.state_dict() | tensors)
    return network.eval()


@pytest.mark.parametrize("dims", [2, 3])
def test_files_are_the_ones_recorded(dims):
    record = RECORDS[f"embedded/compact{dims}d"]
    content = (EMBEDDED / record["file"]).read_bytes()
    assert hashlib.sha256(content).hexdigest() == record["sha256"]
    assert record["licence"] == "Apache-2.0"
    assert record["name"] == f"embedded/compact{dims}d"
    assert len(record["mean"]) == len(record["std"]) == 1


def test_together_at_most_8_megabytes():
    assert sum(p.stat().st_size for p in EMBEDDED.iterdir()) <= 8_000_000


@pytest.mark.parametrize("dims", [2, 3])
def test_tensors_are_exactly_the_networks(dims):
    tensors = read_tensors(EMBEDDED / f"compact{dims}d.safetensors")
    wanted = {k: v.shape for k, v in CompactNet(dims).state_dict().items() if not k.endswith("num_batches_tracked")}
    assert {k: v.shape for k, v in tensors.items()} == wanted
    for name, tensor in tensors.items():
        assert torch.isfinite(tensor).all(), name
        if name.endswith("running_var"):
            assert (tensor > 0).all(), name


@pytest.mark.parametrize("dims", [2, 3])
def test_stages_halve_the_side_as_documented(dims):
    outputs = CompactNet(dims).eval().stages(torch.zeros(1, 1, *[64] * dims))
    assert [tuple(o.shape[2:]) for o in outputs] == [(64 // s,) * dims for s in (2, 2, 4, 8, 16)]
    assert all(a.shape[1] <= b.shape[1] for a, b in itertools.pairwise(outputs))


@pytest.mark.parametrize("dims", [2, 3])
def test_every_normalisation_folds(dims):
    """Each batch normalisation follows a convolution without bias: what folding needs."""
    names = {n for n, m in CompactNet(dims).named_modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)}
    convs = {n: m for n, m in CompactNet(dims).named_modules() if isinstance(m, torch.nn.Conv2d | torch.nn.Conv3d)}
    before = {n: n.replace("bn", "conv") if "bn" in n else f"{n.rpartition('.')[0]}.0" for n in names}
    assert set(before.values()) == set(convs)
    assert all(m.bias is None for m in convs.values())


@pytest.mark.parametrize("dims", [2, 3])
def test_features_are_of_a_sane_scale(dims):
    x = torch.rand(4, 1, *[48] * dims, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        for stage in trained(dims).stages((x - 0.5) / 0.25):
            assert torch.isfinite(stage).all()
            assert 1e-3 < stage.std() < 1e3


def test_scenes_repeat_and_differ(tool):
    scenes = tool("scenes")
    for dims, side in ((2, 32), (3, 16)):
        first, again, other = (scenes.scene_bank(4, dims, side, seed, 2) for seed in (5, 5, 6))
        assert torch.equal(first[0], again[0])
        assert torch.equal(first[1], again[1])
        assert not torch.equal(first[0], other[0])
        assert first[0].shape == (4, 4, *[side] * dims)
        assert first[1].shape == (4, len(scenes.ATTRIBUTES))
        assert torch.isfinite(first[1]).all()


def test_projections_are_drawn_beside_scenes_and_leave_those_as_they_were(tool):
    scenes, projections = tool("scenes"), tool("projections")
    plain, told = scenes.scene_bank(4, 2, 32, 5, 2)
    g = torch.Generator().manual_seed(5)
    drawn = [scenes.draw_scenes(2, 2, 32, g) for _ in range(2)]
    assert torch.equal(plain, torch.cat([d.stacked() for d in drawn]))
    assert told.shape[1] == len(scenes.ATTRIBUTES)
    (mixed, told), (again, _) = (scenes.scene_bank(64, 2, 32, 5, 4, 0.5) for _ in range(2))
    assert torch.equal(mixed, again)
    names = (*scenes.ATTRIBUTES, *projections.EXTRA)
    share = told[:, names.index("projection")]
    assert told.shape == (64, len(names))
    assert torch.isfinite(told).all()
    assert 0.2 < share.mean() < 0.8
    assert (told[share == 0][:, len(scenes.ATTRIBUTES) :] == 0).all()


def test_a_haze_is_in_its_map(tool):
    projections = tool("projections")
    drawn = projections.draw_projections(64, 40, torch.Generator().manual_seed(1))
    names = (*tool("scenes").ATTRIBUTES, *projections.EXTRA)
    haze, ball = (drawn.attributes[:, names.index(name)] for name in ("haze_mass", "lesion"))
    marked = drawn.lesion.flatten(1).mean(1)
    assert (marked[(haze == 0) & (ball == 0)] == 0).all()
    assert (marked[haze > 0.01] > 0).all()


def test_views_share_as_much_of_the_grey_curve_as_asked(tool):
    views = tool("views")
    flat = torch.full((6, 4, 40, 40), 160, dtype=torch.uint8)
    for alike, same in ((1.0, True), (0.0, False)):
        clean = views.two_views(flat, 24, torch.Generator().manual_seed(0), alike)[1][:, 0]
        assert torch.allclose(clean[:6], clean[6:], atol=1e-6) == same


def test_lesion_map_and_attribute_agree(tool):
    scenes = tool("scenes")
    g = torch.Generator().manual_seed(3)
    drawn = scenes.draw_scenes(32, 2, 48, g)
    there = drawn.attributes[:, scenes.ATTRIBUTES.index("lesion")] > 0
    assert 0 < there.sum() < 32
    assert (drawn.lesion[~there] == 0).all()
    assert (drawn.lesion[there].flatten(1).amax(1) > 0.3).float().mean() > 0.9


def test_targets_follow_their_views(tool):
    """Where nothing was drawn between a picture and its clean version, both are cut and windowed alike."""
    views = tool("views")
    ramp = torch.linspace(0, 255, 40).round().to(torch.uint8).expand(6, 1, 40, 40)
    cut, _ = views.cut(torch.cat([ramp, ramp], 1).float() / 255, 24, torch.Generator().manual_seed(0))
    assert torch.equal(cut[:, 0], cut[:, 1])
    one = torch.ones(6, 1, 1, 1)
    plain = views.window(cut[:, :1], one, one, 0 * one, 0 * one)
    assert torch.allclose(plain, cut[:, :1], atol=1e-6)
    assert torch.allclose(views.window(cut[:, :1], one, one, 0 * one, one), 1 - cut[:, :1], atol=1e-6)


def test_training_repeats_by_seed_and_steps(tool, tmp_path):
    train = tool("train")
    train.SETTINGS[2] = {"scenes": 8, "bank_side": 40, "side": 24, "chunk": 4, "batch": 4}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for name in ("a", "b"):
            options = {"steps": 2, "minutes": 0, "seed": 0, "count": 8, "folder": tmp_path, "lr": 1e-3}
            train.train(2, tmp_path / name, weights=(1, 1, 1), projections=0.5, alike=0.8, **options)
    finally:
        torch.set_num_threads(threads)
    a, b = (read_tensors(tmp_path / name / "compact2d.safetensors") for name in "ab")
    assert all(torch.equal(a[k], b[k]) for k in a)
    untrained = train.Learner(2).net.state_dict()
    assert not torch.equal(a["block4.conv2.weight"], untrained["block4.conv2.weight"].half())


@pytest.mark.slow
def test_trained_beats_untrained_on_a_process_it_never_saw(tool):
    """Discs on a grid, jittered little or much: no such picture is in the generator."""
    choose = tool("choose")
    x, y = choose.grids(600, 64, 11)
    torch.manual_seed(0)
    networks = trained(2), CompactNet(2).eval()
    scores = []
    for network in networks:
        network.shift, network.scale = 0.5, 0.25
        scores.append(choose.probe(choose.pooled(network, x), y, 200, draws=4))
    assert scores[0] > scores[1] + 0.02
    assert np.isfinite(scores).all()
