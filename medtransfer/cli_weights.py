"""The commands about pretrained weights: parse, call, print."""

from __future__ import annotations

import json
from pathlib import Path

import click


@click.group()
def weights() -> None:
    """Pretrained weights: list, fetch, import, export, verify, certify."""


@weights.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@click.option("-v", "--verbose", is_flag=True, expose_value=False, help="Show the traceback of an error.")
def list_weights(as_json: bool) -> None:
    """Architectures, what is known of their weights, and which of these are on this machine."""
    from medtransfer.backbones.sources import overview

    rows = overview()
    if as_json:
        click.echo(json.dumps(rows))
        return
    widths = {"name": 30, "dims": 20, "parameters": 7, "side": 5, "mean": 18, "std": 18, "licence": 12, "status": 17}
    titles = {"parameters": "million", "side": "px"}
    click.echo(" ".join(f"{titles.get(k, k):<{w}}" for k, w in widths.items()) + " source")
    for row in rows:
        click.echo(" ".join(f"{row[k]:<{w}}" for k, w in widths.items()) + f" {row['source']}")


@weights.command()
@click.argument("name")
@click.option("-v", "--verbose", is_flag=True, expose_value=False, help="Show the traceback of an error.")
def fetch(name: str) -> None:
    """Download published weights, e.g. imagenet/resnet50; it opens a connection."""
    from medtransfer.backbones.sources import fetch as download

    click.echo(f"{name}: {download(name)}")


@weights.command("import")
@click.argument("file", type=click.Path())
@click.option("--name", help="source/architecture, e.g. hospital/resnet50; by default local/<architecture>.")
@click.option("--arch", help="Architecture; by default recognised from the tensors.")
@click.option("--mean", help="Normalisation of the pretraining on values in [0, 1]: one number, or one a channel.")
@click.option("--std", help="Its standard deviation. What 'weights export' wrote brings both along.")
@click.option("--licence", help="Under which the weights may be used.")
@click.option("--origin", help="Where the file came from.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@click.option("-v", "--verbose", is_flag=True, expose_value=False, help="Show the traceback of an error.")
def import_weights(
    file: str,
    name: str | None,
    arch: str | None,
    mean: str | None,
    std: str | None,
    licence: str | None,
    origin: str | None,
    as_json: bool,
) -> None:
    """Register a local checkpoint, check every tensor and print the receipt. No network."""
    from medtransfer.adapt import import_file

    stored, receipt = import_file(
        Path(file),
        name=name,
        arch=arch,
        mean=_numbers("mean", mean) if mean else None,
        std=_numbers("std", std) if std else None,
        licence=licence,
        origin=origin,
    )
    if as_json:
        click.echo(json.dumps({"weights": stored.to_record(), "receipt": receipt.to_record()}))
        return
    click.echo(f"{stored.name}: {stored.arch}, sha256 {stored.sha256}\n{receipt}")


@weights.command("export")
@click.argument("name")
@click.argument("out", type=click.Path())
@click.option("-v", "--verbose", is_flag=True, expose_value=False, help="Show the traceback of an error.")
def export_weights(name: str, out: str) -> None:
    """Write weights with their record into one .safetensors file, for 'weights import' on another machine."""
    from medtransfer.backbones.sources import find
    from medtransfer.weights import export as write_file

    click.echo(f"{name}: {Path(out).name}, sha256 {write_file(find(name), Path(out))}")


@weights.command()
@click.argument("name", required=False)
@click.option("-v", "--verbose", is_flag=True, expose_value=False, help="Show the traceback of an error.")
def verify(name: str | None) -> None:
    """Compare stored weights with the hashes in their records."""
    from medtransfer.backbones.sources import find
    from medtransfer.weights import stored
    from medtransfer.weights import verify as check

    for record in [find(name)] if name else stored():
        check(record)
        click.echo(f"{record.name}: intact, sha256 {record.sha256}")


@weights.command()
@click.argument("name")
@click.option("-v", "--verbose", is_flag=True, expose_value=False, help="Show the traceback of an error.")
def certify(name: str) -> None:
    """Check that a backbone adapted to gray images and volumes computes what the original does; exit 4 if not."""
    from medtransfer.certify import certify as certificates
    from medtransfer.errors import WeightsError

    found = certificates(name)
    for certificate in found:
        click.echo(str(certificate))
    if failed := [c for c in found if not c.holds]:
        raise WeightsError(f"{len(failed)} certificates do not hold", where=name, fix="report this network")


def _numbers(option: str, text: str) -> tuple[float, ...]:
    from medtransfer.errors import ConfigError

    try:
        values = tuple(float(v) for v in text.replace(",", " ").split())
    except ValueError:
        values = ()
    if not values:
        raise ConfigError(
            "a number is wanted, or one a channel",
            where=f"--{option}",
            got=f"'{text}'",
            fix="for example 0.485,0.456,0.406",
        )
    return values
