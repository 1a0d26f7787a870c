"""Splits: stratified by class and grouped by patient at once, so that no patient stands in two parts."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import overload

import numpy as np
from numpy.typing import NDArray

from medtransfer._allocate import allocate, parts_html
from medtransfer.cohort import Cohort
from medtransfer.errors import LeakageError, SplitError
from medtransfer.predictions import BY_CLASS
from medtransfer.pseudonym import pseudonym

PARTS = ("train", "val", "test")
_FORMAT = "medtransfer split 1"


@dataclass(frozen=True)
class Part(Sequence[int]):
    """Cases of one part: a sequence of indices into its cohort.

    Parameters
    ----------
    indices : tuple of int
        Positions in the cohort, ascending.
    name : str
        ``'train'``, ``'val'`` or ``'test'``.
    fold : int
        0 for a holdout.
    cohort : str
        Fingerprint of the cohort it belongs to.
    """

    indices: tuple[int, ...]
    name: str
    fold: int = 0
    cohort: str = field(default="", repr=False)

    def __len__(self) -> int:
        return len(self.indices)

    def __iter__(self) -> Iterator[int]:
        return iter(self.indices)

    @overload
    def __getitem__(self, index: int) -> int: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[int, ...]: ...
    def __getitem__(self, index: int | slice) -> int | tuple[int, ...]:
        return self.indices[index]

    def __repr__(self) -> str:
        return f"Part({self.name}, fold {self.fold}: {len(self)} cases)"


@dataclass(frozen=True)
class Fold:
    """Train, validation and test cases that belong together."""

    train: Part
    val: Part
    test: Part

    def parts(self) -> tuple[Part, Part, Part]:
        """The three parts in this order."""
        return self.train, self.val, self.test


@dataclass(frozen=True)
class Split:
    """One fold (holdout) or k folds over a cohort.

    Parameters
    ----------
    folds : tuple of Fold
    scheme : str
        How it was made, for reports.
    seed : int
    cohort : str
        Fingerprint of the cohort.
    aliases : tuple of str
        Pseudonyms of all its cases, by which a split is written down.

    Examples
    --------
    >>> from medtransfer.cohort import Case
    >>> cases = [Case(f"c{i}", f"p{i // 2}", np.zeros((4, 4)), label=i // 2 % 2) for i in range(40)]
    >>> split = split_by_patient(Cohort(tuple(cases), ("no", "yes")), val=0.2, test=0.2)
    >>> len(split.train), len(split.val), len(split.test)
    (24, 8, 8)
    """

    folds: tuple[Fold, ...]
    scheme: str
    seed: int
    cohort: str = field(repr=False)
    aliases: tuple[str, ...] = field(repr=False)

    @property
    def train(self) -> Part:
        """Training cases of a holdout."""
        return self._only().train

    @property
    def val(self) -> Part:
        """Validation cases of a holdout."""
        return self._only().val

    @property
    def test(self) -> Part:
        """Test cases of a holdout."""
        return self._only().test

    def _only(self) -> Fold:
        if len(self.folds) > 1:
            raise SplitError(
                "a part has no meaning across folds", got=f"{len(self.folds)} folds",
                fix="take split.folds[0].train, .val or .test",
            )  # fmt: skip
        return self.folds[0]

    def parts(self) -> dict[str, Part]:
        """Parts of a holdout by name; of k folds the test part of each."""
        if len(self.folds) == 1:
            return {part.name: part for part in self.folds[0].parts()}
        return {f"fold {i + 1}": fold.test for i, fold in enumerate(self.folds)}

    _repr_html_ = parts_html

    def inner(self, cohort: Cohort, *, fold: int = 0, folds: int = 3, seed: int = 0) -> tuple[Cohort, Split]:
        """The training part of a fold as a cohort, and patient-grouped folds inside it to choose by.

        Nested cross-validation chooses on these, once for each outer fold, and tests on the outer fold.
        """
        self.check(cohort)
        part = cohort.take(list(self.folds[fold].train))
        return part, split_by_patient(part, folds=folds, seed=seed + 104729 * fold)

    def save(self, path: str | Path) -> None:
        """Write the split as JSON, whole or not at all; cases stand in it by pseudonym only."""
        folds = [{p.name: [self.aliases[i] for i in p] for p in fold.parts()} for fold in self.folds]
        record = {"format": _FORMAT, "scheme": self.scheme, "seed": self.seed, "folds": folds}
        path = Path(path)
        draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        try:
            with open(draft, "w", encoding="utf-8") as file:
                json.dump(record, file, indent=1)
                file.flush()
                os.fsync(file.fileno())
            os.replace(draft, path)
        except OSError as error:
            raise SplitError("the split cannot be written", where=path.name, got=error.strerror) from error
        finally:
            draft.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: str | Path, cohort: Cohort) -> Split:
        """Read what :meth:`save` wrote, and prove that it is of this cohort and does not leak.

        Raises
        ------
        SplitError
            For a damaged file, or cases that one side does not know.
        LeakageError
            Where a patient stands in two parts.
        """
        where = Path(path).name
        try:
            record = json.loads(Path(path).read_text(encoding="utf-8"))
            if record["format"] != _FORMAT:
                raise KeyError("format")
            folds = [{name: list(fold[name]) for name in PARTS} for fold in record["folds"]]
            scheme, seed = str(record["scheme"]), int(record["seed"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise SplitError("this is not a split file", where=where, got=f"{type(error).__name__}: {error}") from error
        position = {alias: i for i, alias in enumerate(cohort.aliases)}
        named = [alias for fold in folds for part in fold.values() for alias in part]
        unknown = len({a for a in named if a not in position})
        if unknown or not folds:
            raise SplitError(
                "the split names cases that the cohort does not have", where=where,
                got=f"{unknown} of {len(set(named))} unknown",
                fix="load it with the cohort, and the private key, that it was made with",
            )  # fmt: skip
        wanted = [{name: [position[a] for a in fold[name]] for name in PARTS} for fold in folds]
        return _assemble(cohort, wanted, scheme=scheme, seed=seed, where=where)

    @classmethod
    def from_column(cls, cohort: Cohort, column: str = "part") -> Split:
        """The split that a column gives: ``Case.part``, or a covariate holding train, val and test."""
        values = [c.part if column == "part" else c.covariates.get(column, "") for c in cohort]
        wanted: dict[str, list[int]] = {name: [] for name in PARTS}
        for i, value in enumerate(values):
            if (name := _NAMES.get(value.strip().casefold())) is None:
                raise SplitError(
                    f"column '{column}' must hold train, val or test", where=f"case {i}",
                    got=repr(value) if value else "nothing",
                )  # fmt: skip
            wanted[name].append(i)
        return _assemble(cohort, [wanted], scheme=f"given by '{column}'", seed=0)

    def check(self, cohort: Cohort) -> None:
        """Refuse a cohort that this split was not made for."""
        if self.cohort != cohort.fingerprint:
            raise SplitError("the split was made for another cohort", fix="make or load a split for this one")


_NAMES = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "dev": "val",
    "test": "test", "testing": "test",
}  # fmt: skip


def split_by_patient(
    cohort: Cohort,
    *,
    val: float = 0.15,
    test: float = 0.15,
    folds: int | None = None,
    repeats: int = 1,
    seed: int = 0,
    official: bool = False,
) -> Split:
    """Split a cohort so that every patient stands in one part and every part has all classes.

    Parameters
    ----------
    cohort : Cohort
    val, test : float
        Fractions of the cases. With ``folds``, ``val`` is the fraction of the cases outside the test fold,
        and ``test`` is not used.
    folds : int or None
        Number of folds, each case being tested in one; None makes a holdout.
    repeats : int
        How often the folds are drawn anew: each case is then tested that many times, always by a model that has not
        seen its patient. Folds are numbered on over the repeats; the first repeat is what ``repeats=1`` gives.
    seed : int
        The same cohort and seed give the same split, whatever the order of the rows.
    official : bool
        Take the parts that the data came with; where these lack validation cases, ``val`` of the training
        cases become so.

    Returns
    -------
    Split

    Raises
    ------
    SplitError
        Where a class has too few patients for the parts.
    LeakageError
        Where an official split has a patient in two parts.

    Notes
    -----
    Patients are shuffled, ordered from the largest to the smallest, and each goes where it leaves the
    smallest squared deviation from the wanted class counts, relative to these.
    """
    _check_fractions(val, test, folds, official, repeats)
    if official:
        return _official(cohort, val, seed)
    everyone = np.arange(len(cohort))
    if folds is None:
        shares = {"train": 1 - val - test, "val": val, "test": test}
        wanted = [_divide(cohort, everyone, shares, seed)]
        scheme = f"holdout by patient, stratified by class: val {val:g}, test {test:g}"
        return _assemble(cohort, wanted, scheme=scheme, seed=seed)
    names, wanted = {f"fold {i + 1}": 1 / folds for i in range(folds)}, []
    for repeat in range(repeats):
        for held_out in _divide(cohort, everyone, names, seed + 7919 * repeat).values():
            rest = np.setdiff1d(everyone, held_out)
            inner = _divide(cohort, rest, {"train": 1 - val, "val": val}, seed + 1000003 * (len(wanted) + 1))
            wanted.append({**inner, "test": held_out})
    often = f"{repeats} times " if repeats > 1 else ""
    scheme = f"{often}{folds} folds by patient, stratified by class: val {val:g} of the rest"
    return _assemble(cohort, wanted, scheme=scheme, seed=seed)


def _check_fractions(val: float, test: float, folds: int | None, official: bool, repeats: int) -> None:
    if repeats < 1 or (repeats > 1 and folds is None):
        what = "only folds can be repeated" if repeats > 1 else "folds are drawn at least once"
        raise SplitError(what, got=f"repeats={repeats}", fix="folds=5, repeats=3")
    if folds is not None and (folds < 2 or official):
        what = "an official split has no folds" if official else "there must be at least two folds"
        raise SplitError(what, got=f"folds={folds}", fix="leave out folds" if official else "folds=5")
    if not (0 <= val < 1 and 0 <= test < 1 and (folds is not None or official or val + test < 1)):
        raise SplitError("fractions must be at least 0 and leave cases to train on", got=f"val={val:g}, test={test:g}")


def _official(cohort: Cohort, val: float, seed: int) -> Split:
    if not any(c.part for c in cohort):
        what = "the cohort has no official parts"
        raise SplitError(what, fix="leave out official, or name the column with part='...'")
    split = Split.from_column(cohort)
    if len(split.val) or not val:
        return split
    inner = _divide(cohort, np.array(split.train.indices), {"train": 1 - val, "val": val}, seed)
    scheme = f"official test part, val {val:g} of the official training part by patient"
    return _assemble(cohort, [{**inner, "test": split.test.indices}], scheme=scheme, seed=seed)


def _divide(cohort: Cohort, cases: NDArray[np.int64], shares: dict[str, float], seed: int) -> dict[str, Sequence[int]]:
    """Case indices of each part, or a SplitError that says what would fit."""
    strata = _strata(cohort)
    patients = cohort.patients[cases]
    # Pseudonyms depend on the user's private key: where the ids are such, the order of the rows decides.
    names = list(dict.fromkeys(patients.tolist()))
    names.sort(key=lambda name: "" if pseudonym("patient", name) == name else name)
    number = {name: k for k, name in enumerate(names)}
    group = np.array([number[p] for p in patients.tolist()])
    counts = np.zeros((len(names), strata.shape[1]))
    np.add.at(counts, group, strata[cases])
    used = [name for name, share in shares.items() if share > 0]
    fractions = np.array([shares[name] for name in used])
    cover, sizes = cohort.task in BY_CLASS and bool(cohort.classes), np.bincount(group).astype(np.float64)
    chosen = allocate(counts, fractions, np.random.default_rng(seed), cover=cover, sizes=sizes)
    if chosen is None:
        _say_what_fits(cohort, counts, used)
    owner = np.asarray(chosen)[group]
    return {name: cases[owner == used.index(name)].tolist() if name in used else [] for name in shares}


def _strata(cohort: Cohort) -> NDArray[np.float64]:
    """What is kept in proportion, a column each: classes, labels, quarters of the first target, or nothing."""
    said = cohort.references
    if cohort.task in BY_CLASS and cohort.classes:
        return np.eye(len(cohort.classes))[said.astype(np.int64)]
    if cohort.task == "multilabel" and cohort.classes:
        return np.asarray(np.nan_to_num(said), dtype=np.float64)
    first = said[:, 0] if cohort.task == "regression" and cohort.classes else np.full(len(cohort), np.nan)
    if np.isnan(first).any() or len(first) < 20:
        return np.ones((len(cohort), 1))
    return np.eye(4)[np.searchsorted(np.quantile(first, [0.25, 0.5, 0.75]), first)]


def _say_what_fits(cohort: Cohort, counts: NDArray[np.float64], parts: Sequence[str]) -> None:
    having = (counts > 0).sum(axis=0)
    names = cohort.classes if cohort.task in BY_CLASS and cohort.classes else ("all cases",)
    listed = ", ".join(f"{name} {having[k]}" for k, name in enumerate(names))
    fewest = int(having.min())
    if fewest < 2:
        fix = "find more patients of the rarest class, or leave it out"
    elif parts[0].startswith("fold"):
        fix = f"folds={fewest} at most, fewer if val is wanted as well"
    else:
        fix = "fewer parts: val=0 or test=0" if len(parts) > 2 else "find more patients of the rarest class"
    raise SplitError(
        f"not every one of the parts {', '.join(parts)} can have patients of every class",
        got=f"patients with each class: {listed}",
        fix=fix,
    )


def _assemble(
    cohort: Cohort, wanted: Sequence[Mapping[str, Sequence[int]]], *, scheme: str, seed: int, where: str = ""
) -> Split:
    """Folds from indices, proven: no case missing, none twice, no patient in two parts."""
    folds: list[Fold] = []
    for number, fold in enumerate(wanted):
        members = {name: tuple(sorted(int(i) for i in fold[name])) for name in PARTS}
        taken = [i for part in members.values() for i in part]
        if len(taken) != len(set(taken)) or len(taken) != len(cohort):
            raise SplitError(
                "a fold must hold every case once", where=where,
                got=f"{len(taken)} entries for {len(cohort)} cases, {len(taken) - len(set(taken))} twice",
            )  # fmt: skip
        if not members["train"]:
            raise SplitError("there is no training case", where=where, got=f"fold {number}")
        refuse_leak(cohort, members, where)
        parts = [Part(members[name], name, number, cohort.fingerprint) for name in PARTS]
        folds.append(Fold(*parts))
    return Split(tuple(folds), scheme, seed, cohort.fingerprint, cohort.aliases)


def refuse_leak(cohort: Cohort, members: Mapping[str, Sequence[int]], where: str = "") -> None:
    """Raise LeakageError where a patient stands in two parts."""
    seen: dict[str, tuple[str, int]] = {}
    leaks: dict[str, tuple[str, int, str, int]] = {}
    for name, part in members.items():
        for i in part:
            patient = str(cohort.patients[i])
            before, first = seen.setdefault(patient, (name, i))
            if before != name:
                leaks.setdefault(patient, (before, first, name, i))
    if leaks:
        before, first, name, second = next(iter(leaks.values()))
        who = cohort[first].patient_alias
        raise LeakageError(
            f"{who} stands in {before} and {name} (cases {first} and {second})", where=where,
            got=f"{len(leaks)} such patients", fix="keep all images of a patient in one part, or use split_by_patient",
        )  # fmt: skip
