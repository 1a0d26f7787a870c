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
