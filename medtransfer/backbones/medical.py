"""MONAI's networks, built in 2D or 3D as the weights are; for checkpoints of MedicalNet, MONAI bundles and your own."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from medtransfer.backbones.architecture import Architecture, Stages
from medtransfer.backbones.vision import densenet_stages
from medtransfer.errors import require

if TYPE_CHECKING:
    from torch import nn

_OWN = "none; for MONAI bundles and checkpoints of your own"
_EFFICIENT_BLOCKS = (1, 2, 3, 5, 7)


def _densenet(name: str, dims: int, channels: int) -> nn.Module:
    from monai.networks import nets

    return getattr(nets, name)(spatial_dims=dims, in_channels=channels, out_channels=1)  # type: ignore[no-any-return]


def _resnet(depth: int, medicalnet: bool, dims: int, channels: int) -> nn.Module:
    from monai.networks import nets

    from medtransfer.backbones.shortcut import PaddedShortcut

    layers = {10: [1, 1, 1, 1], 18: [2, 2, 2, 2], 34: [3, 4, 6, 3], 50: [3, 4, 6, 3]}[depth]
    shortcut = "A" if medicalnet and depth in (18, 34) else "B"
    network: nn.Module = nets.ResNet(
        "bottleneck" if depth == 50 else "basic",
        layers,
        [64, 128, 256, 512],
        spatial_dims=dims,
        n_input_channels=channels,
        conv1_t_stride=2 if medicalnet else 1,
        shortcut_type=shortcut,
        bias_downsample=not medicalnet,
        num_classes=1,
    )
    for block in network.modules():  # MONAI's own cuts the gradient, cannot be exported, and has fixed dimensions
        if isinstance(found := getattr(block, "downsample", None), partial):
            block.downsample = PaddedShortcut(found.keywords["planes"], found.keywords["stride"])
    return network


def _senet(dims: int, channels: int) -> nn.Module:
    from monai.networks import nets

    return nets.SEResNet50(spatial_dims=dims, in_channels=channels, num_classes=1)  # type: ignore[no-any-return]


def _efficientnet(version: str, dims: int, channels: int) -> nn.Module:
    from monai.networks import nets

    return nets.EfficientNetBN(  # type: ignore[no-any-return]
        f"efficientnet-{version}", pretrained=False, spatial_dims=dims, in_channels=channels, num_classes=1
    )


def _vit(dims: int, channels: int) -> nn.Module:
    require("einops", "hub")  # MONAI's layer needs it
    from monai.networks import nets

    from medtransfer.backbones.tokens import VitEncoder

    size = (224,) * 2 if dims == 2 else (96,) * 3
    return VitEncoder(
        nets.ViT(in_channels=channels, img_size=size, patch_size=16, spatial_dims=dims, classification=True)
    )


def _swin(dims: int, channels: int) -> nn.Module:
    require("einops", "hub")  # MONAI's layer needs it
    from monai.networks.nets.swin_unetr import SwinTransformer
    from torch import nn

    from medtransfer.backbones.tokens import SwinEncoder

    return SwinEncoder(
        SwinTransformer(
            in_chans=channels, embed_dim=48, window_size=(7,) * dims, patch_size=(2,) * dims, depths=(2, 2, 2, 2),
            num_heads=(3, 6, 12, 24), norm_layer=nn.LayerNorm, spatial_dims=dims,
        )
    )  # fmt: skip


def _segresnet(width: int, dims: int, channels: int) -> nn.Module:
    from monai.networks import nets

    from medtransfer.backbones.tokens import SegEncoder

    return SegEncoder(nets.SegResNet(spatial_dims=dims, init_filters=width, in_channels=channels))


_RESIDUAL: Stages = (
    ("stem", ("conv1", "bn1", "act", "maxpool")),
    *((f"layer{i}", (f"layer{i}",)) for i in (1, 2, 3, 4)),
)


def _efficient_stages() -> Stages:
    ends = _EFFICIENT_BLOCKS
    blocks = [
        (f"block{i}", tuple(f"_blocks.{j}" for j in range(a, b)))
        for i, (a, b) in enumerate(zip((0, *ends[:-1]), ends, strict=True), start=1)
    ]
    head = ("head", ("_conv_head_padding", "_conv_head", "_bn1", "_swish"))
    return (("stem", ("_conv_stem_padding", "_conv_stem", "_bn0", "_swish")), *blocks, head)


def _vit_stages() -> Stages:
    stem = ("patch_embedding.patch_embeddings", "cls_token", "patch_embedding.position_embeddings")
    blocks = [(f"blocks{i + 1}", tuple(f"blocks.{j}" for j in range(3 * i, 3 * i + 3))) for i in range(4)]
    return (("stem", stem), *blocks[:3], ("blocks4", (*blocks[3][1], "norm")))


def _join_vit(network: nn.Module, stage: str) -> nn.Module:
    from medtransfer.backbones.tokens import Blocks, Tokens

    if stage == "stem":
        return Tokens(
            network.get_submodule("patch_embedding.patch_embeddings"),
            network.get_parameter("cls_token"),
            network.get_parameter("patch_embedding.position_embeddings"),
        )
    return Blocks(*(network.get_submodule(p) for p in dict(_vit_stages())[stage]))


_SWIN: Stages = (
    ("stem", ("swinViT.patch_embed",)),
    *((f"layers{i}", (f"swinViT.layers{i}.0",)) for i in (1, 2, 3, 4)),
)


def _join_swin(network: nn.Module, stage: str) -> nn.Module:
    from torch import nn

    from medtransfer.backbones.tokens import ChannelNorm, Contiguous

    layer = network.get_submodule(dict(_SWIN)[stage][0])
    return nn.Sequential(Contiguous(), layer, *([ChannelNorm()] if stage == "layers4" else []))


def table() -> list[Architecture]:
    """Every architecture of MONAI that is offered."""
    both = (2, 3)
    rows = []

    def add(
        name: str, make: Callable[[int, int], nn.Module], stages: Stages, top: tuple[str, ...], stem: str, tap: str
    ) -> None:
        rows.append(Architecture(name, make, stages, top, stem, tap, dims=both, source=_OWN, licence="Apache-2.0"))

    for depth in (121, 169):
        name = f"DenseNet{depth}"
        stages = densenet_stages("class_layers.relu")
        add(f"monai_densenet{depth}", partial(_densenet, name), stages, ("class_layers.",), "features.conv0", "class_layers.pool")  # fmt: skip  # noqa: E501
    for depth in (10, 18, 34, 50):
        add(f"monai_resnet{depth}", partial(_resnet, depth, False), _RESIDUAL, ("fc.",), "conv1", "avgpool")
    for depth in (10, 18, 34, 50):
        rows.append(
            Architecture(
                f"medicalnet_resnet{depth}", partial(_resnet, depth, True), _RESIDUAL, ("fc.", "conv_seg."), "conv1",
                "avgpool", dims=both, channels=1,
                source="MedicalNet, 23 data sets of CT and MR", licence="MIT",
            )
        )  # fmt: skip
    layers = (("stem", ("layer0",)), *_RESIDUAL[1:])
    add("monai_seresnet50", _senet, layers, ("last_linear.",), "layer0.conv1", "adaptive_avg_pool")
    for version in ("b0", "b1", "b2", "b3", "b4"):
        rows.append(
            Architecture(
                f"monai_efficientnet_{version}", partial(_efficientnet, version), _efficient_stages(), ("_fc.",),
                "_conv_stem", "_avg_pooling", dims=both, pad="_conv_stem_padding", source=_OWN, licence="Apache-2.0",
            )
        )  # fmt: skip
    rows.append(
        Architecture(
            "monai_vit_b_16", _vit, _vit_stages(), ("classification_head.",), "patch_embedding.patch_embeddings", "",
            _join_vit, dims=both, channels=1, inflatable=False, positions="patch_embedding.position_embeddings",
            source=_OWN, licence="Apache-2.0",
        )
    )  # fmt: skip
    rows.append(
        Architecture(
            "monai_swinunetr", _swin, _SWIN, ("encoder", "decoder", "out.", "swinViT.norm."),
            "swinViT.patch_embed.proj", "", _join_swin, dims=both, channels=1, inflatable=False, source=_OWN,
            licence="Apache-2.0", min_side=64,
        )
    )  # fmt: skip
    for width in (8, 16, 32):
        stages = (("stem", ("convInit",)), *((f"down{i}", (f"down_layers.{i}",)) for i in range(4)))
        rows.append(
            Architecture(
                f"monai_segresnet{width}", partial(_segresnet, width), stages, ("up_", "conv_final.", "vae_"),
                "convInit.conv", "", dims=both, channels=1, source=_OWN, licence="Apache-2.0",
            )
        )  # fmt: skip
    return rows
