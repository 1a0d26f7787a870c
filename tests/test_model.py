"""Backbones, weight surgery and models: adapted networks against the originals they came from."""

import copy
import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from medtransfer.adapt import FoldedStem, check, import_file, inflate
from medtransfer.backbones import ARCHITECTURES, architecture, find, recognise
from medtransfer.errors import WeightsError
from medtransfer.model import Description, Head, load_model, rebuild
from medtransfer.weights import read_tensors, stored, verify

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
QUICK = ["resnet18", "mobilenet_v2", "densenet121", "mobilenet_v3_small", "regnet_y_400mf", "efficientnet_b0"]


@pytest.fixture(autouse=True)
def _own_store(tmp_path, monkeypatch):
    monkeypatch.setenv("MEDTRANSFER_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))


def original(name, seed=0):
    torch.manual_seed(seed)
    network = ARCHITECTURES[name].build().eval()
    for module in network.modules():  # statistics as after training, so that normalisation matters
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
    return network


def saved(network, path):
    save_file({k: v.contiguous() for k, v in network.state_dict().items()}, path)
    return str(path)


def pooled_features(network, x):
    """Pooled features on the way to the classifier, caught from torchvision's own forward pass."""
    caught = []
    place = network.avgpool if hasattr(network, "avgpool") else network.classifier
    handle = place.register_forward_pre_hook(lambda module, inputs: caught.append(inputs[0]))
    with torch.no_grad():
        network(x)
    handle.remove()
    return caught[0].mean((2, 3)) if caught[0].ndim == 4 else caught[0]


def everything():
    return [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in ARCHITECTURES]


@pytest.mark.parametrize("name", everything())
def test_a_gray_image_gives_what_its_replica_gives_the_original(name, tmp_path):
    network = original(name)
    side = 65 if name != "inception_v3" else 75
    mean, std = (MEAN, STD) if name != "inception_v3" else ((0.5,) * 3, (0.5,) * 3)
    x = torch.rand(2, 1, side, side)
    normal = (x.expand(-1, 3, -1, -1) - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    wanted = pooled_features(network, normal)
    model = load_model(saved(network, tmp_path / "w.safetensors"), arch=name, mean=mean, std=std).eval()
    with torch.no_grad():
        found = model.features(x)
    assert found.shape == wanted.shape
    assert (found - wanted).abs().max() <= 1e-5 * wanted.abs().max()
    assert not model.description.receipt["new"]
    assert model.width == wanted.shape[1]


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
@pytest.mark.parametrize("name", ["resnet18", "vgg16_bn"])
def test_inflation_keeps_the_2d_answer_inside_a_stack_that_is_constant_in_depth(name, how):
    network = original(name)
    stages = [network.get_submodule(p) for _, paths in ARCHITECTURES[name].stages[:2] for p in paths]
    x = torch.randn(1, 3, 48, 48)
    with torch.no_grad():
        flat = nn.Sequential(*stages)(x)
        changed = inflate(network, how)
        deep = nn.Sequential(
            *(network.get_submodule(p) for _, paths in ARCHITECTURES[name].stages[:2] for p in paths)
        )(x[:, :, None].expand(-1, -1, 64, -1, -1))
    middle = deep[:, :, deep.shape[2] // 2]
    assert (middle - flat).abs().max() <= 1e-5 * flat.abs().max()
    assert len(changed) == sum(isinstance(m, nn.Conv3d) for m in network.modules())


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


def test_foreign_and_damaged_checkpoints_are_refused(tmp_path):
    network = original("resnet18")
    good = network.state_dict()
    options = {"arch": "resnet18", "mean": MEAN, "std": STD}

    def refused(tensors, match):
        save_file({k: v.contiguous() for k, v in tensors.items()}, tmp_path / "bad.safetensors")
        with pytest.raises(WeightsError, match=match):
            load_model(str(tmp_path / "bad.safetensors"), **options)

    refused(original("mobilenet_v2").state_dict(), "fit nowhere")
    refused({**good, "layer1.0.conv1.weight": torch.zeros(64, 64, 5, 5)}, "another shape")
    refused({**good, "layer1.0.bn1.weight": torch.full((64,), torch.nan)}, "not finite")
    refused({**good, "layer9.weight": torch.zeros(3)}, "fit nowhere")
    refused({k: v for k, v in good.items() if "bn" not in k}, "lack tensors")
    path = tmp_path / "cut.safetensors"
    path.write_bytes((tmp_path / "bad.safetensors").read_bytes()[:-1000])
    with pytest.raises(WeightsError, match="damaged"):
        load_model(str(path), **options)


def test_code_inside_a_checkpoint_does_not_run(tmp_path):
    import os

    marker = tmp_path / "ran"

    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(marker),)

    torch.save({"state_dict": {"a": torch.zeros(1)}, "x": Bomb()}, tmp_path / "bomb.pth")
    with pytest.raises(WeightsError, match="could run code"):
        read_tensors(tmp_path / "bomb.pth")
    assert not marker.exists()


def test_wrappers_and_prefixes_come_off(tmp_path):
    tensors = {"module.conv1.weight": torch.ones(2), "module.fc.bias": torch.ones(1)}
    torch.save({"epoch": 3, "state_dict": tensors}, tmp_path / "w.pth")
    assert sorted(read_tensors(tmp_path / "w.pth")) == ["conv1.weight", "fc.bias"]


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
        load_model("random/convnext_tiny", dims=3)


def test_check_counts_and_leaves_nothing_unexplained():
    network = original("resnet18")
    receipt = check(network, copy.deepcopy(network.state_dict()), ARCHITECTURES["resnet18"])
    names = set(network.state_dict())
    assert set(receipt.loaded) | set(receipt.unused) == names
    assert set(receipt.unused) == {"fc.weight", "fc.bias"}
    assert "loaded" in str(receipt)
    assert np.isclose(len(receipt.loaded), len(names) - 2)
