"""Cohorts: cases with their patients, labels and the flow that led to them, checked once at the door."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from medtransfer import _rows
from medtransfer._case import Case, FlowStep, images_of
from medtransfer._labels import say_lines
from medtransfer._medmnist import from_arrays
from medtransfer._reference import columns_of, read_references
from medtransfer._table1 import SplitLike, say_reference, table1, table1_html
from medtransfer.errors import CohortError
from medtransfer.predictions import BY_CLASS, Task
from medtransfer.pseudonym import patient_key
from medtransfer.table import read_table

if TYPE_CHECKING:
    from medtransfer.io.scan import Scan

__all__ = ["Case", "Cohort", "FlowStep", "images_of"]


@dataclass(frozen=True, eq=False)
class Cohort:
    """Cases over classes.

    Parameters
    ----------
    cases : tuple of Case
    classes : tuple of str
        Class names in the order of the label index; of two, the positive one is last. In a multi-label task
        the labels, in a regression the targets. Empty where the cases have no reference (prediction).
    flow : tuple of FlowStep
        From what was found to the cases, each exclusion with its reason.
    name : str
        What the cohort is called in reports.
    notes : tuple of str
        What a reader of results must know about the data.
    task : {'classification', 'multilabel', 'ordinal', 'regression'}

    Examples
    --------
    >>> cases = [Case(f"c{i}", f"p{i // 2}", np.zeros((4, 4)), label=i % 2) for i in range(6)]
    >>> cohort = Cohort(tuple(cases), ("no", "yes"))
    >>> cohort
    Cohort('cohort': 6 cases of 3 patients, no 3, yes 3)
    >>> cohort.take([0, 5]).labels
    array([0, 1])
    """

    cases: tuple[Case, ...] = field(repr=False)
    classes: tuple[str, ...] = ()
    flow: tuple[FlowStep, ...] = ()
    name: str = "cohort"
    notes: tuple[str, ...] = ()
    task: Task = "classification"

    def __len__(self) -> int:
        return len(self.cases)

    def __iter__(self) -> Iterator[Case]:
        return iter(self.cases)

    def __getitem__(self, index: int) -> Case:
        return self.cases[index]

    @cached_property
    def labels(self) -> NDArray[np.int64]:
        """Class index of each case, -1 where there is none, shape (n,)."""
        return np.array([-1 if c.label is None else c.label for c in self.cases], dtype=np.int64)

    @cached_property
    def references(self) -> NDArray[np.int64] | NDArray[np.float64]:
        """What the reference standard says: labels (n,), or values of all labels or targets (n, C), NaN unknown."""
        if self.task in BY_CLASS:
            return self.labels
        unknown = (np.nan,) * len(self.classes)
        rows = [unknown if c.target is None else np.atleast_1d(c.target) for c in self.cases]
        return np.array(rows, dtype=np.float64).reshape(len(self), len(self.classes))

    @cached_property
    def bags(self) -> int:
        """Most images that a case has where cases are bags, else 0."""
        return max((len(c.image) for c in self.cases if isinstance(c.image, tuple)), default=0)

    @cached_property
    def patients(self) -> NDArray[np.str_]:
        """Patient of each case, comparable text that stays in memory, shape (n,)."""
        return np.array([patient_key(c.patient_id) for c in self.cases], dtype=np.str_)

    @cached_property
    def aliases(self) -> tuple[str, ...]:
        """Pseudonym of each case."""
        return tuple(c.alias for c in self.cases)

    @cached_property
    def fingerprint(self) -> str:
        """Digest of the cases, patients, labels and parts in their order; tells whether a split belongs here."""
        digest = hashlib.sha256()
        for c in self.cases:
            digest.update(f"{c.alias}\0{c.patient_alias}\0{c.label}\0{c.target}\0{c.part}\n".encode())
        return digest.hexdigest()[:16]

    def take(self, indices: Sequence[int] | NDArray[np.integer[Any]]) -> Cohort:
        """The cohort of these cases, with the same classes."""
        cases = tuple(self.cases[int(i)] for i in indices)
        return replace(self, cases=cases, flow=(*self.flow, FlowStep("cases taken", len(cases))))

    def table1(self, split: SplitLike | None = None) -> dict[str, list[Any]]:
        """Numbers, classes, age, sex, site and manufacturer, in all and by part of a split.

        Returns
        -------
        dict
            ``columns``: names of the value columns; ``rows``: lists of a name and one text a column.
        """
        return table1(self, split)

    def flow_record(self) -> list[list[Any]]:
        """The flow as plain JSON types: ``[label, count, [[reason, n], ...]]`` a step."""
        return [[step.label, step.count, [list(e) for e in step.excluded]] for step in self.flow]

    def summary(self) -> str:
        """The flow and the classes, a line each."""
        lines = [repr(self)]
        for step in self.flow:
            left_out = ", ".join(f"{n:,} {reason}" for reason, n in step.excluded)
            lines.append(f"  {step.count:>7,} {step.label}" + (f" (left out: {left_out})" if left_out else ""))
        return "\n".join([*lines, *(f"  note: {n}" for n in self.notes)])

    def __repr__(self) -> str:
        counts = [f"{name} {say_reference(self, range(len(self)), k)}" for k, name in enumerate(self.classes)]
        patients = len(set(self.patients.tolist()))
        return f"Cohort({self.name!r}: {', '.join([f'{len(self)} cases of {patients} patients', *counts])})"

    def _repr_html_(self) -> str:
        return table1_html(self)

    @classmethod
    def from_csv(
        cls,
        csv: str | Path,
        *,
        root: str | Path = ".",
        image: str = "image",
        label: str | tuple[str, ...] | None = "label",
        classes: Sequence[object] | None = None,
        task: Task | None = None,
        patient: str = "patient_id",
        case: str = "case_id",
        mask: str | None = None,
        target: str | tuple[str, ...] | None = None,
        bag: str | None = None,
        part: str | None = None,
        covariates: Sequence[str] = (),
        sheet: str | int = 0,
    ) -> Cohort:
        """Cases from a table: one row an image.

        Parameters
        ----------
        csv : path
            CSV, TSV or Excel; every id is kept as text.
        root : path
            Folder that relative image paths start from; a relative path must not leave it. An absolute
            path in a cell is taken as it is.
        image, patient, case, mask, part : str
            Names of columns. ``mask`` holds a segmentation, ``part`` an official split (train, val, test).
            Without a case column the row number names the case.
        label : str, tuple of str or None
            Column of the class. Several columns, each with 1, 0 or nothing (unknown), are a multi-label task;
            so is one column that lists findings (``'effusion|nodule'``) with ``task='multilabel'``. None: no label.
        classes : sequence or None
            Class names, the positive one last, or in rising order; None finds them.
        task : {'classification', 'multilabel', 'ordinal', 'regression'} or None
            None takes several label columns as multi-label, targets as regression, else classification.
        target : str, tuple of str or None
            Columns of numbers to predict.
        bag : str or None
            Column whose rows belong together: their images become one case, e.g. all views of a study.
        covariates : sequence of str
            Columns to carry along; age, sex, site and manufacturer are carried in any case.
        sheet : str or int
            Excel sheet.

        Raises
        ------
        CohortError
            For a missing column, missing or duplicate ids, missing images, unknown or contradictory labels;
            the message names the lines.
        """
        table = read_table(csv, sheet=sheet)
        table.require({"image": image, "mask": mask, "part": part, "bag": bag, "covariates": covariates})
        if target is not None or (mask and label == "label" and label not in table.columns):
            label = None
        named = columns_of(label, target)
        table.require({"label" if target is None else "target": named})
        table = table.with_points(covariates).with_points(columns_of(None, target), strict=True)
        if patient not in table.columns:
            raise CohortError(
                f"there is no column '{patient}'; without it images of one patient could be trained on and tested on",
                where=table.name,
                got=f"columns {', '.join(table.columns)}",
                fix=f"patient='{table.find(patient) or '...'}' names the column of patients; "
                "use the case column if no patient has two images",
            )
        names = _rows.case_ids(table, case)
        _rows.refuse_blank(table, patient, "patient")
        keep, lacking = _rows.complete(table, {"image": image, "label" if label else "target": named, "mask": mask})
        rows, lines = [table.rows[i] for i in keep], [table.lines[i] for i in keep]
        if not rows:
            raise CohortError(
                "no row is complete", where=table.name, got=", ".join(f"{len(n)} {r}" for r, n in lacking.items())
            )
        told = read_references(table, rows, lines, task=task, label=label, target=target, classes=classes)
        images = _rows.paths(table, rows, lines, image, Path(root))
        masks = _rows.paths(table, rows, lines, mask, Path(root)) if mask else [None] * len(rows)
        _rows.refuse_contradiction(table, images, list(zip(told.labels, map(repr, told.targets), strict=True)), lines)
        carry = _rows.covariate_columns(table, covariates)
        notes = (*told.notes, *(f"rows {reason} were left out: {say_lines(n)}" for reason, n in lacking.items()))
        cases = tuple(
            Case(
                case_id=names[i],
                patient_id=row[patient],
                image=images[k],
                label=told.labels[k],
                covariates=_rows.read_covariates(row, carry),
                part=row[part] if part else "",
                mask=masks[k],
                target=told.value(k),
            )
            for k, (i, row) in enumerate(zip(keep, rows, strict=True))
        )
        steps = [FlowStep("rows of the table", len(table.rows)),
                 FlowStep("images", len(cases), tuple((reason, len(n)) for reason, n in lacking.items()))]  # fmt: skip
        if bag is not None:
            cases = _rows.gather(table, cases, [row[bag] for row in rows], lines, bag)
            steps.append(FlowStep("cases", len(cases)))
        else:
            steps[-1] = replace(steps[-1], label="cases")
        return cls.build(cases, told.classes, steps, notes=notes, task=told.task)

    @classmethod
    def from_dicom(
        cls,
        dicom: str | Path | Scan,
        *,
        labels: str | Path | None = None,
        on: Literal["PatientID", "StudyInstanceUID", "SeriesInstanceUID", "file"] = "PatientID",
        column: str | None = None,
        label: str | tuple[str, ...] | None = "label",
        target: str | tuple[str, ...] | None = None,
        classes: Sequence[object] | None = None,
        task: Task | None = None,
        patient: str | None = None,
        part: str | None = None,
        modality: str | None = None,
        description: str | None = None,
        plane: Literal["axial", "coronal", "sagittal"] | None = None,
        choose: Literal["only", "all", "bag", "most_slices", "thinnest"] = "only",
        mask: str | None = None,
        root: str | Path = ".",
        covariates: Sequence[str] = (),
        sheet: str | int = 0,
        scan_store: str | Path | None = None,
        progress: bool = True,
    ) -> Cohort:
        """Cases from a folder or archive of scans, joined to a table of labels.

        Parameters
        ----------
        dicom : path or Scan
            Folder, archive (.zip, .tar, .tar.gz) or a finished scan.
        labels : path or None
            CSV, TSV or Excel. None where masks are all that is asked: every series with a DICOM SEG object is a case.
        on : str
            What joins the two sides: an id of the DICOM header, or the name of the file.
        column : str or None
            Column of the table that holds it; None looks for one called like ``on``.
        label, target, classes, task
            As in :meth:`from_csv`.
        patient : str or None
            Column of patients; None takes PatientID from the header.
        part : str or None
            Column of an official split.
        modality : str or None
            Keep series of this modality only, e.g. ``'CT'``.
        description : str or None
            Keep series whose Series Description holds this pattern (regular expression, any case).
        plane : {'axial', 'coronal', 'sagittal'} or None
            Keep volumes whose slices were acquired in this plane.
        choose : {'only', 'all', 'bag', 'most_slices', 'thinnest'}
            What to do where several series fit one row: refuse, make a case of each series (of each image,
            where they are images), one case of all of them, or take the one with most slices, or with the thinnest.
        mask : str or None
            ``'SEG'`` takes the DICOM SEG objects of the dump that refer to the series, and leaves out series without
            one; any other text is the column of the table that names a file of the mask, below ``root``.
        root : path
            Folder that the paths of masks start from.
        covariates, sheet
            As in :meth:`from_csv`; age, sex and manufacturer come from the header where the table has none.
        scan_store : path or None
            Where the scan keeps its result for the next time.
        progress : bool
            Show a bar while scanning.

        Raises
        ------
        CohortError
            Where nothing joins, several series fit, labels contradict each other, or a patient is unknown.
        """
        from medtransfer._join import join_dicom

        return join_dicom(
            dicom, labels=labels, on=on, column=column, label=None if target is not None else label, target=target,
            classes=classes, task=task, patient=patient, part=part, modality=modality, description=description,
            plane=plane, choose=choose, covariates=covariates, sheet=sheet, scan_store=scan_store, progress=progress,
            mask=mask, root=root,
        )  # fmt: skip

    @classmethod
    def from_dicomweb(
        cls, dicomweb: str, query: dict[str, str | tuple[str, ...]] | None = None, *, labels: str | Path,
        on: Literal["PatientID", "StudyInstanceUID", "SeriesInstanceUID"] = "PatientID",
        column: str | None = None, label: str | tuple[str, ...] | None = "label",
        target: str | tuple[str, ...] | None = None, classes: Sequence[object] | None = None,
        task: Task | None = None, patient: str | None = None, part: str | None = None, modality: str | None = None,
        description: str | None = None, plane: Literal["axial", "coronal", "sagittal"] | None = None,
        choose: Literal["only", "all", "bag", "most_slices", "thinnest"] = "only", covariates: Sequence[str] = (),
        sheet: str | int = 0, folder: str | Path | None = None, incomplete: bool = False, workers: int = 4,
        megabytes_per_s: float | None = None, timeout_s: float = 30, ca_bundle: str | Path | None = None,
        progress: bool = True,
    ) -> Cohort:  # fmt: skip
        """Cases from a picture archive: what fits the query and has a row in the table is fetched, then joined.

        Parameters
        ----------
        dicomweb, workers, megabytes_per_s, timeout_s, ca_bundle
            Address and how it is asked, as for :class:`medtransfer.pacs.server.Server`.
        query, folder, incomplete
            As for :func:`medtransfer.pacs.fetch.fetch_scan`; an interrupted call is made again and goes on.
        labels, on, ...
            As in :meth:`from_dicom`.
        """
        from medtransfer.pacs.fetch import fetch_scan
        from medtransfer.pacs.server import Server

        server = Server(dicomweb, workers=workers, megabytes_per_s=megabytes_per_s, timeout_s=timeout_s,
                        ca_bundle=ca_bundle)  # fmt: skip
        found = fetch_scan(server, query, labels=labels, on=on, column=column, sheet=sheet, folder=folder,
                           incomplete=incomplete, progress=progress)  # fmt: skip
        return cls.from_dicom(
            found, labels=labels, on=on, column=column, label=label, target=target, classes=classes, task=task,
            patient=patient, part=part, modality=modality, description=description, plane=plane, choose=choose,
            covariates=covariates, sheet=sheet, progress=progress,
        )  # fmt: skip

    @classmethod
    def from_medmnist(
        cls, medmnist: str | Path, *, classes: Sequence[object] | None = None, task: Task | None = None
    ) -> Cohort:
        """Cases from a MedMNIST .npz, with its official parts.

        Parameters
        ----------
        medmnist : path
            Holds ``{train,val,test}_images`` ``[n, rows, cols(, 3)]`` or ``[n, x, y, z]`` and ``_labels`` ``[n, 1]``,
            or ``[n, labels]`` of 0 and 1 for a multi-label task.
        classes : sequence or None
            Names of the classes or labels 0, 1, ...; None calls them ``'0'``, ``'1'``, ...
        task : {'classification', 'multilabel', 'ordinal', 'regression'} or None
            None takes several labels an image as multi-label, else classification.
        """
        path = Path(medmnist)
        cases, names, steps, task = from_arrays(path, classes, task)
        notes = ("patients are not recorded in this file: every image counts as a patient of its own",)
        return cls.build(tuple(cases), names, (*steps, FlowStep("cases", len(cases))), path.stem, notes, task)

    @classmethod
    def build(
        cls, cases: tuple[Case, ...], classes: tuple[str, ...], flow: Sequence[FlowStep], name: str = "cohort",
        notes: Sequence[str] = (), task: Task = "classification",
    ) -> Cohort:  # fmt: skip
        """A cohort whose flow ends in its patients; spellings of one patient id that differ are noted."""
        spellings = {c.patient_id for c in cases}
        patients = {patient_key(s) for s in spellings}
        if len(patients) < len(spellings):
            several = f"{len(spellings)} spellings of patient ids name {len(patients)} patients"
            notes = (*notes, f"{several} (upper case, blanks and leading zeros aside)")
        return cls(cases, classes, (*flow, FlowStep("patients", len(patients))), name, tuple(notes), task)
