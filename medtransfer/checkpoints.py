"""Checkpoints of other people: read without running their code, and renamed by rules that are written down.

Rules, each used only where it brings more tensors to their place:

- wrappers are opened: ``state_dict`` (Lightning), ``model``, ``model_state_dict``, ``teacher`` before ``student``
  (DINO), ``network``, ``net``, moving averages (``state_dict_ema``, ``model_ema``, ``ema``) last
- a prefix is taken off: ``module.``, ``model.``, ``backbone.``, ``encoder.``, ``_orig_mod.`` and the like, several in
  a row; what does not carry it (loss, projector, head) is outside of the backbone
- children by number: ``0.weight`` is the first child's (RadImageNet's ``backbone.4.0.conv1``)
- DenseNets of before 2018 and torchxrayvision (``norm.1`` is ``norm1``); MONAI's ``layers.norm1``
- vision transformers of timm, DINO and MAE; ConvNeXts of timm and of their authors; MONAI's SwinUNETR encoder trained
  by self-supervision; MONAI's older ``mlp.fc1``
- batch normalisation folded into convolutions: a convolution with a bias, and no normalisation, gets one that adds it
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from medtransfer.errors import WeightsError

if TYPE_CHECKING:
    from torch import Tensor

Shapes = Mapping[str, tuple[int, ...]]

_WRAPPERS = ("state_dict", "model_state_dict", "model", "teacher", "student", "network", "net", "network_weights",
             "params", "weights", "state_dict_ema", "model_ema", "ema")  # fmt: skip
_PREFIXES = ("module.", "model.", "backbone.", "encoder.", "_orig_mod.", "net.", "network.", "base_model.", "teacher.",
             "student.", "feature_extractor.", "features_extractor.", "trunk.", "base_encoder.", "encoder_q.",
             "momentum_encoder.", "image_encoder.", "vit.", "0.")  # fmt: skip
_DENSE = re.compile(r"\.(norm|relu|conv)\.([12])\.")


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Tensors of a checkpoint by name, wrappers such as ``state_dict`` opened.

    Raises
    ------
    WeightsError
        For a missing or damaged file, one that would run code, one that holds other things than
        tensors, and tensors that are not finite.
    """
    import torch

    if not path.is_file():
        raise WeightsError(
            "there is no such weights file", where=path.name, fix="give the path of a .safetensors or .pth file"
        )
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            found: object = load_file(path)
        except (SafetensorError, ValueError) as error:
            raise WeightsError("the weights file is damaged", where=path.name, got=str(error)) from error
    else:
        try:
            found = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # the unpickler of damaged bytes fails in any way it likes
            reason = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
            raise WeightsError(
                "the weights file is damaged or holds more than tensors, which could run code",
                where=path.name,
                got=reason,
                fix="save the state_dict alone, best as safetensors",
            ) from error
    tensors = _unwrapped(found, path.name)
    bad = [k for k, v in tensors.items() if v.is_floating_point() and not torch.isfinite(v).all()]
    if bad:
        raise WeightsError(
            "tensors hold values that are not finite",
            where=path.name,
            got=f"{len(bad)}, first {bad[0]}",
            fix="get the file again from its source",
        )
    return tensors


def _unwrapped(found: object, where: str) -> dict[str, Tensor]:
    import torch

    for _ in range(4):
        inner = next((found[k] for k in _WRAPPERS if isinstance(found, dict) and isinstance(found.get(k), dict)), None)
        if inner is None:
            break
        found = inner
    if not isinstance(found, dict) or not found or not all(isinstance(v, torch.Tensor) for v in found.values()):
        raise WeightsError(
            "the file does not hold a state_dict",
            where=where,
            got=type(found).__name__,
            fix="save model.state_dict() alone",
        )
    tensors: dict[str, Tensor] = {str(k): v for k, v in found.items()}
    for prefix in ("module.", "_orig_mod."):  # wrappers of training, never a part of a network
        if all(k.startswith(prefix) for k in tensors):
            tensors = {k.removeprefix(prefix): v for k, v in tensors.items()}
    return tensors


def fit_names(
    tensors: dict[str, Tensor],
    wanted: Shapes,
    *,
    children: Sequence[str] = (),
    pairs: Sequence[tuple[str, str, float]] = (),
) -> tuple[dict[str, Tensor], tuple[str, ...], frozenset[str]]:
    """Rename a checkpoint's tensors to a network's names.

    Parameters
    ----------
    tensors : dict
        As read.
    wanted : mapping of name to shape
        The network's tensors.
    children : sequence of str
        Names of the network's direct parts, in order.
    pairs : sequence of (str, str, float)
        Convolutions without a bias, the batch normalisation that follows each, and its epsilon.

    Returns
    -------
    tensors : dict
        By the network's names.
    rules : tuple of str
        What was done, for the receipt.
    outside : frozenset of str
        Tensors that did not carry the backbone's prefix.
    """
    rules: list[str] = []
    outside: set[str] = set()
    renames: list[tuple[str, Callable[[str], str]]] = [
        ("children by number", lambda k: _by_number(k, children)),
        ("DenseNet names of before 2018", lambda k: _DENSE.sub(r".\1\2.", k)),
        ("MONAI's DenseNet layers", lambda k: re.sub(r"(denselayer\d+)\.(?!layers\.)", r"\1.layers.", k)),
        ("torchvision's DenseNet layers", lambda k: re.sub(r"(denselayer\d+)\.layers\.", r"\1.", k)),
        ("timm's and DINO's transformer", _from_timm_vit),
        ("the ConvNeXt of its authors", _from_convnext),
        ("timm's ConvNeXt", _from_timm_convnext),
        ("MONAI's encoder alone", lambda k: f"swinViT.{_linear_names(k)}"),
        ("MONAI's older layer names", _linear_names),
        ("ResNet in parts", lambda k: re.sub(r"^(?:layer0|stem)\.", "", k)),
    ]
    for _ in range(6):
        best, name, found, rest = _fitting(tensors, wanted), "", tensors, set[str]()
        for prefix in _PREFIXES:
            inside = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
            fitting = max(_fitting(inside, wanted), *(_fitting(_renamed(inside, f), wanted) for _, f in renames))
            if inside and fitting > best:
                best, name, found = fitting, f"prefix {prefix} taken off", inside
                rest = {k for k in tensors if not k.startswith(prefix)}
        for label, change in renames:
            changed = _renamed(tensors, change)
            if _fitting(changed, wanted) > best:
                best, name, found, rest = _fitting(changed, wanted), label, changed, set[str]()
        if not name:
            break
        rules.append(name)
        tensors, outside = found, outside | rest
    tensors, unfolded = _unfolded(tensors, wanted, pairs)
    if unfolded:
        rules.append(f"{unfolded} folded batch normalisations restored")
    return tensors, tuple(rules), frozenset(outside)


def _fitting(tensors: Mapping[str, Tensor], wanted: Shapes) -> int:
    """Names in their place; shapes count more, since names alone may agree by chance."""
    return sum(1 + 2 * (tuple(v.shape) == wanted[k]) for k, v in tensors.items() if k in wanted)


def _renamed(tensors: Mapping[str, Tensor], change: Callable[[str], str]) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for key, value in tensors.items():
        new = change(key)
        if new in found:  # a rule that lets two tensors meet is none
            return {}
        found[new] = value
    return found


def _by_number(key: str, children: Sequence[str]) -> str:
    first, dot, rest = key.partition(".")
    return f"{children[int(first)]}{dot}{rest}" if first.isdigit() and int(first) < len(children) else key


def _linear_names(key: str) -> str:
    return key.replace(".mlp.fc1.", ".mlp.linear1.").replace(".mlp.fc2.", ".mlp.linear2.")


def _from_timm_vit(key: str) -> str:
    named = {"cls_token": "class_token", "pos_embed": "encoder.pos_embedding"}
    if key in named:
        return named[key]
    key = re.sub(r"^patch_embed\.proj\.", "conv_proj.", key)
    key = re.sub(r"^norm\.", "encoder.ln.", key)
    key = re.sub(r"^blocks\.(\d+)\.", r"encoder.layers.encoder_layer_\1.", key)
    for theirs, ours in (
        ("norm1.", "ln_1."), ("norm2.", "ln_2."), ("attn.qkv.", "self_attention.in_proj_"),
        ("attn.proj.", "self_attention.out_proj."), ("mlp.fc1.", "mlp.0."), ("mlp.fc2.", "mlp.3."),
    ):  # fmt: skip
        key = re.sub(rf"^(encoder\.layers\.encoder_layer_\d+)\.{re.escape(theirs)}", rf"\1.{ours}", key)
    return key


def _convnext_block(key: str, names: Mapping[str, str]) -> str:
    for theirs, ours in names.items():
        key = re.sub(rf"\.{re.escape(theirs)}(\.|$)", rf".{ours}\1", key)
    return key


def _from_convnext(key: str) -> str:
    down = re.match(r"^downsample_layers\.(\d)\.(.*)$", key)
    if down:
        return f"features.{2 * int(down[1])}.{down[2]}"
    block = re.match(r"^stages\.(\d)\.(\d+)\.(.*)$", key)
    if block:
        key = f"features.{2 * int(block[1]) + 1}.{block[2]}.{block[3]}"
        names = {"dwconv": "block.0", "norm": "block.2", "pwconv1": "block.3", "pwconv2": "block.5"}
        return _convnext_block(key, names | {"gamma": "layer_scale"})
    return key


def _from_timm_convnext(key: str) -> str:
    key = re.sub(r"^stem\.(\d)\.", r"features.0.\1.", key)
    down = re.match(r"^stages\.(\d)\.downsample\.(.*)$", key)
    if down:
        return f"features.{2 * int(down[1])}.{down[2]}"
    block = re.match(r"^stages\.(\d)\.blocks\.(\d+)\.(.*)$", key)
    if block:
        key = f"features.{2 * int(block[1]) + 1}.{block[2]}.{block[3]}"
        names = {"conv_dw": "block.0", "mlp.fc1": "block.3", "mlp.fc2": "block.5", "norm": "block.2"}
        return _convnext_block(key, names | {"gamma": "layer_scale"})
    return key


def _unfolded(
    tensors: dict[str, Tensor], wanted: Shapes, pairs: Sequence[tuple[str, str, float]]
) -> tuple[dict[str, Tensor], int]:
    """Give folded convolutions their normalisation back: scale one, and the bias as its shift."""
    import torch

    found, count = dict(tensors), 0
    for conv, norm, eps in pairs:
        bias = f"{conv}.bias"
        if bias not in found or bias in wanted or f"{norm}.weight" in found or f"{norm}.running_mean" in found:
            continue
        shift = found.pop(bias)
        found |= {f"{norm}.weight": torch.ones_like(shift), f"{norm}.bias": shift}
        found |= {
            f"{norm}.running_mean": torch.zeros_like(shift),
            f"{norm}.running_var": torch.full_like(shift, 1 - eps),
        }
        count += 1
    return found, count
