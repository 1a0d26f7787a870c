"""The command that predicts: parse, call, print."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click


@click.command()
@click.argument("run", type=click.Path())
@click.argument("images", nargs=-1, type=click.Path())
@click.option("--list", "listed", metavar="FILE", type=click.Path(), help="More images: a text file, a path a line.")
@click.option("--out", type=click.Path(), help="CSV file, printed by default; folder of masks for a segmentation.")
@click.option("--as", "form", type=click.Choice(["nifti", "seg"]), help="Masks as NIfTI (default) or DICOM SEG.")
@click.option("--queue", metavar="FOLDER", type=click.Path(), help="Share the work with all who name this folder.")
@click.option("--lease", metavar="SECONDS", default=120.0, show_default=True, type=click.FloatRange(1),
              help="With --queue: take over what a process elsewhere has let lie for so long.")  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Measure a few images and tell how long all take; predict nothing.")
@click.option("-q", "--quiet", is_flag=True, help="No progress bars.")
@click.option("-v", "--verbose", is_flag=True, expose_value=False, help="Show the traceback of an error.")
def predict(
    run: str,
    images: tuple[str, ...],
    listed: str | None,
    out: str | None,
    form: Literal["nifti", "seg"] | None,
    queue: str | None,
    lease: float,
    dry_run: bool,
    quiet: bool,
) -> None:
    """Predict new images with a run or an exported model: one row, or one mask, an image, in the order given."""
    from medtransfer.bulk import cost_of_predicting, predict_shared, read_list
    from medtransfer.export.opened import open_exported
    from medtransfer.masks import predict_masks
    from medtransfer.pipeline import predict_files

    studies = [*images, *(map(str, read_list(listed)) if listed else ())]
    if not studies and not queue:
        raise click.UsageError("Missing argument 'IMAGES...', or --list FILE.")
    if dry_run:
        click.echo(cost_of_predicting(run, studies))
        return
    if queue:
        done = predict_shared(run, studies, queue, form=form or "nifti", lease_s=lease, progress=not quiet)
        click.secho(str(done), fg="yellow" if done.problems else None, err=bool(done.problems))
        return
    model = open_exported(run)
    if form or model.card.task == "segmentation":
        click.echo(predict_masks(model, studies, out, form=form or "nifti"), nl=False)
    else:
        text = predict_files(model, studies, progress=not quiet)
        if out is None:
            click.echo(text, nl=False)
            return
        from medtransfer.run import write

        write(Path(out), text)
        click.echo(f"{len(studies)} predictions in {out}")
