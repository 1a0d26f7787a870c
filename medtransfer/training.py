"""Where the training of one fold stands: counters, optimizer, and how a signal stops it."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from medtransfer.cache import fingerprint
from medtransfer.model import Model
from medtransfer.recipe import Recipe
from medtransfer.run import read_checkpoint, save_checkpoint


class Stop(threading.Event):
    """Set by the first signal, looked at between steps."""

    listening = False


@dataclass
class State:
    """Where the training of one fold stands; saved and read back exactly."""

    model: Model
    optimizer: torch.optim.Optimizer
    phase: tuple[int, int] | None = None
    epoch: int = 0
    step: int = 0
    loss_sum: float = 0.0
    best: float = float("inf")
    waited: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def start(cls, model: Model, last: Path, recipe: Recipe) -> State:
        """From the beginning, or from where the last checkpoint stands."""
        state = cls(model, optimizer_of(model, recipe))
        if not last.is_file():
            return state
        tensors, facts = read_checkpoint(last)
        model.load_state_dict({k[6:]: v for k, v in tensors.items() if k.startswith("model.")})
        for name, value in json.loads(facts["state"]).items():
            setattr(state, name, tuple(value) if name == "phase" and value else value)
        names = dict(model.named_parameters())
        for key, value in tensors.items():
            if key.startswith("optim."):
                slot, name = key[6:].split(":", 1)
                state.optimizer.state[names[name]][slot] = value
        return state

    def go_on(self, recipe: Recipe) -> bool:
        """Whether there is an epoch to do; a phase that no longer gets better gives way to the next."""
        if self.waited >= recipe.patience:
            later = [a for a, _ in recipe.phases() if a >= self.epoch]
            if not later:
                return False
            self.epoch, self.waited = later[0], 0
        return self.epoch < recipe.epochs

    def enter(self, phase: tuple[int, int], recipe: Recipe, best: Path) -> None:
        """A new phase starts from the best model so far, with a new optimizer that holds no old momentum."""
        if self.phase != phase:
            if self.phase is not None and best.is_file():
                self.model.load_state_dict(read_checkpoint(best)[0])
            self.phase, self.waited = phase, 0
            self.optimizer = optimizer_of(self.model, recipe)

    def next_epoch(self) -> None:
        """Count on."""
        self.epoch, self.step, self.loss_sum = self.epoch + 1, 0, 0.0

    def save(self, path: Path) -> None:
        """Model, optimizer and counters in one file."""
        tensors = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        names = {p: n for n, p in self.model.named_parameters()}
        parameter: Any  # the optimizer types its keys as plain tensors
        for parameter, slots in self.optimizer.state.items():
            tensors |= {f"optim.{slot}:{names[parameter]}": v for slot, v in slots.items()}
        plain = {k: getattr(self, k) for k in ("phase", "epoch", "step", "loss_sum", "best", "waited", "history")}
        save_checkpoint(path, tensors, {"state": json.dumps(plain)})


def optimizer_of(model: Model, recipe: Recipe) -> torch.optim.AdamW:
    """One group a stage and kind of parameter; parameters that do not learn get no gradient and stay."""
    rates = recipe.stage_lr(list(model.stages)) | {"head": recipe.lr}
    groups = []
    for name, part in [*model.stages.items(), ("head", model.head)]:
        for plain in (True, False):  # biases and normalisation are vectors and do not decay
            members = [p for p in part.parameters() if (p.ndim > 1) == plain]
            decay = recipe.weight_decay if plain else 0.0
            groups.append({"params": members, "lr": rates[name], "peak_lr": rates[name], "weight_decay": decay})
    return torch.optim.AdamW([g for g in groups if g["params"]], foreach=False)


def generator_of(*numbers: int) -> torch.Generator:
    """A random source for (seed, fold, epoch, step) that nothing before it has touched."""
    seed = int(fingerprint(",".join(map(str, numbers)))[:15], 16)
    return torch.Generator().manual_seed(seed)


def class_weights(labels: NDArray[np.int64], classes: int) -> torch.Tensor:
    """Weights inverse to the frequency of each class, 1 on average over the cases.

    Examples
    --------
    >>> class_weights(np.array([0, 0, 0, 1]), 2).tolist()
    [0.6666666865348816, 2.0]
    """
    counts = np.bincount(labels, minlength=classes)
    return torch.tensor(len(labels) / (classes * np.maximum(counts, 1)), dtype=torch.float32)


def log_loss(chances: NDArray[np.float64], labels: NDArray[np.int64]) -> float:
    """Mean negative logarithm of the probability of the reference class."""
    return float(-np.log(np.clip(chances[np.arange(len(labels)), labels], 1e-12, None)).mean())


@contextmanager
def stopping() -> Iterator[Stop]:
    """Turn the first SIGINT or SIGTERM into a flag while epochs run; before and after it acts as usual."""
    stop, kept = Stop(), {}

    def handle(number: int, frame: object) -> None:
        if not stop.listening or stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    if threading.current_thread() is threading.main_thread():
        kept = {n: signal.signal(n, handle) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, before in kept.items():
            signal.signal(number, before)
