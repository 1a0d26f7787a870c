"""External validation of masks: a finished segmentation meets another place's images, and nothing is fitted again.

All folds' models speak together and the first one's post-processing, chosen on its validation part, is applied. A
cohort that shares patients or images with training or validation is refused.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medtransfer.cache import fingerprint
from medtransfer.cohort import Cohort
from medtransfer.config import Experiment
from medtransfer.errors import DataError, LeakageError
from medtransfer.masks import MaskResult
from medtransfer.run import write_private

if TYPE_CHECKING:
    from medtransfer.external import Accept
    from medtransfer.segment.run import SegmentationRun


def validate_masks(
    folder: str | Path,
    experiment: Experiment,
    known: Cohort,
    cohort: Cohort,
    *,
    accept: Sequence[Accept] = (),
    device: str = "cpu",
    command: str = "",
    progress: bool = True,
) -> MaskResult:
    """Segment and score an external cohort, reported in ``external-<name>`` of the run's folder.

    Parameters
    ----------
    folder : path
        A finished segmentation.
    experiment : Experiment
        How it is evaluated.
    known, cohort : Cohort
        Of the training, and the external one, with a mask for each case and a name.
    accept : sequence of str
        ``same_ids``: equal patient ids name different people. ``same_images``: equal images are known and wanted.

    Raises
    ------
    LeakageError
        Where a patient or an image of the cohort was trained or validated on.
    DataError
        Where a case has no mask, or labels that the run does not know.
    """
    from medtransfer.audit import audit
    from medtransfer.contour import score_parts
    from medtransfer.report.masks import write_masks_report
    from medtransfer.segment.run import SegmentationRun

    lacking = [c.alias for c in cohort if c.mask is None]
    if lacking:
        raise DataError("cases have no mask", where=cohort.name, got=f"{len(lacking)} of {len(cohort)} cases")
    run = SegmentationRun.open(folder, known, device=device)
    _refuse_seen(run, cohort, accept)
    findings = audit(cohort, accept=experiment.settings["audit"].accept, progress=progress)
    findings.raise_for_errors()
    out = run.folder / f"external-{cohort.name}"
    out.mkdir(exist_ok=True)
    asked = experiment.arguments("evaluate")
    everyone: list[tuple[Sequence[int], int | None]] = [(range(len(cohort)), None)]
    result, seen = score_parts(replace(run, cohort=cohort), everyone, out, **asked)
    write_private(run.folder / "private" / f"external-{cohort.name}.csv", cohort)
    facts = {"audit": findings.to_record(), "command": command}
    page = write_masks_report(
        result, seen, out / "report.html", record=_record(run, cohort) | facts, bootstrap=asked["bootstrap"],
        seed=asked["seed"], **experiment.arguments("report"),
    )  # fmt: skip
    return MaskResult(run, result, page)


def external_name(name: str | None, source: str) -> str:
    """What the external cohort is called in folder and report.

    Examples
    --------
    >>> external_name(None, "data/St Mary.csv"), external_name("B/2", "x.csv")
    ('St-Mary', 'B-2')
    """
    return re.sub(r"[^A-Za-z0-9_-]+", "-", name or Path(source).stem).strip("-") or "cohort"


def _record(run: SegmentationRun, cohort: Cohort) -> dict[str, Any]:
    """What the run wrote down, with what is true of its own cohort replaced."""
    of_the_cohort = ("audit", "history", "hashes", "notes", "command", "fingerprint", "flow", "table1")
    known: dict[str, Any] = {k: v for k, v in run.record().items() if k not in of_the_cohort}
    return known | {
        "title": f"External validation on {cohort.name}: {known.get('title', 'a run')}",
        "part": "external",
        "flow": cohort.flow_record(),
        "table1": cohort.table1(),
        "notes": list(cohort.notes),
        "hashes": {"cohort": cohort.fingerprint},
    }


def _refuse_seen(run: SegmentationRun, cohort: Cohort, accept: Sequence[Accept]) -> None:
    """Refuse patients and images that any fold trained or validated on."""
    from medtransfer.external import learned_from

    seen = learned_from(run.cohort, run.split, cohort, accept)
    if "same_images" in accept:
        return
    digests = {fingerprint(run.cohort.cases[i].read().array) for i in seen}
    copies = [case.alias for case in cohort if fingerprint(case.read().array) in digests]
    if copies:
        raise LeakageError(
            f"{len(copies)} of {len(cohort)} external images were trained or validated on, voxel by voxel",
            where=cohort.name, got=f"e.g. {copies[0]}", fix="leave them out, or --accept same_images",
        )  # fmt: skip
