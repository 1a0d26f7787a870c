"""Masks for the cases of a part, and how good they are: case by case, structure by structure, with intervals."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medtransfer.cache import write_atomically
from medtransfer.image import Image
from medtransfer.memory import reusing_pages
from medtransfer.metrics.intervals import ClusterBootstrap, Estimate, plain
from medtransfer.metrics.masks import MaskScore, score_masks
from medtransfer.metrics.panel import Panel
from medtransfer.metrics.segmentation import segmentation, segmentation_difference
from medtransfer.segment.beside import Beside
from medtransfer.segment.made import Made
from medtransfer.segment.masks import read_pair
from medtransfer.segment.room import read_image
from medtransfer.segment.run import SegmentationRun
from medtransfer.split import Part

Labels = NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Segmented:
    """How well the masks of some cases fit their references.

    Parameters
    ----------
    cases, patients : tuple of str
        Pseudonyms.
    scores : tuple of dict of str to MaskScore
        The structures of each case.
    panel : Panel
        Estimates over all structures.
    rows : list of dict
        Estimates of each structure.
    tolerance_mm : float
        Of the surface Dice.
    beside : tuple of Beside
        Other tools' Dice on the same cases, from columns of the cohort's table.
    """

    cases: tuple[str, ...]
    patients: tuple[str, ...]
    scores: tuple[Mapping[str, MaskScore], ...]
    panel: Panel
    rows: list[dict[str, Estimate]]
    tolerance_mm: float
    beside: tuple[Beside, ...] = ()

    @property
    def structures(self) -> tuple[str, ...]:
        """Names of the structures, in the order of :attr:`rows`."""
        return tuple(self.scores[0])

    @property
    def estimates(self) -> Mapping[str, Estimate]:
        """Of all structures together."""
        return self.panel.estimates

    @property
    def primary(self) -> str:
        """The estimate that is reported first."""
        return "dice"

    def table(self) -> list[dict[str, Any]]:
        """A row for each structure of each case, worst Dice first."""
        rows = [
            {"case": case, "patient": patient, "structure": name, **asdict(score)}
            for case, patient, each in zip(self.cases, self.patients, self.scores, strict=True)
            for name, score in each.items()
        ]
        return sorted(rows, key=lambda r: (r["dice"] != r["dice"], r["dice"]))

    def compare(self, other: Segmented, *, bootstrap: int = 2000, seed: int = 0) -> dict[str, dict[str, Estimate]]:
        """Paired differences self − other of the means over the same cases, by structure."""
        place = {case: i for i, case in enumerate(other.cases)}
        theirs = [other.scores[place[case]] for case in self.cases]
        resamples = ClusterBootstrap.draw(list(self.patients), resamples=bootstrap, seed=seed)
        return segmentation_difference(self.scores, theirs, resamples)

    def save(self, folder: str | Path) -> None:
        """Write ``segmentation.json`` (estimates) and ``segmentation.csv`` (a row for each structure of each case)."""
        folder = Path(folder)
        write_atomically(folder / "segmentation.json", json.dumps(self.to_json(), indent=1) + "\n")
        rows, text = self.table(), io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([list(rows[0]), *(list(row.values()) for row in rows)])
        write_atomically(folder / "segmentation.csv", text.getvalue())

    def to_json(self) -> dict[str, object]:
        """Estimates over all structures and of each, as plain JSON types."""
        each = {n: _record(r) for n, r in zip(self.structures, self.rows, strict=True)}
        found = {"tolerance_mm": self.tolerance_mm, "all": _record(self.panel.estimates), "structures": each}
        return found | ({"beside": [b.to_json() for b in self.beside]} if self.beside else {})

    def summary(self) -> str:
        """Dice, surface Dice, HD95 and misses of each structure, a line each."""
        lines = []
        for name, row in zip(self.structures, self.rows, strict=True):
            shown = ", ".join(f"{k} {row[k]}" for k in ("dice", "nsd", "hd95", "missed") if k in row)
            lines.append(f"{name}: {shown}")
        lines += [str(b) for b in self.beside]
        return "\n".join(lines)

    __str__ = summary


def _record(estimates: Mapping[str, Estimate]) -> dict[str, object]:
    return {name: plain(estimate.to_json()) for name, estimate in estimates.items()}


def predict_masks(
    run: SegmentationRun, part: Part | Sequence[int], *, fold: int | None = None, out: str | Path | None = None
) -> Iterator[tuple[int, Image, Labels]]:
    """Masks for cases of the run's cohort, one after the other, on their images' own voxels.

    Parameters
    ----------
    run : SegmentationRun
    part : Part or sequence of int
        A part knows whose fold it is held out from.
    fold : int or None
        Whose model speaks; None takes the part's, or all of them for other cases.
    out : path or None
        Folder for ``<pseudonym>.nii.gz`` and the names of the labels. Masks that this run has written there from the
        same images are used again (:class:`medtransfer.segment.made.Made`).

    Yields
    ------
    index, image, labels
    """
    from medtransfer.out.names import write_names
    from medtransfer.out.nifti import write_mask

    if fold is None and isinstance(part, Part):
        fold = part.fold
    folds = None if fold is None else [fold]
    made = None if out is None else Made(run, out)
    with reusing_pages():
        for index in part:
            case = run.cohort.cases[index]
            image = read_image(case)
            kept = made if image.geometry.affine is not None else None
            labels = None if kept is None else kept.get(case, image, folds)
            if labels is None:
                labels = run.segment(image, folds=folds, where=case.alias)
                if kept is not None:
                    source = case.image if isinstance(case.image, Path) and case.image.is_file() else None
                    write_mask(labels, image, kept.path(case), source=source)
                    kept.put(case, image, folds)
            if kept is not None and not (kept.folder / "labels.txt").is_file():
                write_names(kept.folder, run.structures)
            yield index, image, labels


def evaluate_masks(
    run: SegmentationRun,
    part: Part | Sequence[int],
    *,
    tolerance_mm: float = 1.0,
    bootstrap: int = 2000,
    seed: int = 0,
    fold: int | None = None,
    out: str | Path | None = None,
) -> Segmented:
    """Segment the cases of a part and score them against their references.

    Parameters
    ----------
    run, part, fold, out
        As in :func:`predict_masks`.
    tolerance_mm : float
        Surface distance up to which surfaces agree.
    bootstrap, seed : int
        Resamples of patients for the intervals, and their seed.
    """
    structures = {name: i for i, name in enumerate(run.structures, start=1)}
    scores, members = [], []
    for index, image, labels in predict_masks(run, part, fold=fold, out=out):
        _, reference, _ = read_pair(run.cohort.cases[index], len(structures) + 1)
        spacing = image.geometry.spacing_mm or (1.0,) * labels.ndim
        scores.append(score_masks(reference, labels, spacing, structures=structures, tolerance_mm=tolerance_mm))
        members.append(run.cohort.cases[index])
    patients = tuple(c.patient_alias for c in members)
    resamples = ClusterBootstrap.draw(list(patients), resamples=bootstrap, seed=seed)
    panel, rows = segmentation(scores, resamples)
    return Segmented(tuple(c.alias for c in members), patients, tuple(scores), panel, rows, tolerance_mm)
