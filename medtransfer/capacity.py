"""How many cases a training step takes at once, from the memory that is there and what a step was measured to keep."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from medtransfer.backbones import architecture
from medtransfer.errors import ConfigError
from medtransfer.memory import GIB, Kept, available, blocks, keeping
from medtransfer.tuned import Adapters, choose, faster, learning

if TYPE_CHECKING:
    from medtransfer.model import Model
    from medtransfer.prepare import Prepare
    from medtransfer.recipe import Recipe

SIDES = {2: 112, 3: 48}  # a measurement is done on images of at most about this side
USED = 0.8  # of the memory that is there
_WIDE = 400  # times the image that the widest layer is held to take and give at most
_MOST = 2000  # times the image that a network is held to keep at most, where nothing is measured
_GRADIENTS = 2  # of the largest activation, that a backward pass holds besides what was kept


@dataclass(frozen=True)
class Need:
    """Bytes of a training step: what it takes in any case, and what each case adds.

    Parameters
    ----------
    fixed : int
        Copies of the weights, gradients, the optimizer's memory.
    folded : int
        What autograd keeps whatever the batch: weights that are folded anew each step.
    kept : int
        What autograd keeps of one case; with the case's image, and gradients on their way, ``case``.
    kept_again : int
        The same where blocks are computed again.
    largest : int
        The largest single activation of one case.
    image : int
        One case as it enters the part that learns.
    """

    fixed: int
    folded: int
    kept: int
    kept_again: int
    largest: int
    image: int

    def step(self, cases: int, *, again: bool = False) -> int:
        """Bytes of a step of so many cases at once."""
        return self.fixed + self.folded + cases * self.case(again=again)

    def case(self, *, again: bool = False) -> int:
        """Bytes that each case adds."""
        return (self.kept_again if again else self.kept) + _GRADIENTS * self.largest + self.image


@dataclass(frozen=True)
class Capacity:
    """How a step is computed.

    Parameters
    ----------
    batch : int
        Cases at once; their gradients are added up to those of the recipe's batch.
    again : bool
        Whether blocks that learn compute their activations again in the backward pass.
    need, whole, there : int
        Bytes of such a step, of one of the recipe's batch in the ordinary way, and of the memory that was there.
    asked : int
        The recipe's batch.
    bound : bool
        Whether ``need`` was not measured and is an upper bound.
    cut : str
        What was made smaller, in words.
    """

    batch: int
    again: bool
    need: int
    whole: int
    there: int
    asked: int
    bound: bool = False
    cut: str = ""

    @property
    def changed(self) -> bool:
        """Whether a step is not computed as the recipe's batch in the ordinary way."""
        return self.again or bool(self.cut)

    def to_record(self) -> dict[str, Any]:
        """As plain types."""
        return asdict(self)

    def __str__(self) -> str:
        about = "at most" if self.bound else "about"
        text = f"{about} {gib(self.need)} for a training step, {gib(self.there)} are there"
        text += f"; {self.cut}" if self.cut else ""
        return text + ("; activations computed again in the backward pass (recipe.checkpoint)" if self.again else "")


def measure_step(
    model: Model,
    recipe: Recipe,
    shape: Sequence[int],
    *,
    autocast: AbstractContextManager[None] | None = None,
    device: torch.device | str = "cpu",
) -> Need:
    """What a training step of the recipe's last phase takes, measured on small images and scaled by their voxels.

    Parameters
    ----------
    model : Model
        It stays as it is.
    shape : tuple of int
        Of one prepared case, ``[channels, ...]``; of a bag ``[channels, images, ...]``.
    autocast : context or None
        In which training computes.
    """
    stages = recipe.trainable(recipe.epochs - 1, list(model.stages))
    spatial = model.description.dims
    arch = architecture(model.description.arch)
    whole = spatial == 2 and not arch.inflatable  # windows and tokens do not scale, and images are soon computed
    small = [n if whole else max(min(n, arch.min_side), small_side(n, SIDES[spatial])) for n in shape[-spatial:]]
    head = list(shape[:-spatial])
    scale = math.prod(shape[-spatial:]) / math.prod(small)
    probe = copy.deepcopy(model).to(device)
    choose(probe, stages, recipe.tune, recipe.frozen_norms)
    adapters = Adapters(probe, stages, recipe.lora_rank, seed=0) if recipe.tune == "lora" and stages else None
    with torch.random.fork_rng(), autocast or nullcontext(), faster(probe, adapters):
        few = 2 if spatial == 3 else 1  # a volume alone is slow
        less, more = (_run(probe, stages, torch.rand(n, *head, *small, device=device)) for n in (few, few + 1))
    each = [b - a for a, b in zip(less.parts, more.parts, strict=True)]  # what a case adds, weights left out
    kept = more.total - less.total
    again = kept - sum(each) + max(each, default=0) + more.given - less.given
    largest = max((b - a for a, b in zip(less.sizes, more.sizes, strict=True)), default=0)
    learned = sum(p.numel() for _, p in learning(probe, stages, recipe.tune, recipe.frozen_norms))
    learned += sum(p.numel() for p in adapters.parameters()) if adapters is not None else 0
    sizes = (kept, min(kept, again), largest, more.image - less.image)
    return Need(fixed_bytes(model, learned, recipe), max(0, less.total - few * kept), *(int(v * scale) for v in sizes))


def bound_step(model: Model, recipe: Recipe, shape: Sequence[int]) -> Need:
    """What a step surely does not exceed, unmeasured: networks keep 50 to 600 times their grey image."""
    weights, image = sum(p.numel() for p in model.parameters()), 4 * math.prod(shape)
    return Need(fixed_bytes(model, weights, recipe), 4 * weights, _MOST * image, _MOST * image, 0, image)


def fixed_bytes(model: Model, learned: int, recipe: Recipe) -> int:
    """Copies of the weights, gradients, moments of AdamW, moving average."""
    return 4 * (2 * sum(p.numel() for p in model.parameters()) + learned * (3 + (recipe.ema > 0)))


@dataclass
class _Found:
    total: int
    sizes: list[int]
    image: int
    given: int
    parts: list[int]


def _run(probe: Model, stages: Sequence[str], images: Tensor) -> _Found:
    """One forward pass in training: what is kept in all and by each block, and what the blocks are given."""
    names = list(probe.stages)
    first = len(names) - len(stages)
    in_pieces = probe.in_pieces(images)
    if first and not in_pieces:
        with torch.no_grad():
            pooled, images = probe.walk(images, names[:first])
    parts: list[int] = []
    given: list[int] = []
    known = [*probe.parameters(), *probe.buffers(), images]
    with keeping(known) as kept:
        handles = [h for s in stages for block in blocks(probe.stages[s]) for h in watched(block, kept, parts, given)]
        try:
            if first and not in_pieces:
                features = torch.cat([pooled, probe.walk(images, names[first:])[0]], 1)
                answer = probe.head(features)
            else:
                answer = probe(images)
        finally:
            for handle in handles:
                handle.remove()
    del answer
    return _Found(kept.total, kept.sizes, images.numel() * images.element_size(), sum(given), parts)


def watched(block: nn.Module, kept: Kept, parts: list[int], given: list[int]) -> list[Any]:
    """Hooks that note what a block adds to what is kept, and how much it is given."""

    def before(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        given.append(inputs[0].numel() * inputs[0].element_size())
        parts.append(-kept.total)

    def after(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        parts[-1] += kept.total

    return [block.register_forward_pre_hook(before), block.register_forward_hook(after)]


def small_side(side: int, most: int) -> int:
    """A side of at most about this many voxels whose halves are those of the whole as far as possible.

    Examples
    --------
    >>> [small_side(n, 48) for n in (28, 80, 96, 224)]
    [28, 40, 48, 48]
    """
    parts = math.ceil(side / most)
    return side if parts == 1 else 8 * math.ceil(side / parts / 8)


def fit_step(need: Need, recipe: Recipe, there: int, shape: Sequence[int]) -> Capacity:
    """The largest batch up to the recipe's that fits; where not even two cases do, blocks are computed again.

    Parameters
    ----------
    there : int
        Bytes, of which 80 % are used.
    shape : tuple of int
        Of a prepared case, for the message.

    Raises
    ------
    ConfigError
        Where one case does not fit, however it is computed.

    Examples
    --------
    >>> from medtransfer.recipe import Recipe
    >>> need = Need(fixed=0, folded=0, kept=80, kept_again=30, largest=5, image=10)  # 100 a case, or 50
    >>> recipe = Recipe(batch_size=8)
    >>> [(c.batch, c.again) for c in (fit_step(need, recipe, n, (1, 9, 9)) for n in (1000, 500, 249, 125, 100))]
    [(8, False), (4, False), (3, True), (2, True), (1, True)]
    """
    room, asked = USED * there, recipe.batch_size
    least = min(2, asked)
    always, never = recipe.checkpoint is True, recipe.checkpoint is False
    again = always or (not never and need.step(least) > room)
    most = int((room - need.step(0)) // need.case(again=again))
    batch = max(1, min(asked, most))
    if most < 1 and need.step(1, again=again) > there:
        side = max(0.0, (room - need.step(0)) / (2 * need.case(again=not never))) ** (1 / (len(shape) - 1))
        smaller = ", ".join(str(max(8, 8 * int(n * side / 8))) for n in reversed(shape[1:]))
        raise ConfigError(
            "a training step of a single case does not fit into the memory",
            where="prepare.size",
            got=f"{gib(need.step(1, again=again))} needed, {gib(there)} there",
            fix=f"prepare.size: [{smaller}], or a smaller network, or method: logistic",
        )
    whole = need.step(asked)
    cut = f"{batch} of {asked} cases at once (all would take {gib(whole)}), gradients added up" if batch < asked else ""
    return Capacity(batch, again, need.step(batch, again=again), whole, there, asked, cut=cut)


def capacity_of(
    model: Model,
    recipe: Recipe,
    shape: Sequence[int],
    *,
    device: torch.device | str = "cpu",
    processes: int = 1,
    held: int = 0,
    autocast: AbstractContextManager[None] | None = None,
    exact: bool = False,
) -> Capacity | None:
    """How a step of a recipe is computed on this machine; None where nothing of the backbone learns.

    Parameters
    ----------
    shape : tuple of int
        Of one prepared case.
    processes : int
        That share the machine's memory.
    held : int
        Bytes of main memory that prepared images and kept activations will take.
    exact : bool
        Measure even where a step surely takes a small part of the memory.
    """
    if not recipe.learns:
        return None
    there = available(device)
    there = (there - held) // processes if torch.device(device).type == "cpu" else there
    most = bound_step(model, recipe, shape)
    if not exact and recipe.checkpoint is not True and most.step(recipe.batch_size) < there / 4:
        return replace(fit_step(most, recipe, there, shape), bound=True)
    return fit_step(measure_step(model, recipe, shape, autocast=autocast, device=device), recipe, there, shape)


def at_once(model: Model, shape: Sequence[int], device: torch.device | str = "cpu", *, most: int = 32) -> int:
    """Cases that a pass without gradients takes at once: up to ``most``, at least 2, as the memory allows.

    Measured on small images where it could be too much: a pass holds what its largest layer is given and gives.

    Parameters
    ----------
    shape : tuple of int
        Of one prepared case.
    device : torch.device or str
        Whose memory counts; the measurement is done where the network is.
    """
    image, room = 4 * math.prod(shape), USED * available(device) / 2
    spatial = model.description.dims
    if most * _WIDE * image < room or model.description.by_slice or len(shape) > spatial + 1:
        return max(2, min(most, int(room // (4 * image))))  # slices, and images of a bag, go through in parts
    least = architecture(model.description.arch).min_side
    small = [max(min(n, least), small_side(n, SIDES[spatial])) for n in shape[-spatial:]]
    held: list[int] = []

    def note(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        held.append(sum(t.numel() * 4 for t in (*inputs, output) if isinstance(t, Tensor)) // 2)

    home, before = next(model.parameters()).device, model.training
    names = [n for n, s in model.stages.items() if all(p.device == home for p in s.parameters())]  # others wait
    leaves = [m for n in names for m in model.stages[n].modules() if not any(True for _ in m.children())]
    handles = [m.register_forward_hook(note) for m in leaves]
    try:
        with torch.no_grad():
            model.eval().walk(torch.zeros(2, shape[0], *small, device=home), names)
    finally:
        model.train(before)
        for handle in handles:
            handle.remove()
    case = 2 * max(held) * math.prod(shape[1:]) / math.prod(small) + image
    return max(2, min(most, int(room // case)))


def case_shape(model: Model, prepare: Prepare, bags: int = 0) -> tuple[int, ...]:
    """Shape of a prepared case: ``[channels, ...]``, of a bag ``[channels, images, ...]``."""
    size = prepare.size if prepare.dims == 2 else prepare.size[::-1]
    return (model.description.in_channels, *([bags] if bags else []), *size)


def gib(count: float) -> str:
    """Bytes for a reader."""
    return f"{count / GIB:.1f} GiB" if count >= GIB / 10 else f"{count / 2**20:.0f} MiB"
