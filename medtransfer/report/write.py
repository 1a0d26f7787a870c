"""Write the report and what stands beside it, each file whole or not at all."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
import os
import secrets
from pathlib import Path
from typing import TYPE_CHECKING

from medtransfer.errors import RunError

if TYPE_CHECKING:
    import jinja2

    from medtransfer.evaluate import Evaluation

TEMPLATES = Path(__file__).parent / "templates"


def write_report(result: Evaluation, path: str | Path) -> Path:
    """Write ``report.html`` with ``metrics.json``, ``predictions.csv`` and ``model_card.md`` beside it.

    The page is one file: no request leaves it, every text in it is escaped, and its content policy allows
    no script but its own, by hash. Files of the same names are replaced.

    Parameters
    ----------
    result : Evaluation
    path : path
        Of the page, ending in ``.html``; or a folder, which then gets ``report.html``.

    Returns
    -------
    Path
        Of the page.

    Raises
    ------
    RunError
        Where the folder cannot be written.
    """
    path = Path(path)
    if path.suffix.lower() not in {".html", ".htm"}:
        path = path / "report.html"
    files = {
        path.name: page(result),
        "metrics.json": metrics_json(result),
        "predictions.csv": predictions_csv(result),
        "model_card.md": model_card(result),
    }
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            _replace(path.parent / name, text)
    except OSError as error:
        raise RunError(
            "the report cannot be written",
            where=path.parent.name,
            got=error.strerror or type(error).__name__,
            fix="choose a folder that can be written, with space left",
        ) from error
    return path


def page(result: Evaluation) -> str:
    """The whole page as text."""
    from medtransfer.report.content import content

    script = (TEMPLATES / "slider.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return (
        _environment(html=True)
        .get_template("report.html")
        .render(
            **content(result),
            script=script,
            script_hash=digest,
            style=(TEMPLATES / "style.css").read_text(encoding="utf-8"),
        )
    )


def metrics_json(result: Evaluation) -> str:
    """The numbers as JSON text: keys sorted, the same bytes for the same input."""
    return json.dumps(result.to_json(), indent=1, sort_keys=True, allow_nan=False, ensure_ascii=False) + "\n"


def predictions_csv(result: Evaluation) -> str:
    """The predictions as CSV text; cells that a spreadsheet would run as a formula start with an apostrophe."""
    rows = csv.reader(io.StringIO(result.predictions.to_csv()))
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([neutral(cell) for cell in row] for row in rows)
    return text.getvalue()


def neutral(cell: str) -> str:
    """A cell that no spreadsheet takes for a formula; numbers stay as they are.

    Examples
    --------
    >>> neutral("=1+1"), neutral("-0.5"), neutral("@x")
    ("'=1+1", '-0.5', "'@x")
    """
    if not cell.startswith(("=", "+", "-", "@", "\t", "\r")):
        return cell
    try:
        float(cell)
    except ValueError:
        return "'" + cell
    return cell


def model_card(result: Evaluation) -> str:
    """The model card as Markdown text."""
    from medtransfer.report.content import content

    return _environment(html=False).get_template("model_card.md").render(**content(result, drawn=False))


def _environment(*, html: bool) -> jinja2.Environment:
    import jinja2

    from medtransfer.report import content

    found = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=html,  # noqa: S701  the Markdown card escapes by its own filter
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    found.filters |= {
        "est": content.est,
        "number": content.number,
        "percent": content.percent,
        "md": content.markdown,
        "method": content.method,
    }
    return found


def _replace(path: Path, text: str) -> None:
    draft = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
    try:
        with open(draft, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)
