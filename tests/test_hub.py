"""timm's networks through the extra hub."""

import pytest
import torch

from medtransfer.errors import MissingPackage
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
