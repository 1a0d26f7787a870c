"""The commands that talk to a picture archive: parse, call, print."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from medtransfer.pacs.server import Server

_VERBOSE = click.option("-v", "--verbose", is_flag=True, expose_value=False, help="Show the traceback of an error.")


def _server_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """What both directions need to know about the archive."""
    for option in (
        click.option("--json", "as_json", is_flag=True, help="Print the result as JSON."),
        click.option("-q", "--quiet", is_flag=True, help="No progress bars."),
        click.option("--aet", default="MEDTRANSFER", show_default=True, help="Our application entity title (DIMSE)."),
        click.option("--ca-bundle", type=click.Path(), help="Certificates by which an https archive is verified."),
        click.option("--attempts", default=5, show_default=True, help="How often a request is tried."),
        click.option("--timeout-s", default=30.0, show_default=True, help="Seconds without an answer."),
        click.option("--megabytes-per-s", type=float, help="Most megabytes a second; no limit by default."),
        _VERBOSE,
    ):
        command = option(command)
    return command


@click.command()
@click.argument("address")
@click.argument("out", type=click.Path())
@click.option("--query", "queries", multiple=True, metavar="KEY=VALUE", help="What to find, e.g. Modality=CT.")
@click.option("--ids", type=click.Path(), help="A table: only what one of its rows names.")
@click.option("--on", default="PatientID", show_default=True, help="The id in that table, as DICOM calls it.")
@click.option("--column", help="Column of the table that holds it; by default one called like --on.")
@click.option("--dry-run", is_flag=True, help="List what would be fetched, and fetch nothing.")
@click.option("--incomplete", is_flag=True, help="Succeed without what the archive does not give, or gives damaged.")
@click.option("--workers", default=4, show_default=True, help="Requests at a time.")
@_server_options
def fetch(
    address: str, out: str, queries: tuple[str, ...], ids: str | None, on: str, column: str | None, dry_run: bool,
    incomplete: bool, workers: int, megabytes_per_s: float | None, timeout_s: float, attempts: int,
    ca_bundle: str | None, aet: str, quiet: bool, as_json: bool,
) -> None:  # fmt: skip
    """Bring studies from an archive into the folder OUT; the same command again goes on where it ended.

    Several --query must all fit (StudyDate=20240101-20240131 is a range); of one key given again, any value.

    ADDRESS is https://HOST:PORT/dicom-web (DICOMweb) or dicom://AETITLE@HOST:PORT (DIMSE). Credentials come from the
    environment (MEDTRANSFER_PACS_TOKEN, or MEDTRANSFER_PACS_USER and MEDTRANSFER_PACS_PASSWORD) or the keyring.
    """
    from medtransfer.pacs import fetch as pacs

    server = _server(address, workers, megabytes_per_s, timeout_s, attempts, ca_bundle, aet)
    query, only = pacs.asked(_queries(queries), ids, on=on, column=column)
    found = pacs.find(server, query, only=only)
    counts = {"studies": found.studies, "instances": len(found), "bytes": found.bytes, "left_out": dict(found.left_out)}
    if dry_run:
        here = pacs.here(found, out)
        if as_json:
            click.echo(json.dumps({"server": server.name, **counts, "here": here, "series": found.rows()}))
            return
        _table(found.rows())
        click.echo(f"{len(found):,} instances of {found.studies:,} studies{_about(found.bytes)}, {here:,} are here")
        return
    done = pacs.fetch(server, found, out, progress=not quiet)
    if as_json:
        told = {"here": done.here, "fetched": done.fetched, "fetched_bytes": done.bytes, "failed": done.failed}
        click.echo(json.dumps({"server": server.name, **counts, **told}))
    else:
        click.echo(str(done))
    if not incomplete:
        done.check()


@click.command()
@click.argument("address")
@click.argument("files", nargs=-1, required=True, type=click.Path())
@click.option("--dry-run", is_flag=True, help="List what would be sent, and send nothing.")
@_server_options
def send(
    address: str, files: tuple[str, ...], dry_run: bool, megabytes_per_s: float | None, timeout_s: float,
    attempts: int, ca_bundle: str | None, aet: str, quiet: bool, as_json: bool,
) -> None:  # fmt: skip
    """Send DICOM files, such as SEG and SR results, to an archive, and look each up there afterwards.

    FILES are files or folders; what the archive has already is not sent again. Patients and studies are those in the
    files: nothing is de-identified. ADDRESS and credentials are as for fetch.
    """
    from medtransfer.pacs import send as pacs

    server = _server(address, 1, megabytes_per_s, timeout_s, attempts, ca_bundle, aet)
    objects = pacs.objects(files)
    if dry_run:
        left = pacs.missing_there(server, objects)
        rows = [one.row() for one in left]
        size = sum(one.bytes for one in left)
        if as_json:
            there = len(objects) - len(left)
            click.echo(json.dumps({"server": server.name, "objects": rows, "bytes": size, "there": there}))
            return
        _table(rows)
        click.echo(f"{len(left):,} objects{_about(size)}, {len(objects) - len(left):,} are there")
        return
    sent = pacs.send(server, objects, progress=not quiet)
    if as_json:
        told = {"sent": sent.sent, "bytes": sent.bytes, "there": sent.there, "confirmed": sent.confirmed}
        click.echo(json.dumps({"server": server.name, **told}))
        return
    click.echo(str(sent))


def _server(
    address: str, workers: int, megabytes_per_s: float | None, timeout_s: float, attempts: int, ca_bundle: str | None,
    aet: str,
) -> Server:  # fmt: skip
    from medtransfer.pacs.server import Server

    return Server(
        address, workers=workers, megabytes_per_s=megabytes_per_s, timeout_s=timeout_s, attempts=attempts,
        ca_bundle=ca_bundle, aet=aet,
    )  # fmt: skip


def _queries(texts: tuple[str, ...]) -> dict[str, list[str]]:
    from medtransfer.errors import ConfigError

    query: dict[str, list[str]] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals:
            raise ConfigError("--query wants KEY=VALUE", got=f"'{key}'", fix="for example --query Modality=CT")
        query.setdefault(key.strip(), []).append(value.strip())
    return query


def _table(rows: list[dict[str, Any]]) -> None:
    """Rows of pseudonyms for the terminal."""
    for row in rows:
        cells = [("?" if v is None else f"{v:,}").rjust(12) if isinstance(v, int | None) else f"{v:<20}"
                 for v in row.values()]  # fmt: skip
        click.echo("  ".join(cells).rstrip())


def _about(count: int | None) -> str:
    return "" if count is None else f", about {count / 1e6:,.1f} MB"
