"""Write the report and what stands beside it, each file whole or not at all."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
import os
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from medtransfer.errors import ConfigError, RunError

if TYPE_CHECKING:
    import jinja2

    from medtransfer.evaluate import Evaluation
    from medtransfer.report.words import Words

TEMPLATES = Path(__file__).parent / "templates"


def write_report(
    result: Evaluation, path: str | Path, *, language: Literal["en", "de", "fr", "es"] = "en", pdf: bool = False
) -> Path:
    """Write ``report.html`` with its numbers, predictions and model cards beside it.

    The page is one file: no request leaves it, every text in it is escaped, and its content policy allows
    no script but its own, by hash. Beside it stand ``metrics.json`` (described by ``metrics.schema.json`` in
    this package), ``predictions.csv``, ``model_card.md`` and ``model_card.xml`` (CHAI Applied Model Card), and
    with ``pdf`` also ``report.pdf``. Files of the same names are replaced.

    Parameters
    ----------
    result : Evaluation
    path : path
        Of the page, ending in ``.html``; or a folder, which then gets ``report.html``.
    language : {'en', 'de', 'fr', 'es'}
        Of the page, its figures and the Markdown card; what people wrote stays as it is.
    pdf : bool
        Also print the page to PDF, which needs ``medtransfer[pdf]``.

    Returns
    -------
    Path
        Of the page.

    Raises
    ------
    RunError
        Where the folder cannot be written.
    ConfigError
        For another language.
    MissingPackage
        For a PDF without the extra.
    """
    from medtransfer.report.chai import model_card_xml
    from medtransfer.report.paper import printed

    path = Path(path)
    if path.suffix.lower() not in {".html", ".htm"}:
        path = path / "report.html"
    words = words_of(language)
    html = page(result, words)
    files: dict[str, str | bytes] = {
        path.name: html,
        "metrics.json": metrics_json(result),
        "predictions.csv": predictions_csv(result),
        "model_card.md": model_card(result, words),
        "model_card.xml": model_card_xml(result),
    }
    replace_files(path.parent, files)
    if pdf:
        replace_files(path.parent, {path.with_suffix(".pdf").name: printed(html)})
    return path


def replace_files(folder: Path, files: Mapping[str, str | bytes]) -> None:
    """Write files of a folder, each whole or not at all.

    Raises
    ------
    RunError
        Where the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            _replace(folder / name, text.encode() if isinstance(text, str) else text)
    except OSError as error:
        raise RunError(
            "the report cannot be written",
            where=folder.name,
            got=error.strerror or type(error).__name__,
            fix="choose a folder that can be written, with space left",
        ) from error


def page(result: Evaluation, words: Words) -> str:
    """The whole page as text."""
    from medtransfer.report.content import content

    return render(words, content(result, words))


def render(words: Words, view: dict[str, Any]) -> str:
    """A page from what its sections need: style, scripts and their hash are put into it."""
    names = ("slider.js", "cases.js", *(("viewer.js",) if view.get("viewer") else ()))
    return rendered("report.html", names, words, view)


def rendered(template: str, scripts: Sequence[str], words: Words, view: Mapping[str, Any]) -> str:
    """A template as text, its scripts allowed by their hash."""
    script = "".join((TEMPLATES / name).read_text(encoding="utf-8") for name in scripts)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    style = (TEMPLATES / "style.css").read_text(encoding="utf-8")
    page = _environment(words, html=True).get_template(template)
    return page.render(**view, script=script, script_hash=digest, style=style)


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


def model_card(result: Evaluation, words: Words) -> str:
    """The model card as Markdown text."""
    from medtransfer.report.content import content

    return card_text(content(result, words, drawn=False), words)


def card_text(view: Mapping[str, Any], words: Words) -> str:
    """The Markdown card of what the templates need."""
    return _environment(words, html=False).get_template("model_card.md").render(**view)


def words_of(language: str) -> Words:
    """The words of a language, or a refusal that names those there are."""
    from medtransfer.report.words import LANGUAGES, Words

    if language not in LANGUAGES:
        raise ConfigError("the report knows no such language", got=repr(language), fix=f"choose {', '.join(LANGUAGES)}")
    return Words(language)


def _environment(words: Words, *, html: bool) -> jinja2.Environment:
    import jinja2

    from medtransfer.report import content, tables
    from medtransfer.report.words import markdown

    found = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=html,  # noqa: S701  the Markdown card escapes by its own filter
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    found.filters |= {
        "est": words.estimate,
        "tight": words.tight,
        "number": words.number,
        "method": words.method,
        "percent": content.percent,
        "short": tables.short,
        "md": markdown,
    }
    return found


def _replace(path: Path, content: bytes) -> None:
    draft = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
    try:
        with open(draft, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)
