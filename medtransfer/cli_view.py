"""The command that shows one case: parse, call, open."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click


@click.command()
@click.argument("case")
@click.argument("masks", nargs=-1, type=click.Path())
@click.option("--run", type=click.Path(), help="A finished run: CASE is a pseudonym of its cohort, or an image.")
@click.option("--reference", type=click.Path(), help="A mask to set beside the others, e.g. the expert's.")
@click.option("--names", help="Names of the labels, or of several masks: liver,spleen.")
@click.option("--out", type=click.Path(), help="The page; by default in views/ of the run, or in this folder.")
@click.option("--limit-mb", default=48.0, show_default=True, help="Size of the volumes, beyond which they are thinned.")
@click.option("--language", type=click.Choice(["en", "de", "fr", "es"]), default="en", show_default=True)
@click.option("--no-open", is_flag=True, help="Write the page, open no browser.")
@click.option("-v", "--verbose", is_flag=True, expose_value=False, help="Show the traceback of an error.")
def view(
    case: str,
    masks: tuple[str, ...],
    run: str | None,
    reference: str | None,
    names: str | None,
    out: str | None,
    limit_mb: float,
    language: Any,
    no_open: bool,
) -> None:
    """Show one case in the browser: CASE is a pseudonym (with --run), or an image with MASKS over it."""
    from medtransfer.errors import ConfigError
    from medtransfer.view import view_case, view_file

    if run is None:
        called = [name.strip() for name in names.split(",")] if names else []
        path = view_file(
            case, masks, reference=reference, structures=called, out=out, limit_mb=limit_mb, language=language
        )
    elif masks or reference or names:
        raise ConfigError("the masks of a run's case are the run's", where="--run", fix="leave out the masks")
    else:
        path = view_case(run, case, out=out, limit_mb=limit_mb, language=language)
    click.echo(path)
    if not no_open:
        import webbrowser

        webbrowser.open(Path(path).resolve().as_uri())
