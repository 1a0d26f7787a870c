"""timm's networks through the extra ``hub``: any whose blocks are called one after the other."""

from __future__ import annotations

import contextlib
import os
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from medtransfer.backbones.architecture import Architecture, Stages
from medtransfer.cache import file_digest
from medtransfer.errors import WeightsError, require
from medtransfer.weights import Weights, refuse_offline

if TYPE_CHECKING:
    from torch import nn

_TOPS = ("fc.", "head.", "classifier.", "head_drop.", "global_pool.", "norm_head.")


@cache
def timm_architecture(name: str) -> Architecture:
    """``timm/<model>`` as an architecture, its stages read from timm's own list of feature levels.

    Raises
    ------
    MissingPackage
        Where timm is not installed.
    WeightsError
        Where timm has no such model, or one that is not a chain of blocks.
    """
    timm = require("timm", "hub")
    import torch

    model = name.removeprefix("timm/")

    def make(dims: int, channels: int) -> nn.Module:
        return timm.create_model(model, pretrained=False, in_chans=channels)  # type: ignore[no-any-return]

    try:
        with torch.device("meta"):
            network = make(2, 3)
    except RuntimeError as error:
        raise WeightsError(f"timm has no model '{model}'", got=str(error)[:80], fix="timm.list_models()") from error
    levels = [level["module"] for level in getattr(network, "feature_info", [])]
    stages = _chain(network, levels)
    if not levels or not stages:
        raise WeightsError(
            f"timm's {model} is not a chain of blocks with feature levels", fix="choose a ResNet, RegNet or ConvNeXt"
        )
    stem = next(k for k, m in network.named_modules() if isinstance(m, torch.nn.Conv2d))
    return Architecture(
        name, make, stages, _TOPS, stem, "global_pool" if hasattr(network, "global_pool") else "head",
        source=f"timm, {model}", licence=str(getattr(timm.get_pretrained_cfg(model), "license", None) or "not stated"),
    )  # fmt: skip


def _chain(network: nn.Module, levels: list[str]) -> Stages:
    """Modules in the order of registration, cut after each feature level; containers of levels are opened."""
    steps: list[str] = []
    for name, child in network.named_children():
        opened = any(level.startswith(f"{name}.") for level in levels)
        steps += [f"{name}.{inner}" for inner, _ in child.named_children()] if opened else [name]
    steps = [s for s in steps if f"{s}." not in _TOPS and s.split(".")[0] + "." not in _TOPS]
    stages: list[tuple[str, tuple[str, ...]]] = []
    current: list[str] = []
    for step in steps:
        current.append(step)
        if step in levels:
            stages.append((f"level{len(stages)}", tuple(current)))
            current = []
    if stages and current:
        stages[-1] = (stages[-1][0], (*stages[-1][1], *current))
    return tuple(stages)


def timm_weights(name: str, *, fetch: bool = False) -> Weights:
    """timm's published weights of a model, from the Hugging Face cache (``HF_HOME``), or downloaded if ``fetch``."""
    hub = require("huggingface_hub", "hub")
    timm = require("timm", "hub")
    model = name.removeprefix("timm/")
    settings = timm.get_pretrained_cfg(model)
    if settings is None or not settings.hf_hub_id:
        raise WeightsError(
            f"timm publishes no weights for '{model}'", fix="name one with its tag, e.g. resnet50.a1_in1k"
        )
    repo, filename = settings.hf_hub_id, "model.safetensors"
    found = hub.try_to_load_from_cache(repo, filename)
    if not isinstance(found, str):
        place = f"the Hugging Face cache (HF_HOME) as {filename} of {repo}"
        if not fetch:
            raise WeightsError(
                f"the weights {name} are not on this machine",
                got=f"no file {filename} of {repo}",
                fix=f"run 'medtransfer weights fetch {name}' on a connected machine, then 'weights export' there "
                f"and 'weights import' here; or put the file into {place}",
            )
        refuse_offline(name, filename, "", place)
        os.environ.setdefault("HF_HUB_DOWNLOAD_TIMEOUT", "10")
        try:
            _reach(hub.hf_hub_url(repo, filename))
            found = hub.hf_hub_download(repo, filename)
        except (OSError, hub.errors.HfHubHTTPError) as error:
            raise WeightsError(
                "the download failed",
                where=name,
                got=type(error).__name__,
                fix=f"fetch {filename} of {repo} on a connected machine and put it into {place}; its hash is not "
                "published in advance, 'weights export' pins that of the file that was fetched",
            ) from error
    file = Path(found)
    return Weights(
        name, name, tuple(settings.mean), tuple(settings.std), file, file_digest(file),
        licence=settings.license or "not stated", origin=f"timm {model}", side=int(settings.input_size[-1]),
    )  # fmt: skip


def _reach(address: str) -> None:
    """Fail at once where there is no network: the hub's client would try again and again."""
    with contextlib.suppress(HTTPError), urlopen(Request(address, method="HEAD"), timeout=10):  # noqa: S310 https
        pass
