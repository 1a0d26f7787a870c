"""Backbones by name: torchvision's networks without their top, cut into ordered stages."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from medtransfer.cache import file_digest
from medtransfer.errors import WeightsError
from medtransfer.weights import Weights, stored, stored_as

if TYPE_CHECKING:
    from torch import nn

Stages = tuple[tuple[str, tuple[str, ...]], ...]


@dataclass(frozen=True)
class Architecture:
    """A network: how it is built and where it can be cut.

    Parameters
    ----------
    name : str
        torchvision's name.
    stages : tuple of (name, module paths)
        In the order data walk; the modules of a stage are called one after the other.
    top : tuple of str
        Prefixes of the tensors that belong to the classifier and are left behind.
    min_side : int
        Smallest image side the stages can take.
    """

    name: str
    stages: Stages
    top: tuple[str, ...]
    min_side: int = 32

    @property
    def inflatable(self) -> bool:
        """Whether every layer has a 3D twin."""
        return not self.name.startswith(("convnext", "inception"))

    def build(self) -> nn.Module:
        """The whole network with random weights, on whatever device is the default."""
        from torchvision import models

        options: dict[str, object] = {"weights": None}
        if self.name == "inception_v3":
            options |= {"transform_input": False, "init_weights": True}
        return models.get_model(self.name, **options)  # type: ignore[no-any-return]


def _resnet() -> Stages:
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


def _densenet() -> Stages:
    def path(*names: str) -> tuple[str, ...]:
        return tuple(f"features.{name}" for name in names)

    return (
        ("stem", path("conv0", "norm0", "relu0", "pool0")),
        ("block1", path("denseblock1")),
        ("block2", path("transition1", "denseblock2")),
        ("block3", path("transition2", "denseblock3")),
        ("block4", (*path("transition3", "denseblock4", "norm5"), "+relu")),
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


def _table() -> dict[str, Architecture]:
    fc, classifier = ("fc.",), ("classifier.",)
    rows: list[tuple[str, Stages, tuple[str, ...], int]] = [
        ("vgg16", _vgg(5, 10, 17, 24, 31), classifier, 32),
        ("vgg16_bn", _vgg(7, 14, 24, 34, 44), classifier, 32),
        ("inception_v3", _inception(), ("fc.", "AuxLogits."), 75),
        ("densenet121", _densenet(), classifier, 32),
        ("densenet169", _densenet(), classifier, 32),
        ("mobilenet_v2", _features(1, 4, 7, 14, 18, 19), classifier, 32),
        ("mobilenet_v3_small", _features(1, 2, 4, 9, 12, 13), classifier, 32),
        ("mobilenet_v3_large", _features(2, 4, 7, 13, 16, 17), classifier, 32),
        ("efficientnet_v2_s", _features(2, 3, 4, 6, 7, 8), classifier, 32),
        ("convnext_tiny", _features(2, 4, 6, 8), classifier, 32),
        ("convnext_small", _features(2, 4, 6, 8), classifier, 32),
        ("regnet_y_400mf", _regnet(), fc, 32),
        ("regnet_y_3_2gf", _regnet(), fc, 32),
    ]
    for name in ("resnet18", "resnet34", "resnet50", "resnet101", "resnext50_32x4d", "wide_resnet50_2"):
        rows.append((name, _resnet(), fc, 32))
    for name in ("efficientnet_b0", "efficientnet_b1", "efficientnet_b2", "efficientnet_b3", "efficientnet_b4"):
        rows.append((name, _features(2, 3, 4, 6, 8, 9), classifier, 32))
    return {name: Architecture(name, stages, top, side) for name, stages, top, side in rows}


ARCHITECTURES = _table()


def architecture(name: str) -> Architecture:
    """The architecture of that name; names differ neither by case, hyphens nor underscores.

    Examples
    --------
    >>> architecture("ResNet-50").name
    'resnet50'
    """
    plain: Callable[[str], str] = lambda text: text.lower().replace("-", "").replace("_", "")  # noqa: E731
    known = {plain(a): a for a in ARCHITECTURES}
    if plain(name) in known:
        return ARCHITECTURES[known[plain(name)]]
    near = difflib.get_close_matches(plain(name), known, n=1, cutoff=0.5)
    raise WeightsError(
        f"there is no architecture '{name}'",
        got=f"known are {', '.join(sorted(ARCHITECTURES))}",
        fix=f"did you mean '{known[near[0]]}'?" if near else "choose one of these",
    )


def recognise(shapes: dict[str, tuple[int, ...]]) -> str:
    """The architecture whose tensors these are, by names and shapes; the classifier does not count.

    Raises
    ------
    WeightsError
        Where none shares a third of its tensors with them.
    """
    import torch

    best, share = "", 0.0
    for name, arch in ARCHITECTURES.items():
        with torch.device("cpu" if name.startswith("regnet") else "meta"):  # regnet computes its widths with tensors
            wanted = {k: tuple(v.shape) for k, v in arch.build().state_dict().items() if not k.startswith(arch.top)}
        same = sum(shapes.get(k) == shape for k, shape in wanted.items()) / len(wanted)
        strange = sum(k not in wanted and not k.startswith(arch.top) for k in shapes) / max(1, len(shapes))
        if same - strange > share:
            best, share = name, same - strange
    if share < 1 / 3:
        raise WeightsError("no known architecture has these tensors", got=f"{len(shapes)} tensors", fix="pass --arch")
    return best


def imagenet_file(arch: str, *, fetch: bool = False) -> Weights:
    """torchvision's ImageNet weights of an architecture: from its cache, or downloaded if ``fetch``.

    Raises
    ------
    WeightsError
        Where the file is not there and no download was asked for; it says the file's name and place.
    """
    import torch
    from torchvision import models

    entry = models.get_model_weights(arch).DEFAULT
    filename = entry.url.rsplit("/", 1)[-1]
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    file = folder / filename
    prefix = filename.rsplit("-", 1)[-1].split(".")[0]
    if not file.is_file() and fetch:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(entry.url, str(file), hash_prefix=prefix)
        except OSError as error:
            raise WeightsError("the download failed", where=filename, got=type(error).__name__) from error
    if not file.is_file():
        raise WeightsError(
            f"the ImageNet weights of {arch} are not on this machine",
            got=f"no file {filename}",
            fix=f"run 'medtransfer weights fetch imagenet/{arch}' on a connected machine and copy the file into "
            "the folder torch/hub/checkpoints of this user's cache (or $TORCH_HOME/hub/checkpoints), "
            "or register it with 'medtransfer weights import'",
        )
    digest = file_digest(file)
    if not digest.startswith(prefix):
        raise WeightsError("the file is not the published one", where=filename, got=f"sha256 {digest[:16]}…")
    transform = entry.transforms()
    mean, std = tuple(transform.mean), tuple(transform.std)
    if arch == "inception_v3":  # torchvision's network turns its usual normalisation into this one itself
        mean = std = (0.5, 0.5, 0.5)
    return Weights(
        f"imagenet/{arch}",
        arch,
        mean,
        std,
        file,
        digest,
        licence="BSD-3-Clause (torchvision)",
        origin=f"torchvision {entry}, ImageNet-1k",
    )


def find(
    name: str, *, arch: str | None = None, mean: tuple[float, ...] | None = None, std: tuple[float, ...] | None = None
) -> Weights:
    """The record behind a name of the store, ``random/<architecture>``, or the path of a weights file.

    Parameters
    ----------
    name : str
        ``imagenet/resnet50``, ``random/resnet18``, a name given at import, or a path that ends in
        ``.safetensors``, ``.pth`` or ``.pt``; a path needs ``arch``, ``mean`` and ``std``.

    Raises
    ------
    WeightsError
        Where nothing of that name is at hand; it says what is, and how to get the rest.
    """
    if Path(name).suffix in {".safetensors", ".pth", ".pt"}:
        if arch is None or mean is None or std is None:
            raise WeightsError(
                "weights given by their path need arch, mean and std beside it",
                where=Path(name).name,
                fix="for example arch: resnet18, mean: [0.485, 0.456, 0.406], std: [0.229, 0.224, 0.225]",
            )
        file = Path(name)
        if not file.is_file():
            raise WeightsError("there is no such weights file", where=file.name, fix="correct model.weights")
        return Weights(f"file/{file.stem}", architecture(arch).name, mean, std, file, file_digest(file))
    source, _, wanted = name.partition("/")
    if source == "random":
        return Weights(name, architecture(wanted).name, (0.5,) * 3, (0.25,) * 3, origin="random initialisation")
    if (weights := stored_as(name)) is not None:
        return weights
    if source == "imagenet":
        return imagenet_file(architecture(wanted).name)
    known = [w.name for w in stored()]
    raise WeightsError(
        f"there are no weights '{name}'",
        got=f"{', '.join(known) if known else 'nothing imported'}",
        fix="register a local file with 'medtransfer weights import', or start untrained with 'random/<architecture>'",
    )


def fetch(name: str) -> str:
    """Download ``imagenet/<architecture>`` into torchvision's own cache; its sha256."""
    source, _, arch = name.partition("/")
    if source != "imagenet":
        raise WeightsError("only imagenet/<architecture> can be fetched", got=f"'{name}'", fix="imagenet/resnet50")
    return imagenet_file(architecture(arch).name, fetch=True).sha256


def overview() -> list[dict[str, str]]:
    """Every architecture with its ImageNet weights, and every imported record: name, arch, status."""
    import torch
    from torchvision import models

    folder = Path(torch.hub.get_dir()) / "checkpoints"
    rows = []
    for arch in ARCHITECTURES:
        here = (folder / models.get_model_weights(arch).DEFAULT.url.rsplit("/", 1)[-1]).is_file()
        status = "on this machine" if here else "to be fetched"
        rows.append({"name": f"imagenet/{arch}", "arch": arch, "status": status})
    rows += [{"name": w.name, "arch": w.arch, "status": f"imported, sha256 {w.sha256[:12]}"} for w in stored()]
    return rows
