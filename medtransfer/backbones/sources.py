"""From a name to weights at hand: the offline store, torchvision's and timm's caches, a file, or none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from medtransfer.backbones import ARCHITECTURES, Architecture, architecture, shapes_of
from medtransfer.cache import file_digest
from medtransfer.errors import MissingPackage, WeightsError
from medtransfer.weights import Weights, download, refuse_offline, stored, stored_as, verify

_SUFFIXES = {".safetensors", ".pth", ".pt", ".ckpt", ".bin", ".tar"}


def _published(arch: Architecture) -> tuple[str, str]:
    """File name and address of torchvision's weights; the name ends in the first digits of their sha256."""
    from torchvision import models

    if arch.source != "torchvision, ImageNet-1k":
        raise WeightsError(
            f"there are no ImageNet weights of {arch.name}",
            got=f"its weights: {arch.source}",
            fix="register a file of your own with 'medtransfer weights import'",
        )
    address = str(models.get_model_weights(arch.name).DEFAULT.url)
    return address.rsplit("/", 1)[-1], address


def _hub_folder() -> Path:
    import torch

    return Path(torch.hub.get_dir()) / "checkpoints"  # follows TORCH_HOME


def imagenet_file(arch: str, *, fetch: bool = False) -> Weights:
    """torchvision's ImageNet weights of an architecture: from its cache, or downloaded if ``fetch``.

    Raises
    ------
    WeightsError
        Where the file is not there and no download was asked for, or none is possible; it says the
        file's name, hash and place.
    """
    from torchvision import models

    filename, address = _published(architecture(arch))
    file = _hub_folder() / filename
    prefix = filename.rsplit("-", 1)[-1].split(".")[0]
    place = "the folder hub/checkpoints of $TORCH_HOME (by default torch in this user's cache folder)"
    if not file.is_file() and fetch:
        refuse_offline(f"imagenet/{arch}", filename, prefix, place)
        download(address, file, prefix, place)
    if not file.is_file():
        raise WeightsError(
            f"the ImageNet weights of {arch} are not on this machine",
            got=f"no file {filename}",
            fix=f"run 'medtransfer weights fetch imagenet/{arch}' on a connected machine and copy {filename} (its "
            f"sha256 begins with {prefix}) into {place}, or carry it over with 'weights export' and 'weights import'",
        )
    digest = file_digest(file)
    if not digest.startswith(prefix):
        raise WeightsError(
            "the file is not the published one",
            where=filename,
            got=f"sha256 {digest[:16]}… instead of {prefix}…",
            fix=f"remove it and run 'medtransfer weights fetch imagenet/{arch}' again",
        )
    entry = models.get_model_weights(arch).DEFAULT
    mean, std = _normalisation(arch, entry)
    return Weights(
        f"imagenet/{arch}", arch, mean, std, file, digest, "BSD-3-Clause (torchvision)",
        f"torchvision {entry}, ImageNet-1k", int(entry.transforms().crop_size[0]),
    )  # fmt: skip


def _normalisation(arch: str, entry: Any) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Of torchvision's pretraining, on values in [0, 1]."""
    if arch == "inception_v3":  # torchvision's network turns its usual normalisation into this one itself
        return (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
    transform = entry.transforms()
    return tuple(transform.mean), tuple(transform.std)


def find(
    name: str, *, arch: str | None = None, mean: tuple[float, ...] | None = None, std: tuple[float, ...] | None = None
) -> Weights:
    """The record behind a name of the store, ``random/<architecture>``, or the path of a weights file.

    Parameters
    ----------
    name : str
        ``embedded/compact2d``, ``imagenet/resnet50``,
        ``timm/resnet50.a1_in1k``, ``random/resnet18``, a name given at import, or a path
        that ends in ``.safetensors``, ``.pth``, ``.pt``, ``.ckpt``, ``.bin`` or ``.tar``; a path needs ``arch``,
        ``mean`` and ``std``.

    Raises
    ------
    WeightsError
        Where nothing of that name is at hand; it says what is, and how to get the rest.
    """
    if Path(name).suffix in _SUFFIXES:
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
        found = architecture(wanted)
        channels = found.channels
        return Weights(name, found.name, (0.5,) * channels, (0.25,) * channels, origin="random initialisation")
    if (weights := stored_as(name)) is not None:
        return weights
    if source == "embedded":
        return _embedded(name)
    if source == "imagenet":
        return imagenet_file(architecture(wanted).name)
    if source == "timm":
        from medtransfer.backbones.hub import timm_weights

        return timm_weights(name)
    raise _nothing(name)


def _nothing(name: str) -> WeightsError:
    """That there are no such weights, with the nearest name."""
    import difflib

    known = [w.name for w in stored()]
    names = [*known, *embedded(), *(f"{s}/{a}" for s in ("imagenet", "random") for a in ARCHITECTURES)]
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    return WeightsError(
        f"there are no weights '{name}'",
        where="model.weights",
        got=f"{', '.join(known) if known else 'nothing imported'}",
        fix=(f"did you mean '{near[0]}'? or " if near else "")
        + "register a local file with 'medtransfer weights import', or start untrained with 'random/<architecture>'",
    )


def _embedded(name: str) -> Weights:
    """The record of weights that lie in the package; see ``docs/embedded.md`` for how they were made."""
    records = embedded()
    if name not in records:
        raise _nothing(name)
    verify(records[name])
    return records[name]


def embedded() -> dict[str, Weights]:
    """Records of the weights that lie in the package, by name."""
    folder = Path(__file__).parents[1] / "embedded"
    records = json.loads((folder / "record.json").read_text(encoding="utf-8"))
    paths = {
        k: {"file": folder / v["file"], "mean": tuple(v["mean"]), "std": tuple(v["std"])} for k, v in records.items()
    }
    return {k: Weights(**v | paths[k]) for k, v in records.items()}


def fetch(name: str) -> str:
    """Download ``imagenet/<architecture>`` or ``timm/<model>`` into its publisher's own cache; its sha256."""
    source, _, arch = name.partition("/")
    if source == "imagenet":
        return imagenet_file(architecture(arch).name, fetch=True).sha256
    if source == "timm":
        from medtransfer.backbones.hub import timm_weights

        return timm_weights(name, fetch=True).sha256
    raise WeightsError(
        "only imagenet/<architecture> and timm/<model> can be fetched", got=f"'{name}'", fix="imagenet/resnet50"
    )


def overview() -> list[dict[str, str]]:
    """Every architecture and every imported record.

    Each row has ``name``, ``arch``, ``dims``, ``parameters`` (millions, without the top), ``side`` (native
    resolution in pixels, 'any' where none is known), ``mean`` and ``std`` (of the pretraining), ``source``,
    ``licence`` and ``status``.
    """
    from torchvision import models

    folder = _hub_folder()
    rows = []
    for arch in ARCHITECTURES.values():
        row = {"name": f"random/{arch.name}", "arch": arch.name, "dims": _dims(arch)}
        row |= {"parameters": _millions(arch), "side": "any", "mean": "", "std": ""}
        row |= {"source": arch.source, "licence": arch.licence, "status": "own file needed"}
        if arch.source == "torchvision, ImageNet-1k":
            entry = models.get_model_weights(arch.name).DEFAULT
            mean, std = _normalisation(arch.name, entry)
            row |= {"name": f"imagenet/{arch.name}", "side": str(entry.transforms().crop_size[0])}
            row |= {"mean": _numbers(mean), "std": _numbers(std)}
            row["status"] = "on this machine" if (folder / _published(arch)[0]).is_file() else "to be fetched"
        rows.append(row)
    own = embedded()
    rows = [row for row in rows if row["arch"] not in {w.arch for w in own.values()}]  # listed with their weights
    for w in (*own.values(), *stored()):
        known = ARCHITECTURES.get(w.arch)  # none for timm's
        row = {"name": w.name, "arch": w.arch, "dims": _dims(known) if known else "2D", "mean": _numbers(w.mean)}
        row |= {"std": _numbers(w.std), "source": w.origin, "licence": w.licence, "side": str(w.side or "any")}
        row["parameters"] = _millions(known) if known else ""
        kind = "in the package" if w.name in own else "imported"
        rows.append(row | {"status": f"{kind}, sha256 {w.sha256[:12]}"})
    return rows


def _dims(arch: Architecture) -> str:
    own = ", ".join(f"{d}D" for d in arch.dims)
    return f"{own}, 3D by inflation" if arch.inflatable and 3 not in arch.dims else own


def _millions(arch: Architecture) -> str:
    """Parameters and statistics without the top, in millions; empty where a package is missing."""
    try:
        return f"{sum(_size(shape) for shape in shapes_of(arch.name, arch.dims[0]).values()) / 1e6:.1f}"
    except MissingPackage:
        return ""


def _size(shape: tuple[int, ...]) -> int:
    count = 1
    for side in shape:
        count *= side
    return count


def _numbers(values: object) -> str:
    assert isinstance(values, tuple | list)
    return " ".join(f"{v:g}" for v in values)
