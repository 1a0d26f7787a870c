"""Backbones by name: networks without their top, cut into ordered stages, and where weights for them lie."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from functools import cache

from medtransfer.backbones import medical, own, vision
from medtransfer.backbones.architecture import Architecture, Stages
from medtransfer.errors import MissingPackage, WeightsError

__all__ = ["ARCHITECTURES", "Architecture", "Stages", "architecture", "recognise", "shapes_of"]

ARCHITECTURES: dict[str, Architecture] = {a.name: a for a in (*vision.table(), *medical.table(), *own.table())}


def architecture(name: str) -> Architecture:
    """The architecture of that name; names differ neither by case, hyphens nor underscores.

    ``timm/<model>`` asks the timm package (extra ``hub``).

    Examples
    --------
    >>> architecture("ResNet-50").name
    'resnet50'
    """
    if name.startswith("timm/"):
        from medtransfer.backbones.hub import timm_architecture

        return timm_architecture(name)
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


@cache
def shapes_of(name: str, dims: int = 2, channels: int | None = None) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors of an architecture without its top; nothing is allocated where that is possible."""
    import torch

    arch = architecture(name)
    with torch.device("cpu" if name.startswith(("regnet", "monai")) else "meta"):  # these compute with tensors
        network = arch.build(dims=dims, channels=channels, init=False)
    return {k: tuple(v.shape) for k, v in network.state_dict().items() if not k.startswith(arch.top)}


def recognise(shapes: dict[str, tuple[int, ...]]) -> str:
    """The architecture whose tensors these are, by names and shapes; the classifier does not count.

    Raises
    ------
    WeightsError
        Where none shares a third of its tensors with them.
    """
    best, share = "", 0.0
    dims = 3 if any(len(s) == 5 for s in shapes.values()) else 2
    for name, arch in ARCHITECTURES.items():
        if dims not in arch.dims or (share > 0.95 and not best.startswith("monai") and arch.dims == (2, 3)):
            continue
        try:
            wanted = shapes_of(name, dims)
        except MissingPackage:  # it can be named, and then says what it needs
            continue
        own = arch.stem + ".weight"
        same = sum(shapes.get(k) == shape or (k == own and k in shapes) for k, shape in wanted.items()) / len(wanted)
        strange = sum(k not in wanted and not k.startswith(arch.top) for k in shapes) / max(1, len(shapes))
        if same - strange > share:
            best, share = name, same - strange
    if share < 1 / 3:
        raise WeightsError(
            "no known architecture has these tensors", got=f"{len(shapes)} tensors", fix="name it (arch)"
        )
    return best
