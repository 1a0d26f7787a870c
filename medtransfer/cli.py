"""The command line: parse, call, print. Everything it does is a call of the library."""

from __future__ import annotations

import json
import shlex
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from medtransfer.cli_pacs import fetch, send
from medtransfer.cli_predict import predict
from medtransfer.cli_refine import compare, search
from medtransfer.cli_share import deidentify, share
from medtransfer.cli_view import view
from medtransfer.cli_weights import weights
from medtransfer.errors import MedTransferError

_CHANGES = click.option(
    "--set", "changes", multiple=True, metavar="KEY=VALUE", help="Change a key, e.g. recipe.epochs=5."
)
_JSON = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
_QUIET = click.option("-q", "--quiet", is_flag=True, help="No progress bars.")


class _Commands(click.Group):
    """Turns every refusal into one message and its exit code; a traceback only with -v."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)  # in the order of work

    def invoke(self, ctx: click.Context) -> Any:
        verbose = ctx.params.get("verbose") or "-v" in sys.argv or "--verbose" in sys.argv
        try:
            return super().invoke(ctx)
        except MedTransferError as error:
            if verbose:
                raise
            message = {
                "error": type(error).__name__,
                "where": error.where,
                "what": error.what,
                "got": error.got,
                "fix": error.fix,
            }
            if "--json" in sys.argv:
                click.echo(json.dumps(message))
            click.secho(f"{type(error).__name__}: {error}", fg="red", err=True)
            ctx.exit(error.exit_code)
        except KeyboardInterrupt:
            click.secho(
                "interrupted; what was finished is kept: the same command goes on from there", fg="yellow", err=True
            )
            ctx.exit(75)
        except MemoryError:
            click.secho(
                "the memory of this machine does not suffice; make prepare.size or recipe.batch_size smaller",
                fg="red",
                err=True,
            )
            ctx.exit(3)


def _verbose(command: Any) -> Any:
    return click.option("-v", "--verbose", is_flag=True, expose_value=False, help="Show the traceback of an error.")(
        command
    )


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="medtransfer")
@_verbose
def cli() -> None:
    """Transfer learning on medical images: files and a table of labels in, a model and a report out."""


def main() -> None:
    """Entry point of the ``medtransfer`` command."""
    if hasattr(signal, "SIGTERM"):
        signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGINT))  # a scheduler's stop acts like Ctrl-C
    cli()


def _command() -> str:
    """The command as the report shows it: of paths only the last part, since folders may be named after patients."""
    shown = [a.split("=", 1)[0] + "=..." if "=" in a and "/" in a else Path(a).name or a for a in sys.argv[1:]]
    return " ".join(["medtransfer", *(shlex.quote(a) for a in shown)])


def _print_result(result: Any, as_json: bool) -> None:
    from medtransfer.folds import FoldDone

    if result is None:
        return
    if isinstance(result, FoldDone):
        told = {"run": str(result.folder), "fold": result.fold, "missing": list(result.missing)}
        click.echo(json.dumps(told) if as_json else str(result))
        return
    if as_json:
        click.echo(
            json.dumps(
                {"report": str(result.report), "run": str(result.run.folder), "metrics": result.evaluation.to_json()}
            )
        )
        return
    click.echo(str(result.evaluation))
    click.secho(f"\nreport  {result.report}", bold=True)
    click.echo(f"run     {result.run.folder}")


@cli.command()
@click.option("--out", default="runs/demo", show_default=True, help="Run folder.")
@click.option("--patients", default=160, show_default=True, help="Size of the phantom cohort.")
@click.option("--seed", default=0, show_default=True)
@_JSON
@_QUIET
@_verbose
def demo(out: str, patients: int, seed: int, as_json: bool, quiet: bool) -> None:
    """The whole way on a phantom cohort made by code: no data, no download."""
    from medtransfer.demo import run_demo

    _print_result(run_demo(out, patients=patients, seed=seed, command=_command(), progress=not quiet), as_json)


@cli.command()
@click.argument("path", default="experiment.yaml")
@click.option("--dicom", is_flag=True, help="For a DICOM dump and a table of labels instead of a CSV of image files.")
@_verbose
def init(path: str, dicom: bool) -> None:
    """Write a commented config to start from."""
    from medtransfer.demo import starter

    target = Path(path)
    if target.exists():
        from medtransfer.errors import ConfigError

        raise ConfigError("the file exists already", where=target.name, fix="name another file")
    target.write_text(starter(dicom=dicom), encoding="utf-8")
    click.echo(f"{target} written; change its paths, then: medtransfer train {target}")


@cli.command()
@click.argument("folder", type=click.Path())
@click.option("--csv", "as_csv", is_flag=True, help="Print the table as CSV.")
@_JSON
@_QUIET
@_verbose
def scan(folder: str, as_csv: bool, as_json: bool, quiet: bool) -> None:
    """List the series of a folder, an archive or a DICOMDIR, each with its problems."""
    from medtransfer.io.scan import scan as scan_folder

    found = scan_folder(folder, progress=not quiet)
    click.echo(found.to_json() if as_json else found.to_csv() if as_csv else str(found))


@cli.command()
@click.argument("config", type=click.Path())
@_CHANGES
@click.option("--dry-run", is_flag=True, help="Check config, data, split and weights; train nothing.")
@click.option("--fold", type=int, metavar="K", help="Train this fold alone, beside processes that train others.")
@_JSON
@_QUIET
@_verbose
def train(config: str, changes: tuple[str, ...], dry_run: bool, fold: int | None, as_json: bool, quiet: bool) -> None:
    """Train, evaluate on held-out patients and write the report: the main job."""
    from medtransfer.config import Experiment
    from medtransfer.dryrun import as_text
    from medtransfer.pipeline import plan
    from medtransfer.pipeline import train as run_training

    experiment = Experiment.from_file(config, changes=changes)
    if dry_run:
        planned = plan(experiment, progress=not quiet)
        text = planned.pop("text", None) or as_text(planned)
        click.echo(json.dumps(planned) if as_json else text)
        return
    _print_result(run_training(experiment, fold=fold, command=_command(), progress=not quiet), as_json)


@cli.command()
@click.argument("run", type=click.Path())
@_CHANGES
@click.option("--at-least", metavar="VALUE", type=float, help="Exit with 5 where the AUROC (or Dice) is lower.")
@click.option("--cohort", "table", type=click.Path(), help="External validation: a table as in training, or YAML.")
@click.option("--root", type=click.Path(), help="Where the paths of --cohort start from.")
@click.option("--dicom", type=click.Path(), help="External validation: a folder of scans, with --labels.")
@click.option("--labels", type=click.Path(), help="Table of labels for --dicom.")
@click.option("--name", help="What the external cohort is called.")
@click.option("--recalibrate", metavar="SHARE", type=float, help="Also recalibrate on a share of its patients.")
@click.option("--accept", multiple=True, type=click.Choice(["same_ids", "same_images"]), help="A known overlap.")
@_JSON
@_QUIET
@_verbose
def evaluate(
    run: str,
    changes: tuple[str, ...],
    at_least: float | None,
    table: str | None,
    root: str | None,
    dicom: str | None,
    labels: str | None,
    name: str | None,
    recalibrate: float | None,
    accept: tuple[Any, ...],
    as_json: bool,
    quiet: bool,
) -> None:
    """Evaluate a finished run again, or on an external cohort with the threshold that it has stored."""
    from medtransfer.pipeline import again, gate, validate

    results: Sequence[Any]
    if table or dicom:
        results = validate(
            run, table, root=root, dicom=dicom, labels=labels, name=name, recalibrate=recalibrate, accept=accept,
            changes=changes, command=_command(), progress=not quiet,
        )  # fmt: skip
    else:
        results = [again(run, changes=changes, progress=not quiet)]
    for result in results:
        _print_result(result, as_json)
    gate(results[0].evaluation, at_least)


cli.add_command(predict)


@cli.command()
@click.argument("run", type=click.Path())
@_QUIET
@_verbose
def report(run: str, quiet: bool) -> None:
    """Write the report of a finished run again."""
    from medtransfer.pipeline import again
    from medtransfer.share import is_shared, write_redrawn

    if is_shared(run):
        click.echo(write_redrawn(run))
        return
    click.echo(again(run, progress=not quiet).report)


cli.add_command(view)
cli.add_command(search)
cli.add_command(compare)


@cli.command()
@click.argument("run", type=click.Path())
@click.option("--to", type=click.Choice(["weights", "onnx", "torch", "bundle"]), default="weights", show_default=True)
@click.option("--out", required=True, type=click.Path(), help="File (.onnx, .pt2) or folder to make.")
@click.option("--fold", type=int, help="One fold's model; all folds together by default.")
@_verbose
def export(run: str, to: Any, out: str, fold: int | None) -> None:
    """Write a run's model with its preparation and threshold, without patient data, for use elsewhere."""
    from medtransfer.export import export as export_run

    click.echo(export_run(run, out, to=to, fold=fold))


cli.add_command(fetch)
cli.add_command(send)
cli.add_command(share)
cli.add_command(deidentify)
cli.add_command(weights)
