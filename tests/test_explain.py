"""Maps of evidence against hand-made CAM, MONAI's Grad-CAM, plain autograd, and places that are known."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.ndimage import uniform_filter
from scipy.stats import spearmanr
from small_cohorts import blobs
from torch.nn import functional as F

import medtransfer as mt
from medtransfer import explain
from medtransfer.errors import WeightsError
from medtransfer.explain import Randomisation, alike, average_maps, evidence, gradcam, randomisation
from medtransfer.model import Head, load_model


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def lively(model, seed=0):
    """Weights of a size that gradients through them are far from rounding."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.head.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
    return model.eval()


def scaled(cam):
    cam = cam.clamp(min=0)
    return (cam / cam.max()).numpy()


def test_with_mean_pooling_and_a_linear_head_it_is_cam():
    model = lively(load_model("random/resnet18", until="layer3"))
    x = torch.rand(1, 1, 96, 64)
    with torch.no_grad():
        maps = model.maps(x, "layer3")[0]
        weight = model.head[-1].weight[1] - model.head[-1].weight[0]
        cam = (weight[:, None, None] * maps).sum(0)
        cam = F.interpolate(cam[None, None].clamp(min=0), (96, 64), mode="bilinear")[0, 0]
    assert np.allclose(gradcam(model, x[0], target=1), scaled(cam), atol=1e-5)
    opposite = F.interpolate(
        (-(weight[:, None, None] * maps).sum(0))[None, None].clamp(min=0), (96, 64), mode="bilinear"
    )
    assert np.allclose(gradcam(model, x[0].numpy(), target=0), scaled(opposite[0, 0].detach()), atol=1e-5)


THREE_D = [
    ("random/resnet18", {"dims": 3, "depth": "centre"}, (16, 32, 48)),
    ("random/resnet18", {"dims": 3, "depth": "acs"}, (16, 32, 48)),
    ("random/monai_resnet10", {"dims": 3}, (16, 16, 32)),
]


@pytest.mark.parametrize("plus_plus", [False, True])
@pytest.mark.parametrize(
    ("weights", "options", "shape"), [("random/densenet121", {}, (64, 96)), ("random/resnet18", {}, (64, 96)), *THREE_D]
)
def test_monai_agrees(weights, options, shape, plus_plus):
    from monai.visualize import GradCAM, GradCAMpp

    stages = {"random/densenet121": ("block1", "block2")}.get(weights, ("layer1", "layer2"))
    model = load_model(weights, until=stages[1], task="multilabel", classes=3, **options)
    model = lively(model)  # the explained score of a label is its logit, as in MONAI
    x = torch.rand(1, 1, *shape)
    hooked = load_model(weights, until=stages[1], task="multilabel", classes=3, **options)
    hooked.load_state_dict(model.state_dict())
    hooked.train_only(hooked.stages).eval()
    shown = 0
    for stage in stages:
        oracle = (GradCAMpp if plus_plus else GradCAM)(hooked, f"stages.{stage}", postprocessing=lambda m: m)
        for target in range(3):
            found = gradcam(model, x[0], target=target, stage=stage, plus_plus=plus_plus)
            wanted = oracle(x, class_idx=target)[0, 0].detach()
            assert found.shape == shape
            if wanted.any():
                assert np.allclose(found, scaled(wanted), atol=1e-3)
                shown += 1
            elif not plus_plus:  # whose exp(score) underflows in MONAI
                assert not found.any()
    assert shown >= 2


@pytest.mark.parametrize("pool", ["mean", "mean_std"])
@pytest.mark.parametrize("options", [{}, {"dims": 3, "depth": "slices"}, {"dims": 3, "depth": "neighbours"}])
def test_evidence_adds_up_to_the_answer_of_a_linear_head(pool, options):
    stages = ["layer1", "layer2", "layer3"]
    model = lively(load_model("random/resnet18", until="layer3", pool_from=stages, pool=pool, **options))
    x = torch.rand(1, 1, *((3, 64, 64) if options else (64, 64)))
    bias = model.head[-1].bias.detach().double().tolist()
    total = float(evidence(model, x, target=1).double().mean())
    with torch.no_grad():
        logits = model(x)[0].double()
    assert total == pytest.approx(float(logits[1] - logits[0]) - (bias[1] - bias[0]), rel=1e-4, abs=1e-3)


def test_against_average_images_it_adds_up_to_the_difference():
    model = lively(load_model("random/resnet18", until="layer2"))
    usual = torch.rand(5, 1, 64, 64)
    average = average_maps(model, list(usual))
    x = torch.rand(1, 1, 64, 64)
    with torch.no_grad():
        logits = model.head(torch.stack([model.features(x)[0], model.features(usual).mean(0)])).double()
    odds = logits[:, 1] - logits[:, 0]
    total = float(evidence(model, x, target=1, average=average).double().mean())
    assert total == pytest.approx(float(odds[0] - odds[1]), rel=1e-4, abs=1e-3)
    own = average_maps(model, [x[0]])
    assert not gradcam(model, x[0], target=1, average=own).any()


def test_slices_are_judged_as_images_are_and_weighed_by_attention():
    flat = lively(load_model("random/resnet18", until="layer2"))
    deep = load_model("random/resnet18", dims=3, depth="slices", until="layer2")
    deep.load_state_dict(flat.state_dict())
    volume = torch.rand(1, 1, 4, 64, 48)
    found = evidence(deep, volume, target=1)
    wanted = torch.cat([evidence(flat, volume[:, :, i], target=1) for i in range(4)])
    assert torch.allclose(found, wanted, rtol=1e-3, atol=1e-3)
    cam = gradcam(deep, volume[0], target=1)
    assert cam.shape == (4, 64, 48)
    assert cam.max() == 1  # one scale for all slices
    head = Head(attention=4)
    weighed = lively(load_model("random/resnet18", dims=3, depth="slices", until="layer2", head=head))
    pool = weighed.head[0]
    with torch.no_grad():
        items = weighed.features(volume)
        chosen = int(pool.weights(items)[0].argmax())
        pool.score.weight *= 1e5  # all attention on one slice
    cam = gradcam(weighed, volume[0], target=1)
    assert cam[chosen].max() == 1 or not cam.any()
    assert np.delete(cam, chosen, axis=0).max() < 1e-3


@pytest.mark.parametrize("pool", ["mean", "token"])
def test_tokens_against_plain_autograd(pool):
    model = lively(load_model("random/vit_ti_16", pool=pool, classes=3, task="multilabel"))
    model.train_only(model.stages).eval()
    x = torch.rand(1, 1, 64, 96)
    stage = "blocks4" if pool == "mean" else "blocks3"
    caught = []
    hook = model.stages[stage].register_forward_hook(lambda m, i, out: caught.append(out) or out.retain_grad())
    model(x)[0, 1].backward()
    hook.remove()
    tokens = caught[0]
    weight = tokens.grad[0, :, 1:].mean(1)
    cam = (weight[:, None] * tokens[0, :, 1:]).sum(0).detach().reshape(4, 6)  # patches of 16
    cam = F.interpolate(cam[None, None].clamp(min=0), (64, 96), mode="bilinear")[0, 0]
    assert np.allclose(gradcam(model, x[0], target=1), scaled(cam), atol=1e-4)


@pytest.mark.parametrize("weights", ["random/swin_t", "random/mobilenet_v3_small", "random/convnext_tiny"])
def test_any_backbone_gives_a_map(weights):
    model = lively(load_model(weights, classes=3))
    image = torch.rand(1, 64, 64)
    cams = [gradcam(model, image, target=t) for t in range(3)]
    assert all(c.shape == (64, 64) and c.min() >= 0 and c.max() in (0, 1) for c in cams)
    assert any(c.any() for c in cams)


def test_every_task_has_a_score():
    image = torch.rand(1, 64, 64)
    for task, classes in (("ordinal", 4), ("regression", 1), ("multilabel", 2)):
        model = lively(load_model("random/resnet18", until="layer1", task=task, classes=classes))
        for target in range(classes):
            assert np.isfinite(gradcam(model, image, target=target)).all()


def test_the_model_stays_as_it_was():
    model = load_model("random/resnet18", until="layer2").train_only(["layer2"]).eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    flags = [p.requires_grad for p in model.parameters()]
    with torch.no_grad():
        gradcam(model, torch.rand(1, 64, 64), target=1, stage="stem")
    randomisation(model, [np.random.default_rng(0).random((1, 64, 64), dtype=np.float32)], targets=[1], draws=1)
    assert flags == [p.requires_grad for p in model.parameters()]
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_stages_that_say_nothing_are_refused():
    model = load_model("random/resnet18", pool_from=["layer1", "layer2"])
    with pytest.raises(WeightsError, match=r"no stage 'layer9'.*layer4"):
        gradcam(model, torch.rand(1, 64, 64), target=1, stage="layer9")
    with pytest.raises(WeightsError, match="does not come through the stage 'layer4'"):
        gradcam(model, torch.rand(1, 64, 64), target=1, stage="layer4")


def test_alike_is_spearmans_rank_correlation():
    rng = np.random.default_rng(0)
    a, b = rng.random((2, 9, 7)).astype(np.float32)
    a[a < 0.4] = 0  # ties
    assert alike(a, b) == pytest.approx(spearmanr(a.ravel(), b.ravel()).statistic, abs=1e-12)
    assert alike(a, np.zeros_like(a)) == 0


def test_maps_that_ignore_the_weights_are_found_out(monkeypatch):
    rng = np.random.default_rng(0)
    images = [rng.random((1, 32, 32), dtype=np.float32) for _ in range(3)]
    model = load_model("random/resnet18", until="layer2")

    def edges(model, image, *, target, average=None):
        """What many a saliency method comes down to."""
        return np.abs(np.diff(image[0], axis=0, append=0))

    monkeypatch.setattr(explain, "gradcam", edges)
    found = randomisation(model, images, targets=[1, 1, 0])
    assert [name for name, _ in found.levels] == ["head", "layer2", "layer1", "stem"]
    assert all(value == pytest.approx(1) for _, value in found.levels)
    assert found.passes is False
    json.dumps(found.to_record(), allow_nan=False)
    monkeypatch.setattr(explain, "gradcam", lambda *a, **k: np.zeros((4, 4), np.float32))
    assert randomisation(model, images, targets=[1, 1, 0]).passes is None
    assert Randomisation((), 0, 2).to_record()["passes"] is None


def test_randomising_goes_from_the_head_to_the_stem(monkeypatch):
    model = load_model("random/resnet18", until="layer2", seed=5)
    seen = []

    def same(network, image, *, target, average=None):
        seen.append([all(torch.equal(a, b) for a, b in zip(m.parameters(), n.parameters(), strict=True))
                     for m, n in zip([*model.stages.values(), model.head], [*network.stages.values(), network.head],
                                     strict=True)])  # fmt: skip
        return np.random.default_rng(len(seen)).random((4, 4)).astype(np.float32)

    monkeypatch.setattr(explain, "gradcam", same)
    randomisation(model, [np.zeros((1, 32, 32), np.float32)], targets=[1], draws=1)
    kept = [sum(row) for row in seen]
    assert kept == [4, 3, 2, 1, 0]
    assert seen[1] == [True, True, True, False]
    assert seen[3] == [True, False, False, False]


@pytest.fixture
def run(tmp_path):
    """Logistic regression on frozen features of images whose class 1 holds a bright square."""
    cohort = blobs(160, side=64)
    model = load_model("embedded/compact2d", pool_from=["block1", "block2", "block3"], pool="mean_std")
    return mt.fit(
        model, cohort, mt.split_by_patient(cohort, val=0, test=0.4), mt.Prepare(size=64, scale=(0, 255)),
        mt.Recipe(method="logistic"), out=tmp_path / "run", progress=False,
    )  # fmt: skip


def square(image):
    """Where the bright square of 14 pixels lies."""
    smooth = uniform_filter(image.astype(float), 14, mode="constant")
    row, column = np.unravel_index(smooth.argmax(), smooth.shape)
    mask = np.zeros(image.shape, bool)
    mask[max(0, row - 7) : row + 7, max(0, column - 7) : column + 7] = True
    return mask


def test_the_maps_point_at_what_was_planted(run):
    test = [i for i in run.split.test if run.cohort.labels[i] == 1]
    hits, shares = [], []
    for i in test:
        heat = run.heatmap(run.cohort.cases[i].alias, 1)
        mask = square(run.prepared.one(i)[0])
        hits.append(bool(mask.ravel()[heat.argmax()]))
        shares.append(heat[mask].sum() / heat.sum())
    assert np.mean(hits) >= 0.9  # chance is the square's share of the image, 0.05
    assert np.mean(shares) >= 0.2
    assert run.heatmap("nobody", 1) is None


def test_the_report_shows_errors_with_their_maps(run):
    from medtransfer.judge import judge
    from medtransfer.report.words import Words
    from medtransfer.report.write import page

    result = judge(run, bootstrap=100, controls=(), threshold="0.5")
    record = result.record["explanation"]
    assert record["passes"] is True
    assert [c.status for c in result.checks if c.name == "Maps of evidence"] == ["ok"]
    assert record["seconds"] < 60
    flipped = replace(result.predictions, reference=1 - result.predictions.reference)  # all surest calls are wrong
    wrong = replace(result, predictions=flipped, record=result.record | {"explanation": record | {"passes": False}})
    html = page(wrong, Words())
    section = html[html.index('id="errors"') : html.index('id="reproduce"')]
    assert section.count('class="pair"') == 12
    assert section.count("with the map of evidence for yes: strongest") == 12
    assert "Read nothing into them" in section
    quiet = judge(run, bootstrap=100, controls=(), threshold="0.5", explain=False, robustness=False)
    assert "No maps were made" in page(quiet, Words())
    assert not [c for c in quiet.checks if c.name == "Maps of evidence"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("weights", "options"), [("embedded/compact3d", {}), ("embedded/compact2d", {"depth": "slices"})]
)
def test_the_maps_of_volumes_point_at_what_was_planted(weights, options, tmp_path):
    import nibabel as nib

    from medtransfer.cohort import Case, Cohort

    rng, cases, centres = np.random.default_rng(0), [], []
    for i in range(60):
        voxels = rng.normal(100, 25, (40, 40, 20))
        x, y, z = *rng.integers(8, 32, 2), rng.integers(4, 16)
        if i % 2:
            grid = np.indices(voxels.shape)
            voxels[(grid[0] - x) ** 2 + (grid[1] - y) ** 2 + (grid[2] - z) ** 2 < 25] += 70
        nib.save(nib.Nifti1Image(voxels.astype(np.float32), np.diag([2.0, 2.0, 2.0, 1.0])), tmp_path / f"{i}.nii")
        cases.append(Case(f"c{i}", f"p{i}", tmp_path / f"{i}.nii", label=i % 2))
        centres.append((z, 39 - y, 39 - x))  # prepared volumes run to the back and to the patient's left
    cohort = Cohort(tuple(cases), ("no", "yes"))
    model = load_model(weights, dims=3, pool_from=["block2", "block3"], **options)
    run = mt.fit(
        model, cohort, mt.split_by_patient(cohort, val=0, test=0.4), mt.Prepare(size=(40, 40, 20), scale=(0, 220)),
        mt.Recipe(method="logistic"), out=tmp_path / "run", progress=False,
    )  # fmt: skip
    away = []
    for i in run.split.test:
        if i % 2:
            heat = run.heatmap(cohort.cases[i].alias, 1)
            assert heat.shape == (20, 40, 40)
            away.append(np.linalg.norm(np.subtract(np.unravel_index(heat.argmax(), heat.shape), centres[i])))
    assert np.median(away) <= 5  # the ball's radius
    assert np.mean(np.array(away) <= 6) >= 0.9
