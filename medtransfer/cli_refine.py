"""The commands that search and compare: parse, call, print."""

from __future__ import annotations

import json

import click


@click.command()
@click.argument("config", type=click.Path())
@click.option("--set", "changes", multiple=True, metavar="KEY=VALUE", help="Change a key, e.g. search.folds=5.")
@click.option("--trials", type=click.IntRange(1), help="Trials besides the default.")
@click.option("--minutes", type=click.FloatRange(0, min_open=True), help="Begin no trial after so long.")
@click.option("--storage", help="Journal file or database URL that several processes share.")
@click.option("--nested", is_flag=True, help="Search in every fold anew and judge the whole procedure.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@click.option("-q", "--quiet", is_flag=True, help="No progress bars.")
@click.option("-v", "--verbose", is_flag=True, expose_value=False, help="Show the traceback of an error.")
def search(
    config: str,
    changes: tuple[str, ...],
    trials: int | None,
    minutes: float | None,
    storage: str | None,
    nested: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Search recipe, size and backbone inside the training part, against the default."""
    from medtransfer.config import Experiment
    from medtransfer.masks import of_classes
    from medtransfer.refine import search_command

    experiment = of_classes(Experiment.from_file(config, changes=changes))
    text, record = search_command(
        experiment, trials=trials, minutes=minutes, storage=storage, nested=nested, progress=not quiet
    )
    click.echo(json.dumps(record) if as_json else text)


@click.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path())
@click.option("--out", default="comparison", show_default=True, help="Folder of compare.html and compare.json.")
@click.option("--set", "changes", multiple=True, metavar="KEY=VALUE", help="Change a key of a config.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@click.option("-q", "--quiet", is_flag=True, help="No progress bars.")
@click.option("-v", "--verbose", is_flag=True, expose_value=False, help="Show the traceback of an error.")
def compare(runs: tuple[str, ...], out: str, changes: tuple[str, ...], as_json: bool, quiet: bool) -> None:
    """Compare runs on the cases that all tested; or, for one config, the strategies: did transfer help?"""
    if len(runs) == 1:
        from medtransfer.config import Experiment
        from medtransfer.masks import of_classes
        from medtransfer.refine import compare_config

        table = compare_config(of_classes(Experiment.from_file(runs[0], changes=changes)), progress=not quiet)
        click.echo(json.dumps(table.to_record()) if as_json else str(table))
        return
    from medtransfer.masks import compare_masks, segments

    if any(segments(r) for r in runs):
        gaps, text = compare_masks(runs, out)
        click.echo(json.dumps(gaps) if as_json else text)
        return
    from medtransfer.rivals import compare_runs, read_runs, write_comparison

    predictions, thresholds = read_runs(runs)
    found = compare_runs(predictions, thresholds=thresholds)
    page = write_comparison(found, out)
    click.echo(json.dumps(found.to_json() | {"report": str(page)}) if as_json else f"{found}\n\nreport  {page}")
