"""timm's networks through the extra hub."""

import pytest
import torch

from medtransfer.errors import MissingPackage, WeightsError
from medtransfer.model import load_model


def test_without_timm_the_extra_is_named(monkeypatch):
    import sys

    from medtransfer.backbones.hub import timm_architecture

    monkeypatch.setitem(sys.modules, "timm", None)
    timm_architecture.cache_clear()
    with pytest.raises(MissingPackage, match=r"medtransfer\[hub\]"):
        load_model("random/timm/resnet18")


@pytest.mark.parametrize("name", ["resnet18", "convnext_atto", "regnety_002"])
def test_stages_of_timm_give_what_timm_gives(name):
    timm = pytest.importorskip("timm")
    from medtransfer.backbones import architecture

    arch = architecture(f"timm/{name}")
    network = timm.create_model(name, pretrained=False).eval()
    x = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        wanted, found = network.forward_features(x), x
        for stage, _ in arch.stages:
            found = arch.stage(network, stage)(found)
    assert torch.allclose(found, wanted, atol=1e-5)
    assert all((arch.owner(k) is not None) != k.startswith(arch.top) for k in network.state_dict())
    assert load_model(f"random/timm/{name}")(x[:, :1]).shape == (2, 2)


@pytest.mark.parametrize("switch", ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "MEDTRANSFER_OFFLINE"])
def test_offline_switches_are_obeyed_before_anything_is_asked(switch, monkeypatch):
    hub = pytest.importorskip("huggingface_hub")
    pytest.importorskip("timm")
    from medtransfer.backbones.sources import fetch

    monkeypatch.setattr(hub, "try_to_load_from_cache", lambda repo, filename: None)
    monkeypatch.setattr(hub, "hf_hub_download", lambda *args: pytest.fail("a connection was asked for"))
    monkeypatch.setenv(switch, "1")
    with pytest.raises(WeightsError, match=rf"{switch}.*model.safetensors.*HF_HOME.*timm/resnet18.a1_in1k"):
        fetch("timm/resnet18.a1_in1k")


def test_without_a_network_timm_weights_are_refused_at_once(monkeypatch):
    hub = pytest.importorskip("huggingface_hub")
    pytest.importorskip("timm")
    from medtransfer.backbones.sources import fetch

    for switch in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "MEDTRANSFER_OFFLINE"):
        monkeypatch.delenv(switch, raising=False)
    monkeypatch.setattr(hub, "try_to_load_from_cache", lambda repo, filename: None)
    monkeypatch.setattr(hub, "hf_hub_url", lambda repo, filename: "http://127.0.0.1:9/nothing")  # a closed port
    monkeypatch.setattr(hub, "hf_hub_download", lambda *args: pytest.fail("the client tries for half a minute"))
    with pytest.raises(WeightsError, match=r"download failed.*model.safetensors.*HF_HOME"):
        fetch("timm/resnet18.a1_in1k")


def test_timm_weights_are_found_in_the_cache_that_hf_home_names(monkeypatch, tmp_path):
    hub = pytest.importorskip("huggingface_hub")
    timm = pytest.importorskip("timm")
    from safetensors.torch import save_file

    from medtransfer.backbones.sources import find

    asked = []
    network = timm.create_model("resnet18", pretrained=False)
    save_file(network.state_dict(), tmp_path / "model.safetensors")
    monkeypatch.setattr(
        hub, "try_to_load_from_cache", lambda *a: asked.append(a) or str(tmp_path / "model.safetensors")
    )
    weights = find("timm/resnet18.a1_in1k")
    assert asked == [("timm/resnet18.a1_in1k", "model.safetensors")]
    assert weights.side == 224
    assert weights.mean == (0.485, 0.456, 0.406)
