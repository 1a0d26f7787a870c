"""The commands that hand things on: parse, call, print."""

from __future__ import annotations

import json
from typing import Any

import click

_VERBOSE = click.option("-v", "--verbose", is_flag=True, expose_value=False, help="Show the traceback of an error.")


@click.command()
@click.argument("run", type=click.Path(), required=False)
@click.option("--out", type=click.Path(), help="The archive, a .zip.")
@click.option(
    "--check", "checked", type=click.Path(), help="An archive or its unpacked folder: is it as it was packed?"
)
@click.option("--pictures", is_flag=True, help="Put in the report with its images of patients, and the masks.")
@click.option("--leave-out", multiple=True, metavar="PATTERN", help="Files that shall not go in.")
@click.option("--note", default="", help="What the card says beside its facts, e.g. terms of use.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@_VERBOSE
def share(
    run: str | None,
    out: str | None,
    checked: str | None,
    pictures: bool,
    leave_out: tuple[str, ...],
    note: str,
    as_json: bool,
) -> None:
    """Pack a run for others: models, numbers and report, nothing that names a patient or this machine."""
    from medtransfer.share import check
    from medtransfer.share import share as pack

    made = checked
    if checked is None:
        if run is None:
            raise click.UsageError("give a run, or --check ARCHIVE")
        made = str(pack(run, out or "run.zip", pictures=pictures, leave_out=leave_out, note=note))
    assert made is not None
    facts: dict[str, Any] = check(made) | {"archive": made}
    if as_json:
        click.echo(json.dumps(facts))
        return
    click.echo(f"{made}: {facts['files']} files, all as they were packed\nsha256 of the sums  {facts['sha256']}")
    if checked is None and facts["left_out"]:
        click.echo(f"left out            {', '.join(facts['left_out'])}")


@click.command()
@click.argument("source", nargs=-1, required=True, type=click.Path())
@click.argument("out", type=click.Path())
@click.option("--burned-in", type=click.Choice(["refuse", "skip", "accept"]), default="refuse", show_default=True,
              help="Images in whose pixels identifying text may stand.")  # fmt: skip
@click.option("--shift-dates", is_flag=True, help="Move a patient's dates by some secret days; else remove them.")
@click.option("--keep-uids", is_flag=True, help="Keep UIDs.")
@click.option("--characteristics", is_flag=True, help="Keep sex, age up to 89 years, size and weight.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@click.option("-q", "--quiet", is_flag=True, help="No progress bars.")
@_VERBOSE
def deidentify(
    source: tuple[str, ...],
    out: str,
    burned_in: Any,
    shift_dates: bool,
    keep_uids: bool,
    characteristics: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Copy DICOM images without what names a patient (PS3.15 Basic Profile)."""
    from medtransfer.deid import deidentify as copy

    done = copy(source, out, burned_in=burned_in, shift_dates=shift_dates, keep_uids=keep_uids,
                characteristics=characteristics, progress=not quiet)  # fmt: skip
    if as_json:
        click.echo(json.dumps({"out": out, "written": done.written, "left_out": done.left_out}))
        return
    click.echo(f"{done.written} files in {out}")
    for reason, count in done.left_out.items():
        click.echo(f"left out: {count} {reason}")
