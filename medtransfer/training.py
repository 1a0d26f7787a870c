"""Where the training of one fold stands: counters, optimizer, checkpoints, and how a signal stops it."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from medtransfer.model import Model
from medtransfer.recipe import Recipe
from medtransfer.run import read_checkpoint, save_checkpoint
from medtransfer.sharding import like, load, shard, spread, whole
from medtransfer.tuned import Adapters

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

_PLAIN = ("phase", "epoch", "step", "loss_sum", "kept", "waited", "history", "scale", "followed")


class Stop(threading.Event):
    """Set by the first signal, looked at between steps."""

    listening = False


@dataclass
class State:
    """Where the training of one fold stands; saved and read back exactly.

    ``kept`` lists validation loss and epoch of the checkpoints that are kept, best first. A kept file is named by its
    epoch and never changed, and none is removed before ``last`` no longer needs it: whenever the process
    is killed, ``last`` and the files it names fit together. Where ``base`` holds the weights that training began with,
    stages that have not learned are left out of these files: a head that learns alone writes kilobytes.
    With a ``mesh`` the stages that learn are spread over its processes, and all of them take part in writing, though
    one writes.
    """

    model: Model
    recipe: Recipe
    folder: Path
    seed: int
    base: dict[str, Tensor] = field(default_factory=dict, repr=False)
    mesh: DeviceMesh | None = None
    optimizer: torch.optim.Optimizer = field(init=False)
    adapters: Adapters | None = None
    shadow: dict[str, Tensor] = field(default_factory=dict)
    phase: tuple[int, int] | None = None
    epoch: int = 0
    step: int = 0
    loss_sum: float = 0.0
    kept: list[tuple[float, int]] = field(default_factory=list)
    waited: int = 0
    followed: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)
    scale: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def start(
        cls,
        model: Model,
        recipe: Recipe,
        folder: Path,
        seed: int,
        base: dict[str, Tensor] | None = None,
        mesh: DeviceMesh | None = None,
    ) -> State:
        """From the beginning, or from where the last checkpoint stands."""
        state = cls(model, recipe, folder, seed, base or {}, mesh)
        last = folder / "last.safetensors"
        if not last.is_file():
            state._equip()
            return state
        tensors, facts = read_checkpoint(last)
        for name, value in json.loads(facts["state"]).items():
            setattr(state, name, tuple(value) if name == "phase" and value else value)
        state.kept = [(loss, epoch) for loss, epoch in state.kept]
        state._equip()
        load(model, state.base | _part(tensors, "model."))
        if state.adapters is not None:
            state.adapters.load_state_dict(_part(tensors, "lora."))
        for name, value in _part(tensors, "ema.").items():
            state.shadow[name].copy_(like(value, state.shadow[name]))
        names = state._names()
        for key, value in _part(tensors, "optim.").items():
            slot, name = key.split(":", 1)
            parameter = names[name]
            if value.ndim == parameter.ndim:
                value = torch.empty_like(parameter).copy_(like(value, parameter))
            state.optimizer.state[parameter][slot] = value
        return state

    @property
    def best(self) -> float:
        """Lowest validation loss so far."""
        return self.kept[0][0] if self.kept else float("inf")

    def go_on(self) -> bool:
        """Whether there is an epoch to do; a phase that no longer gets better gives way to the next."""
        if self.waited >= self.recipe.patience:
            later = [a for a, _ in self.recipe.phases() if a >= self.epoch]
            if not later:
                return False
            self.epoch, self.waited = later[0], 0
        return self.epoch < self.recipe.epochs

    def enter(self, phase: tuple[int, int]) -> None:
        """A new phase starts from the best model so far, with a new optimizer that holds no old momentum."""
        if self.phase != phase:
            if self.kept:
                load(self.model, self.read(self.kept[0][1])[0])
            self.phase, self.waited, self.followed = phase, 0, 0
            self._equip()

    def _equip(self) -> None:
        """Low-rank additions, optimizer and moving average of the phase."""
        self.adapters, self.shadow = None, {}
        stages = self.recipe.trainable(self.phase[0], list(self.model.stages)) if self.phase else ()
        if stages and self.mesh is not None:
            shard(self.model, stages, self.recipe, self.mesh)
        if stages and self.recipe.tune == "lora":
            self.adapters = Adapters(self.model, stages, self.recipe.lora_rank, seed=self.seed)
        self.optimizer = optimizer_of(self.model, self.recipe, self.adapters)
        if self.recipe.ema and self.phase:
            self.shadow = {n: p.detach().clone() for n, p in self._names().items()}

    def _names(self) -> dict[str, nn.Parameter]:
        added = {} if self.adapters is None else {f"lora:{n}": p for n, p in self.adapters.named_parameters()}
        return dict(self.model.named_parameters()) | added

    def follow(self) -> None:
        """Move the average towards the weights, after a step."""
        decay = self.recipe.ema_decay(self.followed)
        for name, parameter in self._names().items() if self.shadow else ():
            if parameter.requires_grad:
                self.shadow[name].lerp_(parameter.detach(), 1 - decay)
        self.followed += 1

    @contextmanager
    def shown(self) -> Iterator[None]:
        """The weights that are validated and kept: the moving average, where there is one."""
        names = self._names()
        held = {n: names[n].detach().clone() for n in self.shadow}
        with torch.no_grad():
            for name, value in self.shadow.items():
                names[name].copy_(value)
            yield
            for name, value in held.items():
                names[name].copy_(value)

    def begin(self, entry: dict[str, Any], *, write: bool = True) -> None:
        """Count a model that was solved for, not trained, as the epoch before the first."""
        self.history.append(entry)
        self.epoch = -1
        self.next_epoch(entry["val_loss"], write=write)

    def next_epoch(self, loss: float, *, write: bool = True) -> None:
        """Keep the weights if they are among the best, and count on."""
        better = loss < self.best
        ranked = sorted([*self.kept, (loss, self.epoch)])[: self.recipe.average]
        if (loss, self.epoch) in ranked:
            with self.shown():
                tensors = whole(self._changed(), keep=write)
                tensors = tensors if self.adapters is None else self.adapters.merge(tensors)
                facts = {"description": self.model.description.to_json(), "epoch": str(self.epoch)}
                if write:
                    save_checkpoint(self.file(self.epoch), tensors, facts)
        self.kept = ranked
        self.waited = 0 if better else self.waited + 1
        self.epoch, self.step, self.loss_sum = self.epoch + 1, 0, 0.0

    def _changed(self) -> dict[str, Tensor]:
        """The model's tensors, without those of stages that have not learned where ``base`` has them."""
        tensors = self.model.state_dict()
        if not self.base:
            return tensors
        learned = self.recipe.trainable(self.phase[0], list(self.model.stages)) if self.phase else ()
        frozen = tuple(f"stages.{stage}." for stage in self.model.stages if stage not in learned)
        return {k: v for k, v in tensors.items() if not k.startswith(frozen)}

    def read(self, *epochs: int) -> tuple[dict[str, Tensor], dict[str, str]]:
        """Every tensor of a kept epoch, or the mean of several, and the facts of the first."""
        found, facts = read_checkpoint(self.file(epochs[0]))
        if len(epochs) > 1:
            found = average([self.file(epoch) for epoch in epochs])
        return self.base | found, facts

    def file(self, epoch: int) -> Path:
        """Where the weights of an epoch are kept."""
        return self.folder / f"kept-{epoch}.safetensors"

    def tidy(self, *, everything: bool = False) -> None:
        """Remove checkpoints that nothing needs any more."""
        needed = set() if everything else {self.file(epoch) for _, epoch in self.kept}
        for path in set(self.folder.glob("kept-*.safetensors")) - needed:
            path.unlink(missing_ok=True)

    def save(self, *, write: bool = True) -> None:
        """Model, optimizer and counters in one file."""
        tensors = {f"model.{k}": v for k, v in self._changed().items()}
        tensors |= {f"ema.{k}": v for k, v in self.shadow.items()}
        if self.adapters is not None:
            tensors |= {f"lora.{k}": v for k, v in self.adapters.state_dict().items()}
        names = {p: n for n, p in self._names().items()}
        parameter: Any  # the optimizer types its keys as plain tensors
        for parameter, slots in self.optimizer.state.items():
            tensors |= {f"optim.{slot}:{names[parameter]}": v for slot, v in slots.items()}
        plain = {k: getattr(self, k) for k in _PLAIN}
        tensors = whole(tensors, keep=write)
        if write:
            save_checkpoint(self.folder / "last.safetensors", tensors, {"state": json.dumps(plain)})


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}


def optimizer_of(model: Model, recipe: Recipe, adapters: Adapters | None = None) -> torch.optim.AdamW:
    """One group a stage and kind of parameter; parameters that do not learn get no gradient and stay."""
    rates = recipe.stage_lr(list(model.stages)) | {"head": recipe.lr}
    members: dict[tuple[float, float, bool], list[nn.Parameter]] = {}  # an update takes one kind of tensor
    for name, part in [*model.stages.items(), ("head", model.head)]:
        for parameter in part.parameters():  # biases and normalisation are vectors and do not decay
            decay = recipe.weight_decay if parameter.ndim > 1 else 0.0
            members.setdefault((rates[name], decay, spread(parameter)), []).append(parameter)
    for name, parameter in adapters.named_parameters() if adapters is not None else ():
        stage = name.split("/")[1]
        members.setdefault((rates[stage], recipe.weight_decay, False), []).append(parameter)
    groups = [{"params": p, "lr": lr, "peak_lr": lr, "weight_decay": decay} for (lr, decay, _), p in members.items()]
    return torch.optim.AdamW(groups, fused=next(model.parameters()).device.type in ("cpu", "cuda"))


def average(files: list[Path]) -> dict[str, Tensor]:
    """Mean of the tensors of several checkpoints; counters as in the first."""
    found = [read_checkpoint(f)[0] for f in files]
    return {
        k: torch.stack([t[k].double() for t in found]).mean(0).to(v.dtype) if v.is_floating_point() else v
        for k, v in found[0].items()
    }


@contextmanager
def stopping() -> Iterator[Stop]:
    """Turn the first SIGINT, SIGTERM or SIGUSR1 into a flag while epochs run; before and after they act as usual."""
    stop, kept = Stop(), {}

    def handle(number: int, frame: object) -> None:
        if not stop.listening or stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    if threading.current_thread() is threading.main_thread():
        wanted = [getattr(signal, n, None) for n in ("SIGINT", "SIGTERM", "SIGUSR1")]
        kept = {n: signal.signal(n, handle) for n in wanted if n is not None}
    try:
        yield stop
    finally:
        for number, before in kept.items():
            signal.signal(number, before)
