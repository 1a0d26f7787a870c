"""Checkpoints of other people: taken by rule, or refused with a reason."""

import os
import warnings

import pytest
import torch
from safetensors.torch import save_file

from medtransfer.adapt import load
from medtransfer.backbones import ARCHITECTURES
from medtransfer.certify import fill
from medtransfer.checkpoints import read_tensors
from medtransfer.errors import MedTransferWarning, WeightsError
from medtransfer.model import load_model
from medtransfer.witness import misplaced

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def tensors_of(name, dims=2, seed=0):
    network = ARCHITECTURES[name].build(dims=dims, init=False)
    fill(network, seed)
    return {k: v.clone() for k, v in network.state_dict().items()}


@pytest.fixture(scope="module")
def resnet():
    return tensors_of("resnet18")


def taken(tensors, name, wrap=lambda t: t, tmp_path=None):
    """The loaded network's tensors after a round trip through a file."""
    torch.save(wrap(tensors), tmp_path / "w.pth")
    network, _, receipt = load(ARCHITECTURES[name], read_tensors(tmp_path / "w.pth"))
    return network.state_dict(), receipt


def body(tensors, name):
    return {k: v for k, v in tensors.items() if ARCHITECTURES[name].owner(k)}


def timm_names(key):
    """A vision transformer's names as timm and DINO have them, the other way round."""
    for ours, theirs in (
        ("class_token", "cls_token"), ("encoder.pos_embedding", "pos_embed"), ("conv_proj.", "patch_embed.proj."),
        ("encoder.ln.", "norm."), ("encoder.layers.encoder_layer_", "blocks."), ("ln_1.", "norm1."),
        ("ln_2.", "norm2."),
        ("self_attention.in_proj_", "attn.qkv."), ("self_attention.out_proj.", "attn.proj."),
        ("mlp.0.", "mlp.fc1."), ("mlp.3.", "mlp.fc2."),
    ):  # fmt: skip
        key = key.replace(ours, theirs)
    return key


CHILDREN = {"conv1": "0", "bn1": "1", "layer1": "4", "layer2": "5", "layer3": "6", "layer4": "7"}
FOREIGN = {
    "data parallel": ("resnet18", lambda t: {f"module.{k}": v for k, v in t.items()}),
    "lightning": ("resnet18", lambda t: {
        "epoch": 3, "state_dict": {f"model.{k}": v for k, v in t.items()} | {"criterion.weight": torch.ones(2)}}),
    "two prefixes and a projector": ("resnet18", lambda t: {"model": {
        f"module.encoder_q.{k}": v for k, v in t.items() if "fc" not in k} | {"module.queue": torch.ones(3, 4)}}),
    "dino": ("vit_s_16", lambda t: {
        "student": {f"module.backbone.{timm_names(k)}": torch.zeros_like(v) for k, v in t.items()},
        "teacher": {f"backbone.{timm_names(k)}": v for k, v in t.items() if "heads" not in k}
        | {"head.mlp.0.weight": torch.ones(2, 2)}}),
    "timm transformer": ("vit_ti_16", lambda t: {
        timm_names(k): v for k, v in t.items() if "heads" not in k} | {"head.weight": torch.ones(5, 192)}),
    "children by number": ("resnet18", lambda t: {
        f"backbone.{CHILDREN[k.split('.')[0]]}.{k.partition('.')[2]}": v for k, v in t.items() if "fc" not in k}),
    "medicalnet": ("medicalnet_resnet10", lambda t: {"state_dict": {
        f"module.{k}": v for k, v in t.items() if "fc" not in k} | {"module.conv_seg.0.weight": torch.ones(2, 2)}}),
    "half precision": ("resnet18", lambda t: {k: v.half() if v.is_floating_point() else v for k, v in t.items()}),
    "bundle": ("monai_segresnet8", lambda t: {"model": t | {"up_layers.0.0.conv1.conv.weight": torch.ones(2, 2)}}),
}  # fmt: skip


@pytest.mark.parametrize("form", FOREIGN)
def test_foreign_forms_are_taken_by_rule(form, tmp_path):
    name, wrap = FOREIGN[form]
    tensors = tensors_of(name)
    own, receipt = taken(tensors, name, wrap, tmp_path)
    assert not receipt.new
    for key, value in body(tensors, name).items():
        if not key.endswith("num_batches_tracked"):
            assert torch.allclose(own[key].float(), value.float(), atol=0.02 if form == "half precision" else 0), key
    read = read_tensors(tmp_path / "w.pth")
    assert len(receipt.loaded) + len(receipt.reshaped) + len(receipt.unused) == len(read)


def test_old_densenet_names_and_one_channel(tmp_path):
    tensors = tensors_of("densenet121")
    tensors["features.conv0.weight"] = tensors["features.conv0.weight"].sum(1, keepdim=True)
    old = {k: k for k in tensors}
    for part in ("norm", "conv"):
        for i in "12":
            old = {k: v.replace(f".{part}{i}.", f".{part}.{i}.") if "denselayer" in k else v for k, v in old.items()}
    file = tmp_path / "w.pth"
    torch.save({old[k]: v for k, v in tensors.items()} | {"classifier.weight": torch.ones(18, 1024)}, file)
    model = load_model(str(file), arch="densenet121", mean=(0.5,), std=(0.25,))
    assert model.description.native == (2, 1, 0)
    assert "DenseNet names of before 2018" in model.description.receipt["rules"]
    assert not model.description.receipt["new"]


def test_folded_normalisation_is_restored_exactly(resnet, tmp_path):
    network = ARCHITECTURES["resnet18"].build(init=False).eval()
    network.load_state_dict(resnet)
    from torch.nn.utils.fusion import fuse_conv_bn_weights

    folded = {}
    modules = dict(network.named_modules())
    for conv in [k for k, m in modules.items() if isinstance(m, torch.nn.Conv2d)]:
        norm = conv.replace("conv", "bn").replace("downsample.0", "downsample.1")
        n = modules[norm]
        weight, bias = fuse_conv_bn_weights(
            modules[conv].weight, None, n.running_mean, n.running_var, n.eps, n.weight, n.bias
        )
        folded |= {f"{conv}.weight": weight.data, f"{conv}.bias": bias.data}
    torch.save(folded, tmp_path / "w.pth")
    again, _, receipt = load(ARCHITECTURES["resnet18"], read_tensors(tmp_path / "w.pth"))
    assert receipt.rules == ("20 folded batch normalisations restored",)
    x = torch.rand(1, 3, 65, 65)
    again.fc = network.fc
    with torch.no_grad():
        wanted = network(x)
        assert (again.eval()(x) - wanted).abs().max() <= 1e-4 * wanted.abs().max()


class Bomb:
    """Makes a folder when it is unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def swapped(tensors, a, b):
    return tensors | {a: tensors[b], b: tensors[a]}


BAD = {
    "another architecture": (lambda t: tensors_of("mobilenet_v2"), "fit nowhere|lack tensors"),
    "a deeper relative": (lambda t: tensors_of("resnet34"), "fit nowhere"),
    "a wider relative": (lambda t: tensors_of("wide_resnet50_2"), "another shape|fit nowhere"),
    "another kernel": (lambda t: t | {"layer1.0.conv1.weight": torch.ones(64, 64, 5, 5)}, "another shape"),
    "a transposed kernel": (
        lambda t: t | {"layer2.0.conv1.weight": t["layer2.0.conv1.weight"].transpose(0, 1)},
        "shape",
    ),
    "NaN": (lambda t: t | {"layer1.0.bn1.weight": torch.full((64,), torch.nan)}, "not finite"),
    "infinity": (lambda t: t | {"conv1.weight": t["conv1.weight"] / 0}, "not finite"),
    "a tensor too many": (lambda t: t | {"layer9.weight": torch.ones(3)}, "fit nowhere"),
    "renamed keys": (lambda t: {k.replace("layer3", "stage3"): v for k, v in t.items()}, "fit nowhere"),
    "shuffled keys": (
        lambda t: dict(zip(t, list(t.values())[1:] + list(t.values())[:1], strict=True)),
        "another shape",
    ),
    "no normalisation": (lambda t: {k: v for k, v in t.items() if "bn" not in k}, "lack tensors"),
    "a missing stage": (lambda t: {k: v for k, v in t.items() if "layer4" not in k}, "until: layer3"),
    "missing kernels": (lambda t: {k: v for k, v in t.items() if "conv2" not in k}, "lack tensors"),
    "swapped stages": (lambda t: swapped(t, "layer1.0.conv1.weight", "layer2.0.conv2.weight"), "another shape"),
    "integers": (lambda t: t | {"conv1.weight": (t["conv1.weight"] * 100).to(torch.int8)}, "int8 instead of float32"),
    "zeros": (lambda t: t | {"layer3.1.conv2.weight": torch.zeros(256, 256, 3, 3)}, "every value is 0"),
    "negative variance": (lambda t: t | {"bn1.running_var": -t["bn1.running_var"]}, "negative variance"),
    "no tensors": (lambda t: {"epoch": 3, "note": "hello"}, "does not hold a state_dict"),
    "a whole model's dictionary": (lambda t: t | {"config": {"depth": 18}}, "does not hold a state_dict"),
    "empty": (lambda t: {}, "does not hold a state_dict"),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_checkpoints_are_never_silent(what, resnet, tmp_path):
    change, match = BAD[what]
    torch.save(change(dict(resnet)), tmp_path / "bad.pth")
    with pytest.raises(WeightsError, match=match) as caught:
        load_model(str(tmp_path / "bad.pth"), arch="resnet18", mean=MEAN, std=STD)
    assert "fix:" in str(caught.value)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.9999])
def test_truncated_files_are_damaged(suffix, share, resnet, tmp_path):
    file = tmp_path / f"w{suffix}"
    small = {k: v for k, v in resnet.items() if k.startswith("layer1")}
    torch.save(small, file) if suffix == ".pth" else save_file(small, file)
    raw = file.read_bytes()
    file.write_bytes(raw[: int(share * len(raw))])
    with pytest.raises(WeightsError, match="damaged"):
        read_tensors(file)


def test_two_kernels_that_changed_places_are_found(shared, tmp_path):
    folder = shared / "imagenet_resnet18_partial"
    good = read_tensors(folder / "resnet18_imagenet1k_v1_stem_to_layer3_torchvision.safetensors")
    options = {"arch": "resnet18", "mean": MEAN, "std": STD, "until": "layer3"}
    a, b = "layer2.0.conv2.weight", "layer2.1.conv1.weight"
    save_file(swapped(good, a, b), tmp_path / "w.safetensors")
    with pytest.raises(WeightsError, match=r"changed places.*layer2.0.conv2 and layer2.1.conv1"):
        load_model(str(tmp_path / "w.safetensors"), **options)
    save_file(good, tmp_path / "w.safetensors")
    load_model(str(tmp_path / "w.safetensors"), **options)


def units_swapped(tensors, *pairs):
    """Every tensor of two modules exchanged, pair by pair."""
    found = dict(tensors)
    for a, b in pairs:
        for key in tensors:
            if key.startswith(f"{a}."):
                other = key.replace(a, b, 1)
                found |= {key: tensors[other], other: tensors[key]}
    return found


def test_layers_that_changed_places_with_their_normalisation_are_doubted(shared, tmp_path):
    file = next((shared / "imagenet_mobilenet_v2").glob("*.safetensors"))
    good, options = read_tensors(file), {"arch": "mobilenet_v2", "mean": (0.5,) * 3, "std": (0.5,) * 3}
    body = {k: v for k, v in good.items() if not k.startswith("classifier")}
    pairs = [(f"features.8.conv.1.{i}", f"features.10.conv.1.{i}") for i in (0, 1)]
    save_file(units_swapped(body, *pairs), tmp_path / "w.safetensors")
    with pytest.warns(MedTransferWarning, match=r"features\.8\.conv\.1\.0 and features\.10\.conv\.1\.0.*source"):
        model = load_model(str(tmp_path / "w.safetensors"), **options)
    assert "features.8.conv.1.0" in model.description.receipt["doubts"][0]
    save_file(body, tmp_path / "w.safetensors")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = load_model(str(tmp_path / "w.safetensors"), **options)
    assert model.description.receipt["doubts"] == []


def test_asking_leaves_the_network_as_it_was(shared):
    folder = shared / "imagenet_resnet18_partial"
    tensors = read_tensors(folder / "resnet18_imagenet1k_v1_stem_to_layer3_torchvision.safetensors")
    arch = ARCHITECTURES["resnet18"]
    network, _, _ = load(arch, tensors, until="layer3", allow_new=("layer4",))
    before = {k: v.clone() for k, v in network.state_dict().items()}
    assert misplaced(arch, network, arch.kept("layer3")) is None
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())


def test_code_inside_a_checkpoint_does_not_run(tmp_path):
    torch.save({"state_dict": {"a": torch.zeros(1)}, "x": Bomb(tmp_path / "ran")}, tmp_path / "bomb.pth")
    with pytest.raises(WeightsError, match="could run code"):
        read_tensors(tmp_path / "bomb.pth")
    assert not (tmp_path / "ran").exists()
