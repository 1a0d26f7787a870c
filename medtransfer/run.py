"""The run folder: everything one training leaves behind, written whole or not at all, and read back.

::

    run.json             what was asked, and whether it is complete
    split.json           who was in which part, by pseudonym
    record.json          model, receipt, learning curves, environment: what the report shows
    fold-0/model.safetensors   the best model, its description in the header
    fold-0/last.safetensors    where training stands, to go on from
    private/ids.csv      pseudonyms and the ids behind them; readable by this user alone
"""

from __future__ import annotations

import csv
import errno
import io
import json
import platform
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

import medtransfer
from medtransfer.cache import Cache, fingerprint, write_atomically
from medtransfer.claims import create
from medtransfer.cohort import Cohort
from medtransfer.dataset import Prepared
from medtransfer.errors import RunError
from medtransfer.predictions import Predictions, concatenate
from medtransfer.prepare import Prepare
from medtransfer.split import Part, Split

if TYPE_CHECKING:
    from torch import Tensor

    from medtransfer.model import Model

_PACKAGES = ("torch", "torchvision", "monai", "numpy", "pydicom", "nibabel", "scikit-learn", "lightning-fabric")


@dataclass
class Run:
    """A trained run; made by :func:`medtransfer.fit`, opened again by :meth:`open`.

    Parameters
    ----------
    folder : Path
    cohort : Cohort
        Cases the run can speak about.
    split : Split
    prepare : Prepare
        As in training.
    device : str
        Where prediction runs.

    Attributes
    ----------
    kept : dict of str to ndarray
        What was computed of all cases and is needed again.
    """

    folder: Path
    cohort: Cohort
    split: Split
    prepare: Prepare
    device: str = "cpu"
    progress: bool = field(default=True, repr=False)
    workers: int = field(default=2, repr=False)
    prepared: Prepared = field(init=False, repr=False)
    kept: dict[str, NDArray[np.floating[Any]]] = field(default_factory=dict, init=False, repr=False)
    _models: dict[int, Model] = field(default_factory=dict, init=False, repr=False)
    _averages: dict[int, dict[str, Tensor]] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        self.prepared = Prepared(self.cohort.cases, self.prepare, cache=Cache(), workers=self.workers,
                                 progress=self.progress)  # fmt: skip

    @classmethod
    def open(cls, folder: str | Path, cohort: Cohort, *, device: str = "cpu", progress: bool = True) -> Run:
        """Open a finished run beside the cohort it was trained on.

        Raises
        ------
        RunError
            Where the folder holds no finished run.
        SplitError
            Where the cohort is not the one of the run.
        """
        folder = Path(folder)
        state = read_state(folder)
        if state.get("status") != "complete":
            raise RunError(
                "the run is not complete", where=folder.name, fix="run the training command again: it goes on"
            )
        split = Split.load(folder / "split.json", cohort)
        return cls(folder, cohort, split, Prepare(**state["asked"]["prepare"]), device, progress)

    def model(self, fold: int = 0) -> Model:
        """The best model of a fold, in evaluation mode."""
        if fold not in self._models:
            self._models[fold] = load_checkpoint(self.folder / f"fold-{fold}" / "model.safetensors").eval()
        return self._models[fold]

    def predict(self, part: Part | Sequence[int], *, fold: int | None = None) -> Predictions:
        """Predictions for cases of the run's cohort.

        Parameters
        ----------
        part : Part or sequence of int
            ``split.test``, ``split.folds[1].test`` or indices into the cohort.
        fold : int or None
            Whose model speaks; a part knows its own fold.

        Raises
        ------
        RunError
            Where indices of a run with several folds come without ``fold``.
        """
        from medtransfer.predict import probabilities

        if fold is None:
            fold = part.fold if isinstance(part, Part) else 0 if len(self.split.folds) == 1 else None
        if fold is None:
            raise RunError("cases of a run with several folds need fold=", got=f"{len(self.split.folds)} folds")
        name = part.name if isinstance(part, Part) else "chosen"
        chances = probabilities(self.model(fold), self.prepared, part, device=self.device, progress=self.progress)
        return self.predictions(part, chances, fold, name)

    def predictions(self, part: Sequence[int], chances: NDArray[np.float64], fold: int, name: str) -> Predictions:
        """Probabilities for cases of the cohort, with their references and pseudonyms."""
        index = list(part)
        cases = [self.cohort.cases[i] for i in index]
        return Predictions(
            case=np.array([c.alias for c in cases], dtype=np.str_),
            patient=np.array([c.patient_alias for c in cases], dtype=np.str_),
            reference=self.cohort.references[index],
            probability=chances,
            classes=self.cohort.classes,
            fold=np.full(len(index), fold, dtype=np.int64),
            part=name,
            source=self,
            task=self.cohort.task,
        )

    def validation(self) -> Predictions:
        """What thresholds and calibrators are fitted on: the validation parts of all folds.

        Where a split has no validation part, logistic regression's inner cross-validation stands in: each
        training case by a model that had not seen its patient.
        """
        found = []
        for number, fold in enumerate(self.split.folds):
            if len(fold.val):
                found.append(self.predict(fold.val))
            else:
                raw = np.array(json.loads((self.folder / f"fold-{number}" / "held_out.json").read_text()))
                found.append(self.predictions(fold.train, raw, number, "val"))
        return concatenate(found)

    def test(self) -> Predictions:
        """Predictions for the test parts of all folds, each case by a model that had not seen its patient."""
        return concatenate([self.predict(fold.test) for fold in self.split.folds])

    def record(self) -> dict[str, object]:
        """What the run wrote down about itself, for the report."""
        return json.loads((self.folder / "record.json").read_text(encoding="utf-8"))  # type: ignore[no-any-return]

    def describe(self, facts: dict[str, object]) -> None:
        """Add facts to the run's record: title, author fields, the command, the configuration."""
        known = self.record() if (self.folder / "record.json").is_file() else {}
        write_json(self.folder / "record.json", known | facts)

    def find(self, case: str) -> tuple[int, int] | None:
        """Index of a case by pseudonym, and the fold whose model had not seen its patient (0 for training cases)."""
        where = {alias: i for i, alias in enumerate(self.cohort.aliases)}
        if case not in where:
            return None
        index = where[case]
        return index, next((k for k, fold in enumerate(self.split.folds) if index in set(fold.test)), 0)

    def picture(self, case: str, at: int | None = None) -> NDArray[np.uint8] | None:
        """The prepared image of a case by pseudonym, as the network saw it; a volume's middle slice, or another."""
        found = self.find(case)
        return None if found is None else self.shown(self.prepared.one(found[0]), at)

    def shown(self, array: NDArray[np.float32], at: int | None = None) -> NDArray[np.uint8]:
        """A prepared array as a picture: of a bag its first image, of a volume its middle slice, or another."""
        if array.ndim == 4:
            array = array[:, (0 if self.prepared.most else array.shape[1] // 2) if at is None else at]
        shown = array if array.shape[0] == 3 and self.prepare.window_hu is None else array[:1]
        return (np.moveaxis(shown, 0, -1).squeeze() * 255).round().astype(np.uint8)

    def heatmap(self, case: str, class_index: int) -> NDArray[np.float32] | None:
        """Where a case by pseudonym speaks for a class more than the average training image does.

        See :func:`medtransfer.explain.gradcam`; the average is that of :meth:`usual`.
        """
        from medtransfer.explain import average_maps, gradcam

        if (found := self.find(case)) is None:
            return None
        index, fold = found
        if fold not in self._averages:
            self._averages[fold] = average_maps(self.model(fold), self.usual(fold))
        return gradcam(self.model(fold), self.prepared.one(index), target=class_index, average=self._averages[fold])

    def usual(self, fold: int, most: int | None = None) -> list[NDArray[np.float32]]:
        """Prepared training images of a fold, evenly spaced through the cohort: at most 48, of volumes 12."""
        most = most or (48 if self.prepare.dims == 2 else 12)
        train = list(self.split.folds[fold].train)
        places = np.unique(np.linspace(0, len(train) - 1, min(most, len(train))).round().astype(int))
        return [self.prepared.one(train[i]) for i in places]

    def __repr__(self) -> str:
        folds = f"{len(self.split.folds)} folds" if len(self.split.folds) > 1 else "holdout"
        return f"Run({self.folder.name}: {folds}, {len(self.cohort)} cases)"

    def _repr_html_(self) -> str:
        from html import escape

        known = self.record() if (self.folder / "record.json").is_file() else {}
        model = known.get("model")
        facts = {k: model.get(k) for k in ("backbone", "weights", "head")} if isinstance(model, dict) else {}
        facts |= {"seed": known.get("seed"), "run time": f"{known['runtime_s']} s" if "runtime_s" in known else None}
        rows = [(k, v) for k, v in facts.items() if v is not None]
        body = "".join(f"<tr><td>{k}</td><td style='text-align:right'>{escape(str(v))}</td></tr>" for k, v in rows)
        return f"<table><caption>{escape(repr(self))}</caption>{body}</table>{self.split._repr_html_()}"


def make_folder(folder: Path) -> Path:
    """Make a run folder with its private part; the path of the latter.

    Raises
    ------
    RunError
        Where it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "private").mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise RunError(
            "the run folder cannot be made", where=folder.name, got=error.strerror, fix="choose another out"
        ) from error
    return folder / "private"


def begin(folder: Path, asked: dict[str, Any], cohort: Cohort, split: Split) -> bool:
    """Make the run folder, or find that it holds this very run; whether it is complete already.

    Raises
    ------
    RunError
        Where the folder cannot be written or holds another run.
    """
    plain = json.loads(json.dumps(asked, sort_keys=True))
    identity = fingerprint(json.dumps(plain, sort_keys=True))
    make_folder(folder)
    if (folder / "run.json").is_file():
        state = read_state(folder)
        if state.get("identity") != identity:
            different = sorted(k for k in plain if state.get("asked", {}).get(k) != plain[k])
            raise RunError(
                "the folder holds a run of other settings or data",
                where=folder.name,
                got=f"other {', '.join(different) or 'version'}",
                fix="choose another out, or remove the folder",
            )
        return bool(state.get("status") == "complete")
    write_private(folder / "private" / "ids.csv", cohort)
    split.save(folder / "split.json")
    state = {"format": 1, "identity": identity, "status": "running", "asked": plain}
    if create(folder / "run.json", json.dumps(state, indent=1, sort_keys=True) + "\n"):
        return False
    return begin(folder, asked, cohort, split)  # another process has just begun it


def finish(folder: Path) -> None:
    """Mark the run complete."""
    write_json(folder / "run.json", read_state(folder) | {"status": "complete"})


def read_state(folder: Path) -> dict[str, Any]:
    """``run.json`` of a folder."""
    try:
        return json.loads((folder / "run.json").read_text(encoding="utf-8"))  # type: ignore[no-any-return]
    except FileNotFoundError:
        raise RunError(
            "there is no run in this folder", where=folder.name, fix="give the out folder of a training"
        ) from None
    except ValueError as error:
        raise RunError("run.json is damaged", where=folder.name, fix="train again into another folder") from error


def write(path: Path, content: bytes | str, *, mode: int = 0o644) -> None:
    """Write into the run folder, or say what the disk lacks."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, content, mode=mode)
    except OSError as error:
        found = error.strerror or type(error).__name__
        if error.errno == errno.ENOSPC and path.parent.is_dir():
            free = shutil.disk_usage(path.parent).free
            found += f": {free:,} bytes are free, {max(1, len(content) - free):,} are missing"
        raise RunError(
            f"{len(content):,} bytes cannot be written",
            where=f"{path.parent.name}/{path.name}",
            got=found,
            fix="free space or rights; what was there before is intact",
        ) from error


def write_json(path: Path, value: object) -> None:
    """Write plain types as JSON."""
    write(path, json.dumps(value, indent=1, sort_keys=True) + "\n")


def append(path: Path, value: dict[str, Any]) -> None:
    """Add one JSON line to a log; an epoch that was begun again stands there twice."""
    try:
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps(value) + "\n")
    except OSError as error:
        raise RunError("the log cannot be written", where=path.name, got=error.strerror, fix="free space") from error


def write_private(path: Path, cohort: Cohort) -> None:
    """The map from pseudonyms back to the user's ids and files; mode 0600, for no export."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["case", "patient", "case_id", "patient_id", "files"])
    for case in cohort.cases:
        files = [f for i in case.images for f in (getattr(i, "files", None) or ([i] if isinstance(i, Path) else []))]
        row = [case.alias, case.patient_alias, case.case_id, case.patient_id]
        writer.writerow([*row, ";".join(str(f) for f in files)])
    write(path, text.getvalue(), mode=0o600)


def save_checkpoint(path: Path, tensors: dict[str, Tensor], facts: dict[str, str]) -> None:
    """Write tensors as safetensors with facts in the header; nothing is pickled."""
    from safetensors.torch import save

    whole = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
    # one entry: the order of several is not fixed, and the same run must give the same bytes
    write(path, save(whole, metadata={"medtransfer": json.dumps(facts, sort_keys=True)}))


def read_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and facts of a checkpoint.

    Raises
    ------
    RunError
        Where it is missing or damaged.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            facts = json.loads((file.metadata() or {})["medtransfer"])
            return {k: file.get_tensor(k) for k in file.keys()}, facts  # noqa: SIM118
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise RunError(
            "the checkpoint is missing or damaged",
            where=f"{path.parent.name}/{path.name}",
            got=type(error).__name__,
            fix="remove the fold's folder and run the same command: the fold is trained again",
        ) from error


def load_checkpoint(path: Path) -> Model:
    """The model of a checkpoint, built again from the description in its header."""
    from medtransfer.model import Description, rebuild

    tensors, facts = read_checkpoint(path)
    model = rebuild(Description.from_json(facts["description"]))
    model.load_state_dict(tensors)
    return model


def environment() -> dict[str, str]:
    """Versions that results depend on."""
    from importlib.metadata import PackageNotFoundError, version

    found = {"medtransfer": medtransfer.__version__, "python": platform.python_version(), "system": platform.platform()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found
