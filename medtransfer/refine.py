"""From a checked configuration to a search, or to a comparison of strategies."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medtransfer.config import Experiment
from medtransfer.pipeline import load_cohort, make_model, make_split
from medtransfer.run import make_folder, write_json

if TYPE_CHECKING:
    from medtransfer.predictions import Predictions
    from medtransfer.search import Found
    from medtransfer.strategies import Strategies


def search_config(
    experiment: Experiment,
    *,
    trials: int | None = None,
    minutes: float | None = None,
    storage: str | None = None,
    progress: bool = True,
) -> Found:
    """Search as the ``search`` section of a config says; what is given here goes before it.

    Without a storage the trials stand in ``search.log`` beside the run, from which a stopped search goes on.
    """
    from medtransfer.search import search
    from medtransfer.track import track

    out = Path(experiment.top.out)
    settings = _settings(experiment, trials, minutes, storage)
    tracker = track(out, **experiment.arguments("track"))
    cohort = load_cohort(experiment, store=make_folder(out) / "scan.json", progress=progress)
    found = search(
        make_model(experiment, cohort), cohort, make_split(experiment, cohort),
        experiment.settings["prepare"], out=out / "search", augment=experiment.settings["augment"],
        default=experiment.settings["recipe"], seed=experiment.top.seed, progress=progress,
        watch=None if tracker is None else tracker.trial, **settings,
    )  # fmt: skip
    write_json(out / "search.json", found.to_record())
    return found


def search_nested(
    experiment: Experiment,
    *,
    trials: int | None = None,
    minutes: float | None = None,
    storage: str | None = None,
    progress: bool = True,
) -> tuple[list[Found], Predictions]:
    """Nested cross-validation: search in each fold's training part, train what was chosen there, pool the test parts.

    The predictions judge the whole procedure, searching included; each case is predicted by a model, and by
    choices, that its patient had no part in.
    """
    from medtransfer.fit import fit
    from medtransfer.predictions import concatenate
    from medtransfer.search import search
    from medtransfer.trials import with_backbone

    out, settings = Path(experiment.top.out), _settings(experiment, trials, minutes, storage)
    cohort = load_cohort(experiment, store=make_folder(out) / "scan.json", progress=progress)
    split, model = make_split(experiment, cohort), make_model(experiment, cohort)
    prepare, augment, seed = experiment.settings["prepare"], experiment.settings["augment"], experiment.top.seed
    found: list[Found] = []
    tested: list[Predictions] = []
    for number, fold in enumerate(split.folds):
        found.append(
            search(
                model, cohort, split, prepare, out=out / "search", augment=augment, seed=seed, progress=progress,
                default=experiment.settings["recipe"], **settings | {"fold": number},
            )
        )  # fmt: skip
        chosen = found[-1].chosen
        sized = type(prepare)(**prepare.model_dump() | {"size": chosen.size})
        alone = replace(split, folds=(fold,))
        start = with_backbone(model, chosen.backbone, seed=seed)
        run = fit(start, cohort, alone, sized, chosen.recipe, out=out / f"nested-{number}",
                  augment=augment, seed=seed, progress=progress)  # fmt: skip
        part = run.predict(fold.test, fold=0)
        tested.append(replace(part, fold=part.fold + number))
    write_json(out / "search.json", {"folds": [f.to_record() for f in found]})
    return found, concatenate(tested)


def _settings(experiment: Experiment, trials: int | None, minutes: float | None, storage: str | None) -> dict[str, Any]:
    given = {"trials": trials, "minutes": minutes, "storage": storage}
    settings = experiment.arguments("search") | {k: v for k, v in given.items() if v is not None}
    return settings | {"storage": settings["storage"] or str(Path(experiment.top.out) / "search.log")}


def compare_config(experiment: Experiment, *, progress: bool = True) -> Strategies:
    """Compare the strategies of transfer on the split of a config; the table is ``strategies.json`` of its folder."""
    from medtransfer.strategies import compare_strategies

    out = Path(experiment.top.out)
    cohort = load_cohort(experiment, store=make_folder(out) / "scan.json", progress=progress)
    found = compare_strategies(
        make_model(experiment, cohort), cohort, make_split(experiment, cohort),
        experiment.settings["prepare"], out=out / "strategies", augment=experiment.settings["augment"],
        seed=experiment.top.seed, progress=progress,
    )  # fmt: skip
    write_json(out / "strategies.json", found.to_record())
    return found


def search_command(
    experiment: Experiment,
    *,
    trials: int | None = None,
    minutes: float | None = None,
    storage: str | None = None,
    nested: bool = False,
    progress: bool = True,
) -> tuple[str, dict[str, Any]]:
    """What ``medtransfer search`` prints, as text and as plain types."""
    if not nested:
        found = search_config(experiment, trials=trials, minutes=minutes, storage=storage, progress=progress)
        use = found.best.against(found.default) if found.helped else ""
        return f"{found}" + (f"\nmedtransfer train {experiment.name} --set {use}" if use else ""), found.to_record()
    from medtransfer.evaluate import evaluate

    each, tested = search_nested(experiment, trials=trials, minutes=minutes, storage=storage, progress=progress)
    judged = evaluate(tested, seed=experiment.top.seed)
    lines = [f"fold {i + 1}: {found}" for i, found in enumerate(each)]
    record = {"folds": [f.to_record() for f in each], "metrics": judged.to_json()}
    return "\n".join([*lines, "the whole procedure, searching included:", str(judged)]), record
