"""The main job: from a checked configuration to a run, its evaluation and its report."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medtransfer import masks
from medtransfer.cohort import Cohort
from medtransfer.config import Experiment, sections
from medtransfer.errors import ConfigError, GateError
from medtransfer.export.opened import Exported, open_exported
from medtransfer.folds import FoldDone
from medtransfer.masks_external import external_name, validate_masks
from medtransfer.metrics.names import LABELS
from medtransfer.parallel import computing
from medtransfer.run import Run, make_folder, read_state, write, write_private
from medtransfer.split import Split, split_by_patient
from medtransfer.yamltext import parse, read_text

if TYPE_CHECKING:
    from medtransfer.evaluate import Evaluation
    from medtransfer.external import Accept
    from medtransfer.model import Model
    from medtransfer.recipe import Recipe
    from medtransfer.segment.evaluate import Segmented


@dataclass(frozen=True)
class Result:
    """What a training ends in."""

    run: Run
    evaluation: Evaluation
    report: Path


def load_cohort(experiment: Experiment, *, store: Path | None = None, progress: bool = True) -> Cohort:
    """The cohort of a config; ``store`` keeps the scan of a dump for the next time."""
    arguments = experiment.arguments("cohort")
    if experiment.top.task == "segmentation":
        arguments["covariates"] = (*arguments["covariates"], *(experiment.settings["evaluate"].beside or ()))
    if experiment.cohort_key == "csv":
        return Cohort.from_csv(**arguments)
    if experiment.cohort_key == "medmnist":
        return Cohort.from_medmnist(**arguments)
    if experiment.cohort_key == "dicomweb":
        return Cohort.from_dicomweb(**arguments, progress=progress)
    with computing(experiment.top.backend):
        return Cohort.from_dicom(**arguments, scan_store=store, progress=progress)


def make_split(experiment: Experiment, cohort: Cohort) -> Split:
    """The split of a config."""
    return split_by_patient(cohort, **experiment.arguments("split"))


def make_model(experiment: Experiment, cohort: Cohort) -> Model:
    """The model of a config; task and number of classes are the cohort's where the config does not say."""
    from medtransfer.model import load_model

    asked = experiment.arguments("model")
    told = experiment.settings["model"].model_fields_set
    known = {"task": cohort.task, "classes": max(1, len(cohort.classes))}
    return load_model(**(asked | {k: v for k, v in known.items() if k not in told}))


def make_recipe(experiment: Experiment, model: Model, n: int) -> Recipe:
    """The recipe of a config, or the one for n training cases and this head."""
    from medtransfer.recipe import Recipe

    if experiment.settings["recipe"] is not None:
        return experiment.settings["recipe"]  # type: ignore[no-any-return]
    recipe = Recipe.for_size(n, dims=experiment.settings["prepare"].dims)
    return recipe if model.linear else recipe.with_head()


def plan(experiment: Experiment, *, progress: bool = True) -> dict[str, Any]:
    """Everything short of training, checked: what ``--dry-run`` prints; of a segmentation also as ``text``."""
    from medtransfer.cost import cost_of_training
    from medtransfer.dryrun import cache_sizes, memory_of
    from medtransfer.fit import check_fit
    from medtransfer.reasons import reasons

    cohort = load_cohort(experiment, progress=progress)
    split = make_split(experiment, cohort)
    if experiment.top.task == "segmentation":
        return masks.planned(experiment, cohort, split)
    model = make_model(experiment, cohort)
    recipe = make_recipe(experiment, model, len(split.folds[0].train))
    prepare = experiment.settings["prepare"]
    check_fit(model, cohort, prepare, recipe, split)
    first = cohort.cases[0].pieces()[0]
    shape = prepare(first.read(), where=first.alias).shape
    augment, top = experiment.settings["augment"], experiment.top
    cost = cost_of_training(
        model, cohort, split, prepare, recipe, augment, workers=top.workers, processes=top.devices * top.nodes,
        robustness=experiment.settings["evaluate"].robustness and not cohort.bags,
    )  # fmt: skip
    return {
        "cohort": repr(cohort),
        "parts": {k: len(v) for k, v in split.parts().items()},
        "model": repr(model),
        "receipt": model.description.receipt,
        "prepared": list(shape),
        "recipe": recipe.model_dump(),
        "plan": recipe.describe(model),
        "caches": cache_sizes(model, recipe, augment, split, shape, len(cohort)),
        "memory": memory_of(model, recipe, shape, masks._device(experiment), len(cohort)),
        "reasons": reasons(recipe) if experiment.settings["recipe"] is None else "",
        "cost": cost.to_record(),
        "out": experiment.top.out,
    }


def train(
    experiment: Experiment, *, fold: int | None = None, command: str = "", progress: bool = True
) -> Result | masks.MaskResult | FoldDone | None:
    """Train, evaluate on the held-out patients, write the report; going on where an earlier call was interrupted.

    Parameters
    ----------
    fold : int or None
        Train this fold only; a call without it, once all folds are trained, evaluates and writes the report.

    Returns
    -------
    Result, MaskResult, FoldDone or None
        None in all processes but the first where several train one run.

    Raises
    ------
    MedTransferError
        The first thing that is wrong with the config, the data, the weights or the folder.
    """
    from medtransfer.audit import audit
    from medtransfer.dataset import prepare_ahead
    from medtransfer.fit import fit
    from medtransfer.team import concludes
    from medtransfer.track import track

    started = time.monotonic()
    out = Path(experiment.top.out)
    cohort = load_cohort(experiment, store=make_folder(out) / "scan.json", progress=progress)
    split = make_split(experiment, cohort)
    if experiment.top.task == "segmentation":
        return masks.train(experiment, cohort, split, fold=fold, command=command, progress=progress)
    model = make_model(experiment, cohort)
    findings = audit(cohort, split, accept=experiment.settings["audit"].accept, progress=progress)
    findings.raise_for_errors()
    recipe = make_recipe(experiment, model, len(split.folds[0].train))
    tracker = track(out, **experiment.arguments("track"))
    if experiment.top.backend != "threads":
        with computing(experiment.top.backend):
            prepare_ahead(
                cohort.cases, experiment.settings["prepare"], workers=experiment.top.workers, progress=progress
            )
    run = fit(
        model,
        cohort,
        split,
        experiment.settings["prepare"],
        recipe,
        out=out,
        augment=experiment.settings["augment"],
        seed=experiment.top.seed,
        accelerator=experiment.top.accelerator,
        devices=experiment.top.devices,
        nodes=experiment.top.nodes,
        strategy=experiment.top.strategy,
        precision=experiment.top.precision,
        workers=experiment.top.workers,
        fold=fold,
        progress=progress,
        watch=tracker,
    )
    if not concludes():
        return None
    if fold is not None:
        return FoldDone.of(out, fold, len(split.folds), last="model.safetensors")
    write(out / "private" / "config.yaml", experiment.resolved(private=True), mode=0o600)
    write(out / "config.yaml", experiment.resolved())
    known = run.record()
    run.describe(
        {
            "title": experiment.top.title or "Evaluation report",
            "synthetic": experiment.top.synthetic,
            "command": command,
            "config": experiment.resolved(),
            "author": experiment.settings["author"].model_dump(),
            "audit": findings.to_record(),
            "runtime_s": known.get("total_s") or round(time.monotonic() - started, 1),
        }
    )
    result = conclude(run, experiment, started=started)
    if tracker is not None:
        tracker.finish(result.evaluation)
    return result


def conclude(run: Run, experiment: Experiment, *, started: float = math.nan) -> Result:
    """Evaluate a finished run as its config says and write the report."""
    from medtransfer.judge import judge
    from medtransfer.report import write_report

    evaluation = judge(run, **experiment.arguments("evaluate"))
    if "total_s" not in run.record() and math.isfinite(started):
        run.describe({"total_s": (seconds := round(time.monotonic() - started, 1)), "runtime_s": seconds})
    page = write_report(evaluation, run.folder / "report.html", **experiment.arguments("report"))
    return Result(run, evaluation, page)


def reopen(folder: str | Path, *, changes: tuple[str, ...] = (), progress: bool = True) -> tuple[Run, Experiment]:
    """A finished run with its cohort and configuration.

    Raises
    ------
    RunError
        Where the folder holds no finished run.
    ConfigError
        Where it was not trained from a config.
    """
    folder = Path(folder)
    experiment = stored_experiment(folder, changes=changes)
    if masks.segments(folder):
        raise ConfigError("this is not asked of a segmentation", where=folder.name)
    cohort = load_cohort(experiment, store=folder / "private" / "scan.json", progress=progress)
    return Run.open(folder, cohort, progress=progress), experiment


def stored_experiment(folder: str | Path, *, changes: tuple[str, ...] = ()) -> Experiment:
    """The configuration that a run keeps.

    Raises
    ------
    RunError, ConfigError
        As :func:`reopen`.
    """
    folder = Path(folder)
    read_state(folder)
    config = folder / "private" / "config.yaml"
    if not config.is_file():
        raise ConfigError(
            "the run was not trained from a config", where=folder.name, fix="open it with mt.Run.open(folder, cohort)"
        )
    return Experiment.from_file(config, changes=changes)


def again(folder: str | Path, *, changes: tuple[str, ...] = (), progress: bool = True) -> Result | masks.MaskResult:
    """Evaluate a finished run of any task again and write its report."""
    if masks.segments(folder):
        experiment = stored_experiment(folder, changes=changes)
        return masks.again(experiment, Path(folder), load_cohort(experiment, progress=progress))
    run, experiment = reopen(folder, changes=changes, progress=progress)
    return conclude(run, experiment)


def external_cohort(
    experiment: Experiment,
    classes: Sequence[str] | None,
    table: str | None,
    *,
    root: str | None = None,
    dicom: str | None = None,
    labels: str | None = None,
    progress: bool = True,
) -> Cohort:
    """The cohort of an external validation.

    Parameters
    ----------
    classes : sequence of str or None
        Those of the run; None for masks.
    table : path or None
        A table of images, whose columns are called as in training; or a YAML file with a ``cohort`` section.
    root : path or None
        Where the table's paths start from.
    dicom, labels : path or None
        Instead of ``table``: a dump of scans and its table of labels, joined as in training.
    """
    sources = {"csv", "root", "dicom", "labels", "medmnist", "part"}
    section: dict[str, Any] = {}
    if table is not None and Path(table).suffix.lower() in (".yaml", ".yml"):
        section = parse(read_text(Path(table)), Path(table).name)[0]
        section = section.get("cohort", section)
    elif (table is None) == (dicom is None) or (dicom is None) != (labels is None):
        raise ConfigError(
            "an external cohort is a table, or scans with labels", fix="--cohort T or --dicom D --labels T"
        )
    else:
        key = "csv" if dicom is None else "dicom"
        known = sections(key)["cohort"].model_fields
        section = {k: v for k, v in experiment.raw["cohort"].items() if k in known and k not in sources}
        section |= {"csv": table, "root": root or "."} if dicom is None else {"dicom": dicom, "labels": labels}
    if classes is not None:
        section.setdefault("classes", list(classes))
    return load_cohort(experiment.with_cohort(section, name="the external cohort"), progress=progress)


def validate(
    folder: str | Path,
    table: str | None,
    *,
    root: str | None = None,
    dicom: str | None = None,
    labels: str | None = None,
    name: str | None = None,
    recalibrate: float | None = None,
    accept: tuple[Accept, ...] = (),
    changes: tuple[str, ...] = (),
    command: str = "",
    progress: bool = True,
) -> Sequence[Result | masks.MaskResult]:
    """External validation of a finished run, reported in ``external-<name>`` of its folder.

    Returns
    -------
    list of Result
        With ``recalibrate`` a second one, of the external patients that were not recalibrated on.
    """
    from medtransfer.audit import audit
    from medtransfer.external import check_share, evaluate_external, recalibrated
    from medtransfer.report import write_report

    if recalibrate is not None:
        check_share(recalibrate)  # before anything is read
    called = external_name(name, str(table or dicom))
    if masks.segments(folder):
        if recalibrate is not None:
            raise ConfigError("masks have no probabilities to recalibrate", where="--recalibrate", fix="leave it out")
        asked_again = any(c.split("=")[0].strip().startswith("evaluate.beside") for c in changes)
        experiment = stored_experiment(folder, changes=changes if asked_again else (*changes, "evaluate.beside=null"))
        known = load_cohort(stored_experiment(folder), progress=progress)
        cohort = external_cohort(experiment, None, table, root=root, dicom=dicom, labels=labels, progress=progress)
        cohort = replace(cohort, name=called)
        return [validate_masks(folder, experiment, known, cohort, accept=accept, command=command, progress=progress)]
    run, experiment = reopen(folder, changes=changes, progress=progress)
    cohort = external_cohort(
        experiment, run.cohort.classes, table, root=root, dicom=dicom, labels=labels, progress=progress
    )
    cohort = replace(cohort, name=called)
    findings = audit(cohort, accept=experiment.settings["audit"].accept, progress=progress)
    findings.raise_for_errors()
    keys = ("threshold", "calibrate", "bootstrap", "prevalences", "subgroups", "seed")
    asked = {k: v for k, v in experiment.arguments("evaluate").items() if k in keys}
    facts: dict[str, object] = {"audit": findings.to_record(), "command": command}
    found = evaluate_external(run, cohort, accept=accept, facts=facts, **asked)
    out = run.folder / f"external-{called}"
    write_private(run.folder / "private" / f"external-{called}.csv", cohort)
    results = [Result(run, found, write_report(found, out / "report.html"))]
    if recalibrate is not None:
        after = recalibrated(found, recalibrate, subgroups=asked["subgroups"], seed=asked["seed"])
        results.append(Result(run, after, write_report(after, out / "recalibrated" / "report.html")))
    return results


def gate(evaluation: Evaluation | Segmented, at_least: float | None) -> None:
    """Refuse an evaluation whose primary value (AUROC, or Dice of masks) is lower than asked.

    Raises
    ------
    GateError
        Where it is lower or not defined.
    """
    value = evaluation.estimates[evaluation.primary].value
    if at_least is not None and (value is None or value < at_least):
        got = "not defined" if value is None else f"{value:.3f}"
        raise GateError(
            f"{LABELS[evaluation.primary]}: the gate is not reached", where=f"at least {at_least:g}", got=got
        )


def predict_files(folder: str | Path | Exported, images: Sequence[str], *, progress: bool = True) -> str:
    """CSV of probabilities and what they call, or predicted values, for new images, in the order given.

    ``folder`` is a finished run or what :func:`medtransfer.export.export` wrote; folds are averaged, and
    :meth:`medtransfer.export.card.Card.row` tells what a case is called. Where it was trained on bags, images are
    folders, one a case. Rows carry their number and a pseudonym, not the file's name, which may be a patient's.
    """
    import csv
    import io

    from medtransfer.cohort import Case, images_of
    from medtransfer.dataset import Prepared

    model = open_exported(folder)
    cases = [Case(str(Path(i).resolve()), str(Path(i).resolve()), images_of(Path(i)) if model.card.bag else Path(i))
             for i in images]  # fmt: skip
    prepared = Prepared(cases, model.card.preparation(), progress=progress)
    found = model.says(prepared, range(len(cases)), progress=progress)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["row", "case", *model.card.columns])
    for number, (case, row) in enumerate(zip(cases, found, strict=True), start=1):
        writer.writerow([number, case.alias, *model.card.row(row)])
    return text.getvalue()
