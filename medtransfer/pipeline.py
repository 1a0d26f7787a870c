"""The main job: from a checked configuration to a run, its evaluation and its report."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medtransfer.cohort import Cohort
from medtransfer.config import Experiment
from medtransfer.errors import ConfigError, GateError, RunError
from medtransfer.run import Run, make_folder, read_state, write
from medtransfer.split import Split, split_by_patient

if TYPE_CHECKING:
    from medtransfer.evaluate import Evaluation


@dataclass(frozen=True)
class Result:
    """What a training ends in."""

    run: Run
    evaluation: Evaluation
    report: Path


def load_cohort(experiment: Experiment, *, store: Path | None = None, progress: bool = True) -> Cohort:
    """The cohort of a config; ``store`` keeps the scan of a dump for the next time."""
    arguments = experiment.arguments("cohort")
    if experiment.cohort_key == "csv":
        return Cohort.from_csv(**arguments)
    if experiment.cohort_key == "medmnist":
        return Cohort.from_medmnist(**arguments)
    return Cohort.from_dicom(**arguments, scan_store=store, progress=progress)


def make_split(experiment: Experiment, cohort: Cohort) -> Split:
    """The split of a config."""
    return split_by_patient(cohort, **experiment.arguments("split"))


def plan(experiment: Experiment, *, progress: bool = True) -> dict[str, Any]:
    """Everything short of training, checked: what ``--dry-run`` prints."""
    from medtransfer.model import load_model
    from medtransfer.recipe import Recipe

    cohort = load_cohort(experiment, progress=progress)
    split = make_split(experiment, cohort)
    model = load_model(**experiment.arguments("model"))
    recipe = experiment.settings["recipe"] or Recipe.for_size(len(split.folds[0].train))
    prepare = experiment.settings["prepare"]
    shape = prepare(cohort.cases[0].read(), where=cohort.cases[0].alias).shape
    return {
        "cohort": repr(cohort),
        "parts": {k: len(v) for k, v in split.parts().items()},
        "model": repr(model),
        "receipt": model.description.receipt,
        "prepared": list(shape),
        "recipe": recipe.model_dump(),
        "plan": recipe.describe(model),
        "out": experiment.top.out,
    }


def train(experiment: Experiment, *, command: str = "", progress: bool = True) -> Result:
    """Train, evaluate on the held-out patients, write the report; going on where an earlier call was interrupted.

    Raises
    ------
    MedTransferError
        The first thing that is wrong with the config, the data, the weights or the folder.
    """
    from medtransfer.audit import audit
    from medtransfer.fit import fit
    from medtransfer.model import load_model
    from medtransfer.recipe import Recipe
    from medtransfer.track import track

    started = time.monotonic()
    out = Path(experiment.top.out)
    cohort = load_cohort(experiment, store=make_folder(out) / "scan.json", progress=progress)
    split = make_split(experiment, cohort)
    model = load_model(**experiment.arguments("model"))
    findings = audit(cohort, split, accept=experiment.settings["audit"].accept, progress=progress)
    findings.raise_for_errors()
    recipe = experiment.settings["recipe"] or Recipe.for_size(len(split.folds[0].train))
    tracker = track(out, **experiment.arguments("track"))
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
        progress=progress,
        watch=tracker,
    )
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
    return Result(run, evaluation, write_report(evaluation, run.folder / "report.html"))


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
    read_state(folder)
    config = folder / "private" / "config.yaml"
    if not config.is_file():
        raise ConfigError(
            "the run was not trained from a config", where=folder.name, fix="open it with mt.Run.open(folder, cohort)"
        )
    experiment = Experiment.from_file(config, changes=changes)
    cohort = load_cohort(experiment, store=folder / "private" / "scan.json", progress=progress)
    return Run.open(folder, cohort, progress=progress), experiment


def gate(evaluation: Evaluation, at_least: float | None) -> None:
    """Refuse an evaluation whose AUROC is lower than asked.

    Raises
    ------
    GateError
        Where it is lower or not defined.
    """
    value = evaluation.estimates[evaluation.primary].value
    if at_least is not None and (value is None or value < at_least):
        got = "not defined" if value is None else f"{value:.3f}"
        raise GateError("the AUROC does not reach the gate", where=f"at least {at_least:g}", got=got)


def predict_files(folder: str | Path, images: Sequence[str], *, progress: bool = True) -> str:
    """CSV of class probabilities for new images, in the order given; folds are averaged.

    Rows carry their number and a pseudonym, not the file's name, which may be a patient's.
    """
    import csv
    import io

    import numpy as np

    from medtransfer.cohort import Case
    from medtransfer.dataset import Prepared
    from medtransfer.predict import probabilities
    from medtransfer.prepare import Prepare
    from medtransfer.run import load_checkpoint

    folder = Path(folder)
    state = read_state(folder)
    cases = [Case(str(Path(i).resolve()), str(Path(i).resolve()), Path(i)) for i in images]
    prepared = Prepared(cases, Prepare(**state["asked"]["prepare"]), progress=progress)
    checkpoints = sorted(folder.glob("fold-*/model.safetensors"))
    if state["status"] != "complete":
        raise RunError("the run is not complete", where=folder.name, fix="run the training command again: it goes on")
    found = np.mean([probabilities(load_checkpoint(c), prepared, range(len(cases))) for c in checkpoints], axis=0)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["row", "case", *(f"p:{c}" for c in state["asked"]["classes"])])
    for number, (case, row) in enumerate(zip(cases, found, strict=True), start=1):
        writer.writerow([number, case.alias, *(f"{p:.6f}" for p in row)])
    return text.getvalue()
