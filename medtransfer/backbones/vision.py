"""torchvision's networks, by family."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from medtransfer.backbones.architecture import Architecture, Stages

if TYPE_CHECKING:
    from torch import nn

_VIT_STEM = ("conv_proj", "class_token", "encoder.pos_embedding")
_SMALL_VITS = {"vit_s_16": (16, 384, 6), "vit_ti_16": (16, 192, 3)}  # sizes torchvision has no name for


def _make(name: str, dims: int, channels: int) -> nn.Module:
    from torch import nn
    from torchvision import models

    if name in _SMALL_VITS:
        patch, width, heads = _SMALL_VITS[name]
        whole: nn.Module = models.VisionTransformer(224, patch, 12, heads, width, 4 * width)
    elif name == "inception_v3":
        whole = models.get_model(name, weights=None, transform_input=False, init_weights=True)
    else:
        whole = models.get_model(name, weights=None)
    if channels != 3:
        path, first = next((p, m) for p, m in whole.named_modules() if isinstance(m, nn.Conv2d))
        parent, _, child = path.rpartition(".")
        size, step, edge = first.kernel_size, first.stride, first.padding
        with_bias = first.bias is not None
        stem = nn.Conv2d(channels, first.out_channels, size, step, edge, bias=with_bias)  # type: ignore[arg-type]
        setattr(whole.get_submodule(parent), child, stem)
    return whole


def _residual() -> Stages:
    return (("stem", ("conv1", "bn1", "relu", "maxpool")), *((f"layer{i}", (f"layer{i}",)) for i in (1, 2, 3, 4)))


def _features(*ends: int) -> Stages:
    """Stages of a network whose layers lie in ``features``; each ends before the given index."""
    starts = (0, *ends[:-1])
    names = ("stem", *(f"block{i}" for i in range(1, len(ends))))
    return tuple(
        (name, tuple(f"features.{i}" for i in range(a, b))) for name, a, b in zip(names, starts, ends, strict=True)
    )


def _vgg(*ends: int) -> Stages:
    return tuple((f"block{i}", modules) for i, (_, modules) in enumerate(_features(*ends), start=1))


def densenet_stages(last: str = "+relu") -> Stages:
    """Stages of a DenseNet; its last activation is a function in torchvision's network."""

    def path(*names: str) -> tuple[str, ...]:
        return tuple(f"features.{name}" for name in names)

    return (
        ("stem", path("conv0", "norm0", "relu0", "pool0")),
        ("block1", path("denseblock1")),
        ("block2", path("transition1", "denseblock2")),
        ("block3", path("transition2", "denseblock3")),
        ("block4", (*path("transition3", "denseblock4", "norm5"), last)),
    )


def _regnet() -> Stages:
    return (("stem", ("stem",)), *((f"block{i}", (f"trunk_output.block{i}",)) for i in (1, 2, 3, 4)))


def _inception() -> Stages:
    return (
        ("stem", ("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "maxpool1")),
        ("block1", ("Conv2d_3b_1x1", "Conv2d_4a_3x3", "maxpool2")),
        ("mixed5", ("Mixed_5b", "Mixed_5c", "Mixed_5d")),
        ("mixed6", ("Mixed_6a", "Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e")),
        ("mixed7", ("Mixed_7a", "Mixed_7b", "Mixed_7c")),
    )


def _vit() -> Stages:
    def layers(first: int, last: int) -> tuple[str, ...]:
        return tuple(f"encoder.layers.encoder_layer_{i}" for i in range(first, last))

    ends = (*layers(9, 12), "encoder.ln")
    return (("stem", _VIT_STEM), *((f"blocks{i + 1}", layers(3 * i, 3 * i + 3)) for i in range(3)), ("blocks4", ends))


def _join_vit(network: nn.Module, stage: str) -> nn.Module:
    from medtransfer.backbones.tokens import Blocks, Tokens

    if stage == "stem":
        encoder = network.get_submodule("encoder")
        return Tokens(
            network.get_submodule("conv_proj"),
            network.get_parameter("class_token"),
            encoder.get_parameter("pos_embedding"),
        )
    return Blocks(*(network.get_submodule(p) for p in dict(_vit())[stage]))


def _swin() -> Stages:
    return (
        ("stem", ("features.0",)),
        ("block1", ("features.1",)),
        ("block2", ("features.2", "features.3")),
        ("block3", ("features.4", "features.5")),
        ("block4", ("features.6", "features.7", "norm")),
    )


def _join_swin(network: nn.Module, stage: str) -> nn.Module:
    from torch import nn

    from medtransfer.backbones.tokens import Move

    layers = [network.get_submodule(p) for p in dict(_swin())[stage]]
    before = [] if stage == "stem" else [Move(1, -1)]
    return nn.Sequential(*before, *layers, Move(-1, 1))


def table() -> list[Architecture]:
    """Every architecture of torchvision that is offered."""
    fc, classifier = ("fc.",), ("classifier.",)
    rows = []

    def add(
        name: str, stages: Stages, top: tuple[str, ...], stem: str, side: int = 32, inflatable: bool = True
    ) -> None:
        rows.append(
            Architecture(name, partial(_make, name), stages, top, stem, "avgpool", min_side=side, inflatable=inflatable)
        )

    add("vgg11", _vgg(3, 6, 11, 16, 21), classifier, "features.0")
    add("vgg16", _vgg(5, 10, 17, 24, 31), classifier, "features.0")
    add("vgg19", _vgg(5, 10, 19, 28, 37), classifier, "features.0")
    add("vgg11_bn", _vgg(4, 8, 15, 22, 29), classifier, "features.0")
    add("vgg16_bn", _vgg(7, 14, 24, 34, 44), classifier, "features.0")
    add("inception_v3", _inception(), ("fc.", "AuxLogits."), "Conv2d_1a_3x3.conv", 75, inflatable=False)
    for name in ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152"):
        add(name, _residual(), fc, "conv1")
    for name in ("resnext50_32x4d", "resnext101_32x8d", "wide_resnet50_2", "wide_resnet101_2"):
        add(name, _residual(), fc, "conv1")
    for name in ("densenet121", "densenet169", "densenet201"):
        rows.append(
            Architecture(name, partial(_make, name), densenet_stages(), classifier, "features.conv0", "classifier")
        )
    add("mobilenet_v2", _features(1, 4, 7, 14, 18, 19), classifier, "features.0.0")
    rows[-1] = Architecture(**{**rows[-1].__dict__, "tap": "classifier"})
    add("mobilenet_v3_small", _features(1, 2, 4, 9, 12, 13), classifier, "features.0.0")
    add("mobilenet_v3_large", _features(2, 4, 7, 13, 16, 17), classifier, "features.0.0")
    for name in ("efficientnet_b0", "efficientnet_b1", "efficientnet_b2", "efficientnet_b3", "efficientnet_b4"):
        add(name, _features(2, 3, 4, 6, 8, 9), classifier, "features.0.0")
    add("efficientnet_v2_s", _features(2, 3, 4, 6, 7, 8), classifier, "features.0.0")
    for name in ("convnext_tiny", "convnext_small", "convnext_base"):
        add(name, _features(2, 4, 6, 8), classifier, "features.0.0")
    for name in ("regnet_y_400mf", "regnet_y_800mf", "regnet_y_1_6gf", "regnet_y_3_2gf", "regnet_x_400mf"):
        add(name, _regnet(), fc, "stem.0")
    for name in ("vit_b_16", *_SMALL_VITS):
        source = "torchvision, ImageNet-1k" if name == "vit_b_16" else "none; for checkpoints of your own"
        rows.append(
            Architecture(
                name, partial(_make, name), _vit(), ("heads.",), "conv_proj", "heads", _join_vit, inflatable=False,
                positions="encoder.pos_embedding", source=source,
            )
        )  # fmt: skip
    for name in ("swin_t", "swin_s", "swin_v2_t"):
        rows.append(
            Architecture(
                name, partial(_make, name), _swin(), ("head.",), "features.0.0", "avgpool", _join_swin,
                inflatable=False,
            )
        )  # fmt: skip
    return rows
