"""The fast CPU form gives what the model gives, or is not used."""

import copy

import pytest
import torch

from medtransfer.certify import fill
from medtransfer.fastform import TOLERANCE, FusedConv, fast_form, features_of
from medtransfer.model import load_model

FUSED = ["resnet18", "mobilenet_v2", "mobilenet_v3_small", "efficientnet_b0"]


def filled(name, **options):
    model = load_model(f"random/{name}", **options)
    fill(model)
    return model.eval()


@pytest.mark.parametrize("name", [*FUSED, pytest.param("resnet50", marks=pytest.mark.slow), pytest.param("densenet121", marks=pytest.mark.slow)])  # fmt: skip  # noqa: E501
def test_fused_features_equal_the_models(name):
    model = filled(name)
    fast, exact = fast_form(model), copy.deepcopy(model).double()
    assert fast is not None
    for n, side in ((2, 97), (3, 128), (2, 97)):  # other shapes are packed anew
        x = torch.rand(n, 1, side, side)
        before = x.clone()
        with torch.inference_mode():
            truth = exact.features(x.double())
            rounding = (model.features(x) - truth).abs().max()  # random weights magnify it more than trained ones
            error = (fast(x) - truth).abs().max()
        assert error <= max(TOLERANCE * truth.abs().max(), 3 * rounding)
        assert torch.equal(x, before)


def test_stages_that_are_pooled_on_the_way_are_not_overwritten():
    model = filled("resnet18", pool_from=("stem", "layer1", "layer2", "layer3", "layer4"), pool="mean_std")
    x = torch.rand(2, 1, 97, 97)
    with torch.inference_mode():
        wanted, found = model.features(x), features_of(model, x)(x)
    start = 0
    for width in (64, 64, 128, 256, 512):
        part = slice(start, start + 2 * width)
        assert (found[:, part] - wanted[:, part]).abs().max() <= 1e-5 * wanted[:, part].abs().max()
        start += 2 * width


def test_the_model_itself_stays_as_it_was():
    model = filled("resnet18")
    before = {k: v.clone() for k, v in model.state_dict().items()}
    fast = fast_form(model)
    fast(torch.rand(2, 1, 97, 97))
    assert not any(isinstance(m, FusedConv) for m in model.modules())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_eager_is_kept_where_the_fast_form_is_wrong_or_cannot_be_had(monkeypatch):
    model, x = filled("resnet18"), torch.rand(2, 1, 97, 97)
    assert features_of(model, x) != model.features
    assert features_of(model, x[..., :32, :32]) == model.features
    transformer = load_model("random/vit_ti_16").eval()
    assert features_of(transformer, x) == transformer.features

    def broken(self, x, other=None):
        raise RuntimeError("no such operator")

    monkeypatch.setattr(FusedConv, "forward", broken)
    assert features_of(model, x) == model.features
    monkeypatch.setattr("medtransfer.fastform.fast_form", lambda m: lambda x: 1.001 * m.features(x))
    assert features_of(model, x) == model.features
