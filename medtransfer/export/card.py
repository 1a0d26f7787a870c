"""The card that travels with an exported model: what it is fed, what it answers, what was decided; no patients."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medtransfer.errors import ConfigError, RunError
from medtransfer.prepare import Prepare
from medtransfer.run import environment, read_state

if TYPE_CHECKING:
    from medtransfer.model import Description
    from medtransfer.segment.plan import Plan

KEY = "medtransfer"  # in ONNX's metadata
FORMAT = 1


@dataclass(frozen=True)
class Card:
    """What an exported model needs beside its tensors.

    Parameters
    ----------
    task : str
        ``classification``, ``multilabel``, ``ordinal``, ``regression`` or ``segmentation``.
    names : tuple of str
        Classes, labels or targets in the order of the answer; of a segmentation the structures after the background.
    shape : tuple of int
        One prepared input: channels, then (rows, columns) or (z, y, x). Of a bag, that of one of its images; of a
        segmentation, the window that slides.
    prepare : dict or None
        Arguments of :class:`medtransfer.Prepare`.
    plan : dict or None
        Of a segmentation, arguments of :class:`medtransfer.segment.Plan`.
    bag : bool
        Whether a case is several images ``[channels, images, ...]``, absent ones not a number.
    folds : int
        Models whose answers are averaged inside.
    decided : dict
        Threshold rule and values by fold as they were stored: :attr:`thresholds`.
    finish : dict
        Of a segmentation, the post-processing of each structure by number.
    weights : dict
        Which pretrained weights it began with, from where, under which licence.
    environment : dict
        Versions of packages when it was exported.
    """

    task: str
    names: tuple[str, ...]
    shape: tuple[int, ...]
    prepare: dict[str, Any] | None = None
    plan: dict[str, Any] | None = None
    bag: bool = False
    folds: int = 1
    decided: dict[str, Any] = field(default_factory=dict)
    finish: dict[str, Any] = field(default_factory=dict)
    weights: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def outputs(self) -> int:
        """Columns, or channels, of the answer."""
        return len(self.names) + (self.task == "segmentation")

    @property
    def output(self) -> str:
        """What the answer is called."""
        return "value" if self.task == "regression" else "probability"

    @property
    def columns(self) -> list[str]:
        """Columns of a table of predictions: the answer, and what the case is called."""
        return [*(f"p:{name}" for name in self.names), *(["called"] if self.task != "regression" else [])]

    @property
    def thresholds(self) -> dict[str, float]:
        """Threshold of each class that has one, of several folds their mean, as external validation takes it.

        Examples
        --------
        >>> stored = {"threshold": {"rule": "youden", "by_fold": {"0": 0.25, "1": 0.75}}}
        >>> Card("classification", ("no", "yes"), (1, 8, 8), decided=stored).thresholds
        {'yes': 0.5}
        """
        each = dict(self.decided.get("thresholds") or {})
        if self.decided.get("threshold") and len(self.names) == 2:
            each[self.names[-1]] = self.decided["threshold"]
        found = {k: list((stored.get("by_fold") or {}).values()) for k, stored in each.items() if k in self.names}
        return {name: sum(map(float, values)) / len(values) for name, values in found.items() if values}

    def row(self, said: Sequence[float]) -> list[str]:
        """What one case was answered with, in :attr:`columns`.

        Of two classes the second is called where its probability reaches the stored threshold; without one, and of
        more classes, the most probable. Of several labels all that reach theirs (without one, one half), parted by
        semicolons.

        Examples
        --------
        >>> stored = {"threshold": {"rule": "youden", "by_fold": {"0": 0.25}}}
        >>> Card("classification", ("no", "yes"), (1, 8, 8), decided=stored).row([0.7, 0.3])
        ['0.700000', '0.300000', 'yes']
        >>> Card("multilabel", ("mass", "effusion", "gas"), (1, 8, 8)).row([0.7, 0.3, 0.5])
        ['0.700000', '0.300000', '0.500000', 'mass;gas']
        """
        said = [float(p) for p in said]
        cells = [f"{p:.6f}" for p in said]
        if self.task == "regression":
            return cells
        limits = self.thresholds
        if self.task == "multilabel":
            called = [n for n, p in zip(self.names, said, strict=True) if p >= limits.get(n, 0.5)]
            return [*cells, ";".join(called)]
        if len(limits) == 1:
            return [*cells, self.names[int(said[-1] >= limits[self.names[-1]])]]
        return [*cells, self.names[said.index(max(said))]]

    def preparation(self) -> Prepare:
        """The preparation of one image."""
        return Prepare(**self.prepare or {})

    def planned(self) -> Plan:
        """The plan of a segmentation."""
        from medtransfer.segment.plan import Plan

        return Plan(**self.plan or {})

    def to_json(self) -> str:
        """As it is stored."""
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=1, sort_keys=True)

    @classmethod
    def from_json(cls, text: str | bytes, *, where: str = "") -> Card:
        """What :meth:`to_json` wrote.

        Raises
        ------
        RunError
            Where it is something else, or of a later version.

        Examples
        --------
        >>> card = Card("regression", ("age",), (1, 8, 8), {"size": [8, 8]})
        >>> Card.from_json(card.to_json()) == card
        True
        """
        try:
            stored = json.loads(text)
            if stored.pop("format") != FORMAT:
                raise ValueError("another format")
            if unknown := set(stored) - {f.name for f in fields(cls)}:
                raise ValueError(f"unknown {sorted(unknown)[0]}")
            card = cls(**stored | {k: tuple(stored[k]) for k in ("names", "shape")})
            card.planned() if card.task == "segmentation" else card.preparation()
        except (ValueError, TypeError, KeyError, AttributeError) as error:  # pydantic's error is a ValueError
            raise RunError(
                "this is no card of an exported model", where=where, got=type(error).__name__,
                fix="export the run again with this version",
            ) from error  # fmt: skip
        return card


def card_of(run: Path, description: Description, folds: list[int]) -> Card:
    """The card of a finished run, for the models of these folds."""
    asked = read_state(run)["asked"]
    weights = {k: v for k, v in description.weights.items() if k != "file"} | {"architecture": description.arch}
    known: dict[str, Any] = {"folds": len(folds), "weights": weights, "environment": environment()}
    if asked.get("task") == "segmentation":
        finish = json.loads((run / f"fold-{folds[0]}" / "finish.json").read_text(encoding="utf-8"))
        plan = asked["plan"]
        window = plan["patch"] if len(plan["patch"]) == 2 else plan["patch"][::-1]
        shape = (description.in_channels, *window)
        return Card("segmentation", tuple(asked["structures"]), shape, plan=plan, finish=finish, **known)
    prepare = Prepare(**asked["prepare"])
    size = prepare.size if prepare.dims == 2 else prepare.size[::-1]
    return Card(
        description.task, tuple(asked["classes"]), (description.in_channels, *size),
        prepare=prepare.model_dump(mode="json"), bag=bool(asked.get("bag")), decided=_decided(run, folds), **known,
    )  # fmt: skip


def folds_of(run: Path, fold: int | None) -> list[int]:
    """Numbers of the folds that a finished run trained, or the one that is asked for.

    Raises
    ------
    RunError
        Where the run is not complete.
    ConfigError
        Where there is no such fold.
    """
    if read_state(run).get("status") != "complete":
        raise RunError("the run is not complete", where=run.name, fix="run the training command again: it goes on")
    found = sorted(int(p.parent.name.removeprefix("fold-")) for p in run.glob("fold-*/model.safetensors"))
    if not found:
        raise RunError("the run has no models", where=run.name, fix="train it again into another folder")
    if fold is None:
        return found
    if fold not in found:
        raise ConfigError(f"there is no fold {fold}", where=run.name, got=f"folds {', '.join(map(str, found))}")
    return [fold]


def _decided(run: Path, folds: Sequence[int]) -> dict[str, Any]:
    """Of the thresholds only those of these folds, and only their values: the rest names validation cases."""
    metrics = run / "metrics.json"
    if not metrics.is_file():
        return {}
    stored = json.loads(metrics.read_text(encoding="utf-8"))

    def kept(point: dict[str, Any]) -> dict[str, Any]:
        return point | {"by_fold": {k: v for k, v in point["by_fold"].items() if int(k) in folds}}

    found: dict[str, Any] = {}
    if stored.get("threshold"):
        found["threshold"] = kept(stored["threshold"])
    if stored.get("thresholds"):
        found["thresholds"] = {label: kept(point) for label, point in stored["thresholds"].items()}
    return found
