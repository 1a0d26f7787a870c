"""Decoders on encoders: shapes, strides, freezing, and that a checkpoint is enough to build them again."""

from itertools import pairwise

import pytest
import torch

from medtransfer.errors import WeightsError
from medtransfer.segment.decoder import Decoder
from medtransfer.segment.network import Blueprint, build, load_segmenter


@pytest.mark.parametrize(
    ("name", "dims", "more"),
    [
        ("random/resnet18", 2, {}),
        ("random/mobilenet_v2", 2, {}),
        ("random/densenet121", 2, {"until": "block2"}),
        ("random/resnet18", 3, {}),
        ("random/resnet18", 3, {"depth": "acs", "until": "layer2"}),
        ("random/resnet18", 3, {"flat_until": "layer1"}),
        ("random/monai_segresnet8", 3, {}),
        ("random/monai_resnet10", 3, {}),
        ("embedded/compact2d", 2, {}),
        ("embedded/compact3d", 3, {}),
        ("random/unet", 2, {}),
        ("random/unet", 3, {"strides": ((1, 1, 1), (1, 2, 2), (2, 2, 2))}),
        ("random/segresnet", 3, {"width": 8}),
        ("random/dynunet", 3, {"width": 8}),
    ],
)
def test_any_encoder_answers_for_every_voxel(name, dims, more):
    segmenter = load_segmenter(name, dims=dims, classes=3, **{"width": 8, **more}).eval()
    x = torch.rand(2, 1, *((32, 48) if dims == 2 else (32, 48, 32)))
    with torch.no_grad():
        assert segmenter(x).shape == (2, 3, *x.shape[2:])
        levels = segmenter.pyramid(x)
    assert levels[0].shape[2:] == x.shape[2:]
    assert [a.shape[2] >= b.shape[2] for a, b in pairwise(levels)] == [True] * (len(levels) - 1)


def test_sizes_that_no_stride_divides_are_answered_too():
    for name in ("random/unet", "embedded/compact3d"):
        segmenter = load_segmenter(name, classes=2, width=4).eval()
        with torch.no_grad():
            assert segmenter(torch.rand(2, 1, 19, 30, 21)).shape == (2, 2, 19, 30, 21)


def test_skips_sit_at_the_strides_of_their_stages():
    head = load_segmenter("random/resnet18", dims=2, classes=2).head
    assert isinstance(head, Decoder)
    assert [(level.stride[0], level.stage) for level in head.levels] == [
        (1, "image"), (2, ""), (4, "layer1"), (8, "layer2"), (16, "layer3"), (32, "layer4"),
    ]  # fmt: skip
    head = load_segmenter("random/resnet18", dims=3, classes=2, flat_until="layer2").head
    assert [level.stride for level in head.levels] == [
        (1, 1, 1), (1, 2, 2), (1, 4, 4), (1, 8, 8), (2, 16, 16), (4, 32, 32),
    ]  # fmt: skip


def test_tokens_and_slices_have_no_maps_to_decode():
    with pytest.raises(WeightsError, match="no maps"):
        load_segmenter("random/vit_b_16", dims=2, classes=2)
    with pytest.raises(WeightsError, match="no maps"):
        load_segmenter("random/resnet18", dims=3, classes=2, depth="slices")


@pytest.mark.parametrize("name", ["random/unet", "embedded/compact3d", "random/segresnet", "random/dynunet"])
def test_the_blueprint_is_enough_to_take_the_tensors(name):
    first = load_segmenter(name, classes=3, width=8, seed=3).eval()
    again = build(Blueprint.from_json(first.blueprint.to_json())).eval()
    again.load_state_dict(first.state_dict())
    x = torch.rand(2, 1, 16, 24, 16)
    with torch.no_grad():
        assert torch.equal(first(x), again(x))


def test_monais_network_is_as_it_is():
    from monai.networks.nets import SegResNet

    ours = load_segmenter("random/segresnet", classes=3, width=8).eval()
    theirs = SegResNet(3, 8, 1, 3).eval()
    names = {k.replace("stages.network.", "").replace("head.", "conv_final."): v for k, v in ours.state_dict().items()}
    theirs.load_state_dict(names)
    x = torch.rand(2, 1, 16, 16, 16)
    with torch.no_grad():
        assert torch.equal(ours(x), theirs(x))


def test_a_file_of_monais_network_comes_in_whole_or_is_refused(tmp_path):
    from monai.networks.nets import SegResNet
    from safetensors.torch import save_file

    theirs = SegResNet(3, 8, 1, 3).eval()
    save_file(theirs.state_dict(), tmp_path / "seg.safetensors")
    ours = load_segmenter(str(tmp_path / "seg.safetensors"), arch="segresnet", classes=3, width=8).eval()
    x = torch.rand(2, 1, 16, 16, 16)
    with torch.no_grad():
        assert torch.equal(ours(x), theirs(x))
    with pytest.raises(WeightsError, match="not of this network"):
        load_segmenter(str(tmp_path / "seg.safetensors"), arch="segresnet", classes=2, width=8)


def test_what_is_frozen_gets_no_gradient_and_keeps_its_statistics():
    segmenter = load_segmenter("embedded/compact3d", classes=2, width=8)
    segmenter.train_only(["block4"]).train()
    before = {k: v.clone() for k, v in segmenter.stages.state_dict().items()}
    sum(level.square().mean() for level in segmenter.pyramid(torch.rand(2, 1, 32, 32, 32))).backward()
    learning = {n.split(".")[0] for n, p in segmenter.stages.named_parameters() if p.grad is not None}
    assert learning == {"block4"}
    assert all(p.grad is not None for p in segmenter.head.parameters())
    assert all(torch.equal(v, before[k]) for k, v in segmenter.stages.state_dict().items())


def test_seeds_decide_what_starts_untrained():
    one, same, other = (
        load_segmenter("embedded/compact3d", classes=2, width=8, seed=s).state_dict() for s in (0, 0, 1)
    )
    assert all(torch.equal(one[k], same[k]) for k in one)
    assert not torch.equal(one["head.answers.0.weight"], other["head.answers.0.weight"])
    assert torch.equal(one["stages.block2.0.conv1.weight"], other["stages.block2.0.conv1.weight"])
