"""Weight surgery with a receipt: other input channels, other dimensions, and what became of every tensor."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from medtransfer.backbones import Architecture, architecture, recognise
from medtransfer.checkpoints import fit_names, read_tensors
from medtransfer.errors import MedTransferWarning, WeightsError
from medtransfer.volume import inflate
from medtransfer.weights import Weights, header, register
from medtransfer.witness import exchanged, misplaced

Native = tuple[int, int, int]
_CLASSIFIERS = ("fc.", "head.", "heads.", "classifier.", "last_linear.", "logits.", "class_layers.", "op_threshs")


@dataclass(frozen=True)
class Receipt:
    """What became of every tensor of a checkpoint and of a backbone.

    Parameters
    ----------
    loaded : tuple of str
        Taken over as they are.
    reshaped : tuple of (name, how)
        Changed for other channels, dimensions or number types.
    new : tuple of str
        Of the backbone, but not in the file: they start untrained.
    unused : tuple of str
        In the file, but not of the backbone: its classifier, or stages that were cut off.
    rules : tuple of str
        How the file's names became the network's.
    doubts : tuple of str
        What speaks against the file without proving it wrong.
    """

    loaded: tuple[str, ...] = ()
    reshaped: tuple[tuple[str, str], ...] = ()
    new: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    rules: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [f"renamed  {rule}" for rule in self.rules]
        lines += [f"loaded   {len(self.loaded):5d} tensors"]
        lines += [
            f"reshaped {len(self.reshaped):5d} tensors" + "".join(f"\n  {n}: {how}" for n, how in self.reshaped[:4])
        ]
        for word, names in (("new", self.new), ("unused", self.unused)):
            lines.append(f"{word:<8} {len(names):5d} tensors{_grouped(names)}")
        lines += [f"doubt    {doubt}" for doubt in self.doubts]
        return "\n".join(lines)

    def to_record(self) -> dict[str, object]:
        """Plain types for the run's record."""
        return {
            "loaded": list(self.loaded),
            "reshaped": [f"{n}: {how}" for n, how in self.reshaped],
            "new": list(self.new),
            "unused": list(self.unused),
            "rules": list(self.rules),
            "doubts": list(self.doubts),
        }


def _grouped(names: tuple[str, ...]) -> str:
    groups: dict[str, int] = {}
    for name in names:
        groups[name.split(".")[0]] = groups.get(name.split(".")[0], 0) + 1
    return "".join(f"\n  {group}.*: {count}" for group, count in groups.items())


def skeleton(arch: Architecture, native: Native, *, init: bool = True) -> nn.Module:
    """A network of the shape that a checkpoint has.

    Parameters
    ----------
    native : (int, int, int)
        Dimensions of its kernels, channels of its stem, and number of its position embeddings (0: as built).
    """
    dims, channels, positions = native
    network = arch.build(dims=dims if dims in arch.dims else 2, channels=channels, init=init)
    if dims not in arch.dims:
        inflate(network)
    if arch.positions and positions:
        parent, _, name = arch.positions.rpartition(".")
        old = network.get_parameter(arch.positions)
        if old.shape[1] != positions:
            fresh = torch.randn(1, positions, old.shape[2]) * 0.02 if init else torch.zeros(1, positions, old.shape[2])
            setattr(network.get_submodule(parent), name, nn.Parameter(fresh))
    return network


def load(
    arch: Architecture,
    tensors: dict[str, Tensor],
    *,
    until: str | None = None,
    allow_new: tuple[str, ...] = (),
    where: str = "",
    foreign: bool = False,
) -> tuple[nn.Module, Native, Receipt]:
    """A network filled from a checkpoint: names by rule, every tensor accounted for.

    Parameters
    ----------
    until, allow_new : see :func:`check`
    foreign : bool
        The file's hash is pinned nowhere: ask its batch normalisation whether kernels changed places; where they
        seem to have done so together with their normalisation, a :class:`MedTransferWarning` says so.

    Returns
    -------
    network : Module
        The whole network; its top is random.
    native : (int, int, int)
        Its shape, see :func:`skeleton`.
    receipt : Receipt

    Raises
    ------
    WeightsError
        As :func:`check`, and where kernels stand in each other's place.
    """
    dims = 3 if any(v.ndim == 5 for v in tensors.values()) else 2
    plain = arch.build(dims=dims if dims in arch.dims else 2, init=False)
    shapes = {k: tuple(v.shape) for k, v in plain.state_dict().items()}
    children = [name for name, _ in plain.named_children()]
    named, rules, outside = fit_names(tensors, shapes, children=children, pairs=_pairs(plain))
    stem, places = named.get(f"{arch.stem}.weight"), named.get(arch.positions)
    native = (
        dims,
        stem.shape[1] if stem is not None and stem.ndim == dims + 2 else arch.channels,
        places.shape[1] if places is not None and places.ndim == 3 else 0,
    )
    network = skeleton(arch, native, init=False)
    named, cast = _shaped(named, network.state_dict())
    receipt = check(network, named, arch, until=until, allow_new=allow_new, where=where, outside=outside)
    if receipt.new:
        network = skeleton(arch, native)  # what starts untrained must be random
    own = network.state_dict()
    with torch.no_grad():
        for name in receipt.loaded:
            own[name].copy_(named[name])
    if foreign and native[0] == 2 and (pairs := exchanged(arch, network, arch.kept(until))):
        raise WeightsError(
            f"{len(pairs)} pairs of convolutions seem to have changed places",
            where=where,
            got=f"{pairs[0][0]} and {pairs[0][1]} each fit the other's batch normalisation",
            fix="get the file again from its source",
        )
    doubts: tuple[str, ...] = ()
    if foreign and native[0] == 2 and (pair := misplaced(arch, network, arch.kept(until))):
        doubts = (f"{pair[0]} and {pair[1]}, with their normalisation, fit better in each other's place",)
        warnings.warn(f"{where}: {doubts[0]}; compare the file with its source", MedTransferWarning, stacklevel=3)
    changed = tuple((n, how) for n, how in cast if n in receipt.loaded)
    kept = tuple(n for n in receipt.loaded if n not in dict(changed))
    return network, native, Receipt(kept, changed, receipt.new, receipt.unused, rules, doubts)


def _pairs(network: nn.Module) -> list[tuple[str, str, float]]:
    """Convolutions without bias, each with the batch normalisation registered after it and its epsilon."""
    found, before = [], ""
    width = 0
    for path, module in network.named_modules():
        if isinstance(module, nn.Conv2d | nn.Conv3d):
            before, width = (path, module.out_channels) if module.bias is None else ("", 0)
        elif isinstance(module, nn.modules.batchnorm._BatchNorm) and before and module.num_features == width:
            found.append((before, path, module.eps))
            before = ""
    return found


def _shaped(named: dict[str, Tensor], own: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[tuple[str, str]]]:
    """Number types and shapes that say the same: half precision widened, axes of length one added or dropped."""
    changed, found = [], {}
    for name, value in named.items():
        if name in own and value.is_floating_point() and value.dtype != own[name].dtype != torch.int64:
            changed.append((name, f"{str(value.dtype).removeprefix('torch.')} made float32"))
            value = value.to(own[name].dtype)
        if name in own and value.shape != own[name].shape:
            squeezed = [s for s in value.shape if s != 1]
            if squeezed == [s for s in own[name].shape if s != 1] and value.ndim <= 4 and len(squeezed) <= 2:
                changed.append((name, f"{tuple(value.shape)} seen as {tuple(own[name].shape)}"))
                value = value.reshape(own[name].shape)
        found[name] = value
    return found, changed


def check(
    network: nn.Module,
    tensors: dict[str, Tensor],
    arch: Architecture,
    *,
    until: str | None = None,
    allow_new: tuple[str, ...] = (),
    where: str = "",
    outside: frozenset[str] = frozenset(),
) -> Receipt:
    """Compare a checkpoint with a network, tensor by tensor, before anything is loaded.

    Parameters
    ----------
    until : str or None
        Last stage that is kept; tensors of later stages are expected nowhere.
    allow_new : tuple of str
        Stages, or prefixes of tensors, that may start untrained.
    outside : frozenset of str
        Tensors that the file itself keeps apart from the backbone.

    Raises
    ------
    WeightsError
        Where shapes differ, a tensor fits nowhere or holds nothing, or under 99 % of the backbone's tensors
        are in the file.
    """
    kept = arch.kept(until)
    own = network.state_dict()
    wanted = {k: v for k, v in own.items() if arch.owner(k) in kept}
    counters = {k for k in wanted if k.endswith("num_batches_tracked")}
    fix = "name the architecture that these weights belong to"
    wrong = [k for k in wanted if k in tensors and tensors[k].shape != wanted[k].shape]
    if wrong:
        raise WeightsError(
            f"{len(wrong)} tensors have another shape than {arch.name} wants",
            where=where,
            got=f"{wrong[0]} {tuple(tensors[wrong[0]].shape)} instead of {tuple(wanted[wrong[0]].shape)}",
            fix=fix,
        )
    strange = [k for k in tensors if k not in own and not k.startswith((*arch.top, *_CLASSIFIERS))]
    if strange:
        raise WeightsError(
            f"{len(strange)} tensors of the file fit nowhere in {arch.name}",
            where=where,
            got=", ".join(strange[:3]),
            fix=fix,
        )
    empty = [(k, why) for k in wanted if k in tensors and (why := _nothing_in(k, tensors[k], wanted[k]))]
    if empty:
        raise WeightsError(
            f"{len(empty)} tensors cannot come from training",
            where=where,
            got=f"{empty[0][0]}: {empty[0][1]}",
            fix="get the file again from its source",
        )
    new = [k for k in wanted if k not in tensors and k not in counters and not _is_constant(k)]
    refused = [k for k in new if not any(arch.owner(k) == a or k.startswith(a) for a in allow_new)]
    total = len(wanted) - len(counters)
    if len(refused) > 0.01 * total:
        missing = sorted({arch.owner(k) or "" for k in refused})
        before = [s for s, _ in arch.stages if s not in missing]
        raise WeightsError(
            f"the file holds {total - len(new)} of the {total} tensors of {arch.name}; these stages lack tensors: "
            f"{', '.join(missing)}",
            where=where,
            got=f"{len(refused)} missing",
            fix=f"cut the network there (until: {before[-1] if before else '...'}), or accept that they start "
            f"untrained (allow_new: [{', '.join(missing)}])",
        )
    return Receipt(
        loaded=tuple(k for k in wanted if k in tensors),
        new=tuple(new),
        unused=(*(k for k in tensors if k not in wanted), *sorted(outside)),
    )


def _is_constant(name: str) -> bool:
    """Tables that a network computes for itself."""
    return name.endswith(("relative_position_index", "relative_coords_table", "attn_mask"))


def _nothing_in(name: str, value: Tensor, wanted: Tensor) -> str:
    """Why a tensor cannot be one of a trained network; '' where it can."""
    if value.is_floating_point() != wanted.is_floating_point():
        return f"{str(value.dtype).removeprefix('torch.')} instead of {str(wanted.dtype).removeprefix('torch.')}"
    if name.endswith("running_var") and bool((value < 0).any()):
        return "a negative variance"
    if name.endswith("weight") and value.ndim > 1 and value.numel() > 8 and bool((value == value.flatten()[0]).all()):
        return f"every value is {float(value.flatten()[0]):g}"
    return ""


def import_file(
    file: Path,
    *,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    name: str | None = None,
    arch: str | None = None,
    licence: str | None = None,
    origin: str | None = None,
) -> tuple[Weights, Receipt]:
    """Register a local checkpoint in the offline store, every tensor checked first.

    A checkpoint that ends before the network does (its last stages lack every tensor) is taken; the receipt
    names what would start untrained, and :func:`medtransfer.load_model` asks for ``until`` or ``allow_new``.

    Parameters
    ----------
    file : Path
        safetensors, or a .pth that holds tensors only. What ``weights export`` wrote brings its record
        along, and needs nothing else.
    mean, std : tuple of float or None
        The pretraining's normalisation on values in [0, 1], one value or one a channel.
    name : str or None
        Name to load it by; ``local/<architecture>`` if None.
    arch : str or None
        Its architecture; recognised from names and shapes if None.

    Raises
    ------
    WeightsError
        Where the file is damaged, its tensors do not fit, or its normalisation is not known.
    """
    record = header(file)
    arch = arch or _text(record, "arch") or None
    mean, std = (_values(given, record, key) for given, key in ((mean, "mean"), (std, "std")))
    if mean is None or std is None:
        raise WeightsError(
            "weights need the normalisation of their pretraining",
            where=file.name,
            fix="for ImageNet --mean 0.485,0.456,0.406 --std 0.229,0.224,0.225",
        )
    tensors = read_tensors(file)
    wanted = architecture(arch or recognise({k: tuple(v.shape) for k, v in tensors.items()}))
    _, _, receipt = load(wanted, tensors, allow_new=_lacking(wanted, tensors), where=file.name, foreign=True)
    weights = Weights(
        name or _text(record, "name") or f"local/{wanted.name.replace('/', '-')}", wanted.name, mean, std, file,
        licence=licence or _text(record, "licence") or "not stated", origin=origin or _text(record, "origin"),
    )  # fmt: skip
    return register(weights), receipt


def _lacking(arch: Architecture, tensors: dict[str, Tensor]) -> tuple[str, ...]:
    """Last stages of which the file has nothing, if it has anything of the others under plain names."""
    filled = {arch.owner(k) for k in tensors}
    order = [stage for stage, _ in arch.stages]
    ends = max((order.index(s) for s in filled if s is not None), default=len(order) - 1)
    return tuple(order[ends + 1 :])


def _text(record: dict[str, object], key: str) -> str:
    value = record.get(key)
    return value if isinstance(value, str) else ""


def _values(given: tuple[float, ...] | None, record: dict[str, object], key: str) -> tuple[float, ...] | None:
    stored = record.get(key)
    return given or (tuple(float(v) for v in stored) if isinstance(stored, list) else None)
