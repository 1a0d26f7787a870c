"""The main job for masks: from a checked configuration to a run, its evaluation and its report."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from medtransfer.cohort import Case, Cohort
from medtransfer.config import Experiment
from medtransfer.errors import ConfigError, DataError, MetricError
from medtransfer.export.opened import Exported, open_exported
from medtransfer.folds import FoldDone
from medtransfer.run import read_state, write, write_json
from medtransfer.split import Split

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from medtransfer.contour import Job
    from medtransfer.metrics.intervals import Estimate
    from medtransfer.segment.evaluate import Segmented
    from medtransfer.segment.run import SegmentationRun

Form = Literal["nifti", "seg"]
Row = tuple[str, str, Mapping[str, "Estimate"]]  # run, structure, estimates


@dataclass(frozen=True)
class MaskResult:
    """What the training of a segmentation ends in."""

    run: SegmentationRun
    evaluation: Segmented
    report: Path


def segments(folder: str | Path) -> bool:
    """Whether a folder holds a run of a segmentation, finished or not."""
    folder = Path(folder)
    if not (folder / "run.json").is_file():
        return False
    return bool(read_state(folder).get("asked", {}).get("task") == "segmentation")


def of_classes(experiment: Experiment) -> Experiment:
    """The experiment, or a refusal where it is a segmentation: for what only classes can be asked."""
    if experiment.top.task == "segmentation":
        raise ConfigError("this is not asked of a segmentation", where=experiment.name, fix="medtransfer train CONFIG")
    return experiment


def job_of(experiment: Experiment, cohort: Cohort, split: Split) -> Job:
    """Plan, model and recipe of a config."""
    from medtransfer.contour import prepare_job

    given, model = experiment.settings["plan"], experiment.settings["model"]
    keywords = experiment.arguments("model")
    return prepare_job(
        cohort,
        split,
        structures=experiment.top.structures,
        plan={k: getattr(given, k) for k in given.model_fields_set},
        model={k: keywords[k] for k in model.model_fields_set},
        recipe=experiment.settings["recipe"],
        gpu=_device(experiment) != "cpu",
    )


def planned(experiment: Experiment, cohort: Cohort, split: Split) -> dict[str, Any]:
    """Everything short of training, checked; ``text`` is what a person reads."""
    from medtransfer._cost_masks import cost_of_masks

    job = job_of(experiment, cohort, split)
    facts: dict[str, Any] = {"cohort": repr(cohort), "out": experiment.top.out}
    head = "\n".join(f"{key:<10} {value}" for key, value in facts.items())
    cost = cost_of_masks(job.model, cohort, split, job.plan, job.recipe)
    text = f"{head}\n{job.as_text(split)}\n\n{cost}"
    return facts | job.to_record(split) | {"cost": cost.to_record(), "text": text}


def train(
    experiment: Experiment, cohort: Cohort, split: Split, *, fold: int | None = None, command: str = "",
    progress: bool = True,
) -> MaskResult | FoldDone:  # fmt: skip
    """Audit, plan, train, evaluate on the held-out patients, write the report; going on after an interruption.

    With ``fold`` that fold is trained and nothing more.

    Raises
    ------
    MedTransferError
        The first thing that is wrong with the config, the data, the weights or the folder.
    """
    from medtransfer.audit import audit
    from medtransfer.contour import names_of
    from medtransfer.segment.train import train_segmentation
    from medtransfer.track import track

    started = time.monotonic()
    out, top = Path(experiment.top.out), experiment.top
    names_of(top.structures)  # before the images are read
    findings = audit(cohort, split, accept=experiment.settings["audit"].accept, progress=progress)
    findings.raise_for_errors()
    job = job_of(experiment, cohort, split)
    if progress and job.capacity is not None and (job.capacity.changed or sys.stderr.isatty()):
        print(f"memory: {job.capacity}", file=sys.stderr)
    tracker = track(out, **experiment.arguments("track"))
    run = train_segmentation(
        job.model,
        cohort,
        split,
        job.plan,
        job.recipe,
        out=out,
        structures=job.structures,
        seed=top.seed,
        device=_device(experiment),
        precision=_precision(experiment),
        fold=fold,
        progress=progress,
        watch=tracker,
    )
    if fold is not None:
        return FoldDone.of(out, fold, len(split.folds), last="finish.json")
    write(out / "private" / "config.yaml", experiment.resolved(private=True), mode=0o600)
    write(out / "config.yaml", experiment.resolved())
    known: dict[str, Any] = run.record()
    stages = list(job.model.stages)
    learned = [s for s in stages if s in job.recipe.trainable(job.recipe.epochs - 1, stages)]
    run.describe(
        {
            "title": top.title or "Evaluation report",
            "synthetic": top.synthetic,
            "command": command,
            "config": experiment.resolved(),
            "author": experiment.settings["author"].model_dump(),
            "audit": findings.to_record(),
            "table1": cohort.table1(split),
            "fingerprint": job.found.to_record(),
            "model": known["model"]
            | {"head": type(job.model.head).__name__, "trained": learned}
            | {"frozen": [s for s in stages if s not in learned]},
        }
    )
    result = conclude(run, experiment, started=started)
    if tracker is not None:
        tracker.finish(result.evaluation)
    return result


def conclude(run: SegmentationRun, experiment: Experiment, *, started: float = math.nan) -> MaskResult:
    """Evaluate a finished run as its config says and write the report."""
    from medtransfer.contour import judge_masks
    from medtransfer.report.masks import write_masks_report

    asked = experiment.arguments("evaluate")
    result, seen = judge_masks(run, **asked)
    if "total_s" not in run.record() and math.isfinite(started):
        run.describe({"total_s": (seconds := round(time.monotonic() - started, 1)), "runtime_s": seconds})
    page = write_masks_report(
        result, seen, run.folder / "report.html", record=run.record(), bootstrap=asked["bootstrap"],
        seed=asked["seed"], **experiment.arguments("report"),
    )  # fmt: skip
    return MaskResult(run, result, page)


def again(experiment: Experiment, folder: Path, cohort: Cohort) -> MaskResult:
    """Evaluate a finished run again, its masks predicted anew."""
    from medtransfer.segment.run import SegmentationRun

    return conclude(SegmentationRun.open(folder, cohort, device=_device(experiment)), experiment)


def predict_masks(
    folder: str | Path | Exported, images: Sequence[str], out: str | Path | None, *, form: Form = "nifti",
    deidentified: bool = False,
) -> str:  # fmt: skip
    """Write masks of new images into a folder; a CSV of what was written, with volumes in millilitres.

    Rows carry their number and a pseudonym, not the file's name, which may be a patient's.

    Raises
    ------
    ConfigError
        Without a folder, or where the run answers with classes.
    """
    import csv
    import io

    model = open_exported(folder)
    if model.card.task != "segmentation":
        raise ConfigError("masks are asked of a run that gives classes", got=model.card.task, fix="leave out --as")
    if out is None:
        raise ConfigError("masks need a folder", where="--out", fix="--out FOLDER")
    names = model.structures
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["row", "case", "mask", *(f"ml:{n}" for n in names)])
    for number, made in enumerate(predict_into(model, images, out, form=form, deidentified=deidentified), start=1):
        volumes = [f"{made.volumes_ml[n]:.3f}" if made.volumes_ml else "" for n in names]
        writer.writerow([number, made.case, made.path.name if made.path else "", *volumes])
    return text.getvalue()


@dataclass(frozen=True)
class Written:
    """A mask: the case's pseudonym, its file, and the volume of each structure."""

    case: str
    path: Path | None
    volumes_ml: dict[str, float] | None


def predict_into(
    folder: str | Path | Exported, images: Sequence[str], out: str | Path, *, form: Form = "nifti", device: str = "cpu",
    deidentified: bool = False,
) -> Iterator[Written]:  # fmt: skip
    """Masks for new images, each on the grid of its source; all folds speak together.

    Parameters
    ----------
    folder : path or Exported
        A finished run, or what :func:`medtransfer.export.export` wrote.
    images : sequence of path
        NIfTI or raster files, DICOM files or folders of one series.
    out : path
        Folder for ``<pseudonym>.nii.gz``, ``.dcm`` or, for images without a place in space, ``.png``.
    form : {'nifti', 'seg'}
        ``seg`` writes DICOM SEG objects, for DICOM sources only.
    deidentified : bool
        See :func:`medtransfer.out.seg.write_seg`.

    Raises
    ------
    RunError
        Where the run is not complete.
    DataError
        Where a DICOM SEG is asked for what is not DICOM.
    """
    from medtransfer.out.names import write_names

    model = open_exported(folder, device=device)
    if form == "nifti":
        write_names(out, model.structures)
    for text in images:
        source = Path(text)
        case = Case(str(source.resolve()), str(source.resolve()), source)
        yield _write_one(model, case, source, Path(out), form, deidentified)


def _write_one(model: Exported, case: Case, source: Path, out: Path, form: Form, deidentified: bool = False) -> Written:
    import numpy as np

    from medtransfer.io.nifti import is_nifti
    from medtransfer.io.scan import scan
    from medtransfer.out.nifti import write_mask
    from medtransfer.out.seg import write_seg
    from medtransfer.segment.room import read_image

    if form == "seg" and (source.is_file() and is_nifti(source)):
        raise DataError("a DICOM SEG refers to a DICOM series", where=case.alias, got="a NIfTI file", fix="--as nifti")
    image = read_image(case)
    labels = model.segment(image, where=case.alias)
    spacing = image.geometry.spacing_mm
    volumes = None
    if spacing is not None and labels.ndim == 3:
        counts = np.sum([np.bincount(plane.ravel(), minlength=len(model.structures) + 1) for plane in labels], axis=0)
        volumes = {n: float(counts[i] * math.prod(spacing) / 1000) for i, n in enumerate(model.structures, 1)}
    if form == "seg":
        if image.geometry.affine is None:
            raise DataError("a DICOM SEG refers to a DICOM volume", where=case.alias, fix="--as nifti")
        record, path = scan(source, progress=False)[0], out / f"{case.alias}.dcm"
        made = write_seg(labels, record, path, structures=model.structures, deidentified=deidentified)
        return Written(case.alias, made, volumes)
    if image.geometry.affine is None:
        return Written(case.alias, write_picture(labels, out / f"{case.alias}.png"), volumes)
    path = out / f"{case.alias}.nii.gz"
    write_mask(labels, image, path, source=source if source.is_file() else None)
    return Written(case.alias, path, volumes)


def write_picture(labels: NDArray[np.uint8], path: Path) -> Path:
    """A mask of a plain image as PNG: the labels are the grey values."""
    from PIL import Image

    if labels.ndim != 2:
        raise DataError("a volume without a place in space has no file format here", got=f"shape {labels.shape}")
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(labels).save(path)
    return path


def compare_masks(
    folders: Sequence[str | Path], out: str | Path, *, bootstrap: int = 2000, seed: int = 0
) -> tuple[dict[str, Any], str]:
    """Paired differences of masks to those of the first run, by structure; ``compare.html`` and ``.json`` in ``out``.

    Returns
    -------
    dict, str
        The differences as plain JSON types, and as text.

    Raises
    ------
    RunError
        Where a folder holds no evaluated segmentation.
    MetricError
        Where the runs tested other cases or structures.
    """
    from medtransfer.contour import common_cases, read_segmented
    from medtransfer.metrics.intervals import plain

    runs = [read_segmented(folder, bootstrap=bootstrap, seed=seed) for folder in folders]
    names = [Path(f).name for f in folders]
    if len({r.structures for r in runs}) > 1:
        raise MetricError("the runs know other structures", got="; ".join(", ".join(r.structures) for r in runs))
    same = common_cases(runs)
    lines = [f"{len(same[0].cases)} cases of {len(set(same[0].patients))} patients that all runs tested;"
             f" differences to {names[0]}, 95 % intervals"]  # fmt: skip
    record: dict[str, Any] = {
        "schema": "medtransfer.compare-masks/1", "baseline": names[0], "cases": len(same[0].cases),
        "patients": len(set(same[0].patients)), "bootstrap": {"resamples": bootstrap, "seed": seed, "unit": "patient"},
        "runs": [],
    }  # fmt: skip
    found: list[tuple[str, str, dict[str, Estimate]]] = []
    for name, run in zip(names[1:], same[1:], strict=True):
        gaps = run.compare(same[0], bootstrap=bootstrap, seed=seed)
        for structure, row in gaps.items():
            found.append((name, structure, row))
            said = ", ".join(f"{k} {row[k]}" for k in ("dice", "nsd", "hd95"))
            lines.append(f"  {name} minus {names[0]}, {structure}: {said}")
        record["runs"].append(
            {"name": name, "differences": {s: {k: plain(e.to_json()) for k, e in r.items()} for s, r in gaps.items()}}
        )
    uneven = len({r.tolerance_mm for r in runs}) > 1
    if uneven:
        lines.append("  surface Dice was taken at different tolerances and cannot be compared")
    write_json(Path(out) / "compare.json", record)
    own = [(n, s, row) for n, r in zip(names, same, strict=True) for s, row in zip(r.structures, r.rows, strict=True)]
    write(Path(out) / "compare.html", _comparison(record, own, found, uneven))
    return record, "\n".join([*lines, "", f"report  {Path(out) / 'compare.html'}"])


def _comparison(record: dict[str, Any], own: Sequence[Row], gaps: Sequence[Row], uneven: bool) -> str:
    """The page as text: every text in it is escaped, there is no script in it."""
    from medtransfer.metrics.names import LABELS
    from medtransfer.report.write import TEMPLATES
    from medtransfer.rivals import environment, forest

    style = (TEMPLATES / "style.css").read_text(encoding="utf-8")
    drawn = forest([(f"{name}: {structure}", row["dice"]) for name, structure, row in gaps], 0.0)
    names = [k for k in ("dice", "nsd", "hd95", "assd", "iou") if not (uneven and k == "nsd")]
    page = environment().get_template("compare_masks.html")
    return page.render(
        found=record, first=record["baseline"], resamples=record["bootstrap"]["resamples"],
        own=own, gaps=gaps, drawn=drawn, names=names, labels=LABELS, style=style,
    )  # fmt: skip


def _device(experiment: Experiment) -> str:
    import torch

    asked = experiment.top.accelerator
    if asked != "auto":
        return str(asked)
    return "cuda" if torch.cuda.is_available() else "cpu"


def _precision(experiment: Experiment) -> Literal["auto", "32-true", "bf16-mixed"]:
    asked = experiment.top.precision
    if asked == "16-mixed":
        raise ConfigError("masks are trained in 32-true or bf16-mixed", where="precision", got=asked)
    told = "precision" in experiment.top.model_fields_set
    return "auto" if not told else "bf16-mixed" if asked == "bf16-mixed" else "32-true"
