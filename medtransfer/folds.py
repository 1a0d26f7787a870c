"""Folds that several processes train into one run folder: which to train, and how far all are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from medtransfer.errors import ConfigError
from medtransfer.split import Split


def chosen_folds(split: Split, fold: int | None) -> Sequence[int]:
    """Numbers of the folds to train: one, or all.

    Raises
    ------
    ConfigError
        Where the split has no such fold.
    """
    folds = range(len(split.folds))
    if fold is not None and fold not in folds:
        fix = f"a number from 0 to {folds[-1]}" if len(folds) > 1 else "split: {folds: 5}, or leave --fold out"
        raise ConfigError("there is no such fold", where="--fold", got=str(fold), fix=fix)
    return folds if fold is None else [fold]


@dataclass(frozen=True)
class FoldDone:
    """A fold that is trained, beside others that may be.

    Parameters
    ----------
    folder : Path
        The run's.
    fold, folds : int
        Its number, counted from 0, and how many there are.
    missing : tuple of int
        Folds that are not trained yet.
    """

    folder: Path
    fold: int
    folds: int
    missing: tuple[int, ...]

    @classmethod
    def of(cls, folder: Path, fold: int, folds: int, *, last: str) -> FoldDone:
        """Look at a run folder; ``last`` is the file that a fold writes last."""
        missing = tuple(k for k in range(folds) if not (folder / f"fold-{k}" / last).is_file())
        return cls(folder, fold, folds, missing)

    def __str__(self) -> str:
        left = f"missing: {', '.join(map(str, self.missing))}" if self.missing else "all are trained"
        return (f"fold {self.fold} of 0 to {self.folds - 1} is trained; {left}\n"
                "the same command without --fold completes the run once all are")  # fmt: skip
