"""Backbones, weight surgery and models: adapted networks against the originals they came from."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from medtransfer.adapt import check, import_file
from medtransfer.backbones import ARCHITECTURES, architecture, recognise
from medtransfer.backbones.sources import find
from medtransfer.certify import certify, fill
from medtransfer.errors import WeightsError
from medtransfer.model import Description, Head, load_model, rebuild
from medtransfer.stem import FoldedStem, fold_stem
from medtransfer.volume import ACSConv3d, inflate
from medtransfer.weights import export, header, stored, verify

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
QUICK = ["resnet18", "mobilenet_v3_small", "regnet_y_400mf", "efficientnet_b0", "vit_ti_16"]
CERTIFIED = ["mobilenet_v2", "mobilenet_v3_small", "monai_segresnet8"]


@pytest.fixture(autouse=True)
def _own_store(tmp_path, monkeypatch):
    monkeypatch.setenv("MEDTRANSFER_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))


def original(name, seed=0):
    network = ARCHITECTURES[name].build(init=False).eval()
    fill(network, seed)  # statistics as after training, so that normalisation matters
    return network


def saved(network, path):
    save_file({k: v.contiguous() for k, v in network.state_dict().items()}, path)
    return str(path)


def pooled_features(network, x):
    """Pooled features on the way to the classifier, caught from torchvision's own forward pass."""
    caught = []
    place = next(getattr(network, n) for n in ("avgpool", "heads", "classifier") if hasattr(network, n))
    handle = place.register_forward_pre_hook(lambda module, inputs: caught.append(inputs[0]))
    with torch.no_grad():
        network(x)
    handle.remove()
    return caught[0].mean((2, 3)) if caught[0].ndim == 4 else caught[0]


def some(names, quick):
    return [pytest.param(n, marks=() if n in quick else pytest.mark.slow) for n in names]


@pytest.fixture
def float64(monkeypatch):
    """Whatever is loaded is adapted in double precision: rounding must not decide."""
    import medtransfer.model as module

    def fold_doubled(network, *settings):
        torch.set_default_dtype(torch.float64)
        return fold_stem(network.double(), *settings)

    monkeypatch.setattr(module, "fold_stem", fold_doubled)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize(
    "name", some([n for n, a in ARCHITECTURES.items() if a.dims == (2,) and a.channels == 3], QUICK)
)
def test_a_gray_image_gives_what_its_replica_gives_the_original(name, tmp_path, float64):
    network = original(name)
    file = saved(network, tmp_path / "w.safetensors")
    side = {"inception_v3": 75}.get(name, 224 if "vit" in name else 65)
    mean, std = (MEAN, STD) if name != "inception_v3" else ((0.5,) * 3, (0.5,) * 3)
    x = torch.rand(2, 1, side, side, dtype=torch.float64)
    m, d = (torch.tensor(v, dtype=torch.float64)[:, None, None] for v in (mean, std))
    wanted = pooled_features(network.double(), (x.expand(-1, 3, -1, -1) - m) / d)
    model = load_model(file, arch=name, mean=mean, std=std).eval()
    with torch.no_grad():
        found = model.features(x)
    assert found.shape == wanted.shape
    assert found.dtype == torch.float64
    assert (found - wanted).abs().max() <= 1e-5 * wanted.abs().max()
    assert not model.description.receipt["new"]
    assert model.width == wanted.shape[1]


@pytest.mark.parametrize("name", some(ARCHITECTURES, CERTIFIED))
def test_certificates_hold(name):
    if name in ("monai_swinunetr", "monai_vit_b_16"):
        pytest.importorskip("einops")
    found = certify(name)
    assert all(c.holds for c in found), "\n".join(map(str, found))
    arch = ARCHITECTURES[name]
    assert len(found) == len(arch.dims) + 4 * arch.inflatable


@pytest.mark.parametrize("dims", [2, 3])
def test_medicalnets_shortcuts_answer_as_monais_and_let_gradients_through(dims):
    from monai.networks import nets

    ours = ARCHITECTURES["medicalnet_resnet18"].make(dims, 1).double().eval()
    kept = {"conv1_t_stride": 2, "shortcut_type": "A", "bias_downsample": False}
    theirs = nets.ResNet("basic", [2, 2, 2, 2], [64, 128, 256, 512], spatial_dims=dims, n_input_channels=1, **kept)
    theirs.double().eval().fc = ours.fc
    theirs.load_state_dict(ours.state_dict())
    image = torch.rand(1, 1, *(32, 25, 33)[:dims], dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(ours(image), theirs(image))
    for block in (m for m in ours.modules() if hasattr(m, "downsample")):  # leaves the shortcuts
        nn.init.zeros_(block.conv2.weight)
    (grown,) = torch.autograd.grad(ours(image).square().sum(), image)
    assert grown.abs().max() > 0


def test_the_table_of_certificates_names_every_backbone():
    text = (Path(__file__).resolve().parents[1] / "docs" / "certificates.md").read_text(encoding="utf-8")
    assert {line.split("|")[1].strip() for line in text.splitlines() if line.startswith("| ")} >= set(ARCHITECTURES)


def test_a_certificate_fails_where_the_arithmetic_is_wrong(monkeypatch):
    import medtransfer.certify as module

    def careless(network, arch, mean, std, channels):
        first = network.get_submodule(arch.stem)
        first.weight = nn.Parameter(first.weight.mean(1, keepdim=True))
        return "", ""

    monkeypatch.setattr(module, "fold_stem", careless)
    assert not certify("mobilenet_v3_small")[0].holds


@pytest.mark.parametrize("name", some(ARCHITECTURES, ["resnet18", "vit_ti_16", "swin_t", "monai_segresnet8"]))
def test_every_tensor_has_a_stage_or_belongs_to_the_top(name):
    if name in ("monai_swinunetr", "monai_vit_b_16"):
        pytest.importorskip("einops")
    arch = ARCHITECTURES[name]
    network = arch.build(init=False)
    for tensor in network.state_dict():
        assert (arch.owner(tensor) is not None) != tensor.startswith(arch.top), tensor
    assert isinstance(network.get_submodule(arch.stem), nn.Conv2d)
    stages = {stage: arch.stage(network, stage) for stage, _ in arch.stages}
    held = {id(p) for module in stages.values() for p in module.parameters()}
    assert held == {id(p) for k, p in network.named_parameters() if arch.owner(k)}


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_the_folded_stem_is_exact_in_float64_borders_included(channels):
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 8, 7, stride=2, padding=3, bias=False).double()
    x = torch.rand(1, 1, 23, 30, dtype=torch.float64).expand(-1, channels, -1, -1)
    m, s = torch.tensor(MEAN, dtype=torch.float64), torch.tensor(STD, dtype=torch.float64)
    wanted = conv((x[:, :1].expand(-1, 3, -1, -1) - m[:, None, None]) / s[:, None, None])
    found = FoldedStem(conv, MEAN, STD, channels)(x)
    assert (found - wanted).abs().max() < 1e-12


@pytest.mark.parametrize("how", ["centre", "mean"])
@pytest.mark.parametrize("flat", [(), ("conv1", "maxpool", "layer1")])
def test_inflation_keeps_the_2d_answer_on_a_stack_that_is_constant_in_depth(how, flat):
    network = original("resnet18").double()
    paths = [p for _, members in ARCHITECTURES["resnet18"].stages for p in members]
    stages = lambda: nn.Sequential(*(network.get_submodule(p) for p in paths))  # noqa: E731
    x = torch.randn(1, 3, 48, 48, dtype=torch.float64)
    with torch.no_grad():
        wanted = stages()(x)
        changed = inflate(network, how, flat=flat)
        deep = stages()(x[:, :, None].expand(-1, -1, 20, -1, -1))
    assert deep.shape[2] == (3 if flat else 1)  # 20 slices: three stages halve them, five do
    assert (deep - wanted[:, :, None]).abs().max() <= 1e-12 * wanted.abs().max()
    assert len(changed) == sum(isinstance(m, nn.Conv3d) for m in network.modules())


@pytest.mark.parametrize("groups", [1, 6])
def test_acs_convolves_each_plane_with_the_2d_kernel(groups):
    torch.manual_seed(0)
    conv = nn.Conv2d(6, 12, 3, stride=2, padding=1, groups=groups).double()
    deep = ACSConv3d(conv)
    x = torch.randn(1, 6, 9, 9, 9, dtype=torch.float64)
    with torch.no_grad():
        found = deep(x)
        assert sum(p.numel() for p in deep.parameters()) == sum(p.numel() for p in conv.parameters())
        for axis, channels in enumerate((slice(0, 4), slice(4, 8), slice(8, 12))):
            for i in range(0, 9, 2):
                wanted = conv(x.select(2 + axis, i))[:, channels]
                assert torch.allclose(found[:, channels].select(2 + axis, i // 2), wanted, atol=1e-12)


@pytest.mark.parametrize(("side", "stride", "padding"), [(3, 1, 0), (4, 4, 0), (5, 2, 2), (3, 2, 1), (1, 2, 1)])
def test_an_acs_answer_stands_in_the_middle_of_what_was_seen(side, stride, padding):
    """A kernel that only looks at its middle answers with the voxel there, whichever plane it lies in."""
    conv = nn.Conv2d(1, 3, side, stride, padding, bias=False).double()
    with torch.no_grad():
        conv.weight.zero_()[:, :, side // 2, side // 2] = 1
        x = torch.rand(1, 1, 13, 17, 15, dtype=torch.float64)
        axial, coronal, sagittal = ACSConv3d(conv)(x)[0]
    assert torch.equal(axial, coronal)
    assert torch.equal(axial, sagittal)
    start = side // 2 - padding
    if start >= 0:
        picked = x[0, 0, start::stride, start::stride, start::stride]
        assert torch.equal(axial, picked[tuple(slice(n) for n in axial.shape)])


def test_position_embeddings_of_another_size_are_torchvisions_interpolation(tmp_path):
    from torchvision.models.vision_transformer import VisionTransformer, interpolate_embeddings

    network = original("vit_ti_16")
    twin = VisionTransformer(96, 16, 12, 3, 192, 768).eval()
    twin.load_state_dict(interpolate_embeddings(96, 16, copy.deepcopy(network.state_dict())))
    x = torch.rand(1, 3, 96, 96)
    wanted = pooled_features(twin, (x - 0.5) / 0.5)
    options = {"arch": "vit_ti_16", "mean": (0.5,), "std": (0.5,)}
    model = load_model(saved(network, tmp_path / "w.safetensors"), in_channels=3, **options).eval()
    other = load_model(saved(twin, tmp_path / "x.safetensors"), in_channels=3, **options).eval()
    with torch.no_grad():
        assert (model.features(x) - wanted).abs().max() <= 1e-4 * wanted.abs().max()
        assert (other.features(x) - wanted).abs().max() <= 1e-4 * wanted.abs().max()
        assert model.maps(x, "blocks2").shape == (1, 192, 6, 6)
    assert other.description.native == (2, 3, 37)


@pytest.mark.parametrize("depth", ["slices", "neighbours"])
def test_a_volume_of_equal_slices_gives_the_features_of_its_slice(depth, tmp_path):
    file = saved(original("resnet18"), tmp_path / "w.safetensors")
    options = {"arch": "resnet18", "mean": MEAN, "std": STD, "until": "layer2"}
    flat = load_model(file, **options).eval()
    deep = load_model(file, dims=3, depth=depth, **options).eval()
    weighed = load_model(file, dims=3, depth=depth, head=Head(attention=8), **options).eval()
    x = torch.rand(2, 1, 64, 64)
    stack = x[:, :, None].expand(-1, -1, 5, -1, -1)
    with torch.no_grad():
        wanted = flat.features(x)
        assert torch.allclose(deep.features(stack), wanted, atol=1e-4 * float(wanted.max()))
        assert weighed.features(stack).shape == (2, 5, 128)
        assert torch.allclose(weighed(stack), weighed.head(wanted[:, None]), atol=1e-4)


def test_neighbours_are_the_slices_beside():
    model = load_model("random/resnet18", dims=3, depth="neighbours", until="stem")
    x = torch.arange(4.0).reshape(1, 1, 4, 1, 1)
    assert model.slices(x).squeeze().tolist() == [[0, 0, 1], [0, 1, 2], [1, 2, 3], [2, 3, 3]]


def test_a_checkpoint_that_lacks_a_stage_is_refused_cut_or_accepted(tmp_path):
    network = original("resnet18")
    partial = {k: v for k, v in network.state_dict().items() if not k.startswith(("layer4", "fc"))}
    save_file(partial, tmp_path / "p.safetensors")
    options = {"arch": "resnet18", "mean": MEAN, "std": STD}
    with pytest.raises(WeightsError, match=r"layer4.*until: layer3"):
        load_model(str(tmp_path / "p.safetensors"), **options)
    cut = load_model(str(tmp_path / "p.safetensors"), until="layer3", **options)
    assert list(cut.stages)[-1] == "layer3"
    assert cut.width == 256
    whole = load_model(str(tmp_path / "p.safetensors"), allow_new=["layer4"], **options)
    new = whole.description.receipt["new"]
    assert new
    assert all(n.startswith("layer4.") for n in new)


def test_import_recognises_stores_and_finds_weights_again(tmp_path):
    saved(original("mobilenet_v3_small"), tmp_path / "w.safetensors")
    weights, receipt = import_file(tmp_path / "w.safetensors", mean=MEAN, std=STD)
    assert weights.name == "local/mobilenet_v3_small"
    assert not receipt.new
    assert all(n.startswith("classifier") for n in receipt.unused)
    assert [w.name for w in stored()] == [weights.name]
    model = load_model("local/mobilenet_v3_small")
    assert model.description.weights["sha256"] == weights.sha256
    assert str(tmp_path) not in model.description.to_json()
    verify(find(weights.name))
    weights.file.write_bytes(b"x" * 10)
    with pytest.raises(WeightsError, match="not the ones"):
        load_model("local/mobilenet_v3_small")


def test_names_that_lead_nowhere_say_what_is_there():
    with pytest.raises(WeightsError, match="did you mean 'resnet50'"):
        architecture("resnet5O")
    with pytest.raises(WeightsError, match="not on this machine"):
        load_model("imagenet/resnet18")
    with pytest.raises(WeightsError, match="weights import"):
        load_model("hospital/resnet18")
    with pytest.raises(WeightsError, match="mean and std"):
        load_model("some.safetensors")
    assert recognise({k: tuple(v.shape) for k, v in original("resnet18").state_dict().items()}) == "resnet18"


def test_frozen_stages_stay_in_evaluation_and_without_gradient():
    model = load_model("random/resnet18", head=Head(hidden=(16,), dropout=0.5, batchnorm=True))
    model.train_only(["layer4"]).train()
    assert not model.stages["layer1"].training
    assert all(not p.requires_grad for p in model.stages["stem"].parameters())
    norms = [m for m in model.stages["layer4"].modules() if isinstance(m, nn.BatchNorm2d)]
    assert all(not n.training and n.weight.requires_grad for n in norms)
    assert all(m.training for m in model.head)
    model.train_only(["layer4"], frozen_norms=False).train()
    assert all(n.training for n in norms)
    model(torch.rand(2, 1, 64, 64)).sum().backward()
    assert all(p.grad is None for p in model.stages["layer3"].parameters())
    assert all(p.grad is not None for p in model.stages["layer4"].parameters())


def test_pooling_by_hand():
    model = load_model("random/resnet18", until="layer2", pool_from=["stem", "layer2"], pool="mean_std").eval()
    x = torch.rand(2, 1, 64, 64)
    with torch.no_grad():
        a = model.stages["stem"](x)
        b = model.stages["layer2"](model.stages["layer1"](a))
        flat = [m.flatten(2) for m in (a, b)]
        wanted = torch.cat([v for m in flat for v in (m.mean(2), m.std(2, correction=0))], 1)
        assert torch.allclose(model.features(x), wanted, atol=1e-6)


def test_a_description_builds_the_same_network_again():
    model = load_model("random/mobilenet_v2", in_channels=3, classes=4, head=Head(hidden=(8,)), seed=3).eval()
    again = rebuild(Description.from_json(json.loads(json.dumps(model.description.to_json())))).eval()
    again.load_state_dict(model.state_dict())
    x = torch.rand(1, 3, 65, 65)
    with torch.no_grad():
        assert torch.equal(model(x), again(x))
    twin = load_model("random/mobilenet_v2", in_channels=3, classes=4, head=Head(hidden=(8,)), seed=3)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))


def test_a_3d_model_takes_volumes():
    model = load_model("random/resnet18", dims=3, until="layer2").eval()
    with torch.no_grad():
        assert model(torch.rand(1, 1, 32, 40, 48)).shape == (1, 2)
    with pytest.raises(WeightsError, match="inflated"):
        load_model("random/swin_t", dims=3)
    with pytest.raises(WeightsError, match="class token"):
        load_model("random/resnet18", pool="token")


@pytest.mark.parametrize("channels", [1, 4])
def test_3d_weights_are_taken_as_they_are(channels, tmp_path):
    network = ARCHITECTURES["medicalnet_resnet10"].build(dims=3, channels=channels, init=False).double().eval()
    fill(network)
    file = saved(network.float(), tmp_path / "w.safetensors")
    model = load_model(file, dims=3, in_channels=channels, arch="medicalnet_resnet10", mean=(0.5,), std=(0.2,)).eval()
    assert model.description.native == (3, channels, 0)
    x = torch.rand(2, channels, 33, 33, 33)
    caught = []
    network.avgpool.register_forward_pre_hook(lambda module, inputs: caught.append(inputs[0]))
    with torch.no_grad():
        network((x - 0.5) / 0.2)
        assert torch.allclose(model.features(x), caught[0].mean((2, 3, 4)), rtol=1e-3, atol=1e-4)
    with pytest.raises(WeightsError, match="3D network"):
        load_model(file, dims=2, arch="medicalnet_resnet10", mean=(0.5,), std=(0.2,))


def test_exported_weights_bring_their_record_to_the_other_machine(tmp_path, monkeypatch):
    saved(original("mobilenet_v3_small"), tmp_path / "w.safetensors")
    here, _ = import_file(tmp_path / "w.safetensors", mean=MEAN, std=STD, name="hospital/small", licence="CC0")
    digest = export(here, tmp_path / "out.safetensors")
    assert header(tmp_path / "out.safetensors")["arch"] == "mobilenet_v3_small"
    monkeypatch.setenv("MEDTRANSFER_HOME", str(tmp_path / "other"))
    there, receipt = import_file(tmp_path / "out.safetensors")
    assert (there.name, there.mean, there.std, there.licence) == ("hospital/small", MEAN, STD, "CC0")
    assert there.sha256 == digest
    assert not receipt.new
    with pytest.raises(WeightsError, match=r"new \.safetensors"):
        export(there, tmp_path / "out.safetensors")
    with pytest.raises(WeightsError, match="normalisation"):
        import_file(tmp_path / "w.safetensors")


def test_without_a_network_the_refusal_is_immediate_and_says_what_goes_where(monkeypatch):
    from medtransfer.backbones.sources import fetch

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(WeightsError, match=r"HF_HUB_OFFLINE.*resnet18-f37072fd.pth.*f37072fd.*hub/checkpoints"):
        fetch("imagenet/resnet18")


@pytest.mark.parametrize("switch", ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "MEDTRANSFER_OFFLINE"])
def test_every_offline_switch_is_obeyed(switch, monkeypatch):
    import medtransfer.backbones.sources as module

    monkeypatch.setattr(module, "download", lambda *args: pytest.fail("a connection was asked for"))
    monkeypatch.setenv(switch, "true")
    with pytest.raises(WeightsError, match=switch):
        module.fetch("imagenet/mobilenet_v2")


def test_torch_home_is_where_imagenet_weights_are_looked_for(tmp_path):
    from medtransfer.backbones.sources import imagenet_file

    file = tmp_path / "torch" / "hub" / "checkpoints" / "mobilenet_v2-7ebf99e0.pth"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"another file")
    with pytest.raises(WeightsError, match=r"not the published one.*instead of 7ebf99e0"):
        imagenet_file("mobilenet_v2")


def test_the_list_says_what_is_known_of_all_weights():
    from medtransfer.backbones.sources import overview

    rows = {row["name"]: row for row in overview()}
    assert all(row[k] for row in rows.values() for k in ("arch", "dims", "side", "source", "licence", "status"))
    published = [row for name, row in rows.items() if name.startswith("imagenet/")]
    assert all(float(row["parameters"]) > 0 and row["mean"] and row["std"] for row in published)
    assert rows["imagenet/inception_v3"]["side"] == "299"
    assert rows["imagenet/vgg16"]["parameters"] == "14.7"  # the convolutions' 14 714 688
    assert (rows["embedded/compact3d"]["dims"], rows["embedded/compact3d"]["side"]) == ("3D", "32")
    assert float(rows["embedded/compact2d"]["parameters"]) == pytest.approx(0.9, abs=0.05)


def test_check_counts_and_leaves_nothing_unexplained():
    network = original("resnet18")
    receipt = check(network, copy.deepcopy(network.state_dict()), ARCHITECTURES["resnet18"])
    names = set(network.state_dict())
    assert set(receipt.loaded) | set(receipt.unused) == names
    assert set(receipt.unused) == {"fc.weight", "fc.bias"}
    assert "loaded" in str(receipt)
    assert np.isclose(len(receipt.loaded), len(names) - 2)
