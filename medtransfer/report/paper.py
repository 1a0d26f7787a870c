"""The page on paper: HTML to PDF through WeasyPrint, from no source but the page itself."""

from __future__ import annotations

from typing import Any

from medtransfer.errors import RunError, require


def printed(html: str) -> bytes:
    """The page as PDF, laid out by its print style sheet.

    Images of the page are inside it, so every address that is not ``data:`` is refused.

    Raises
    ------
    MissingPackage
        Without ``medtransfer[pdf]``.
    RunError
        Where the libraries that lay it out are not on this machine.
    """
    try:
        weasyprint: Any = require("weasyprint", "pdf")
    except OSError as error:  # Pango is a library of the system
        raise RunError(
            "the PDF cannot be laid out", got=str(error).split("\n")[0][:120], fix="install Pango, or print report.html"
        ) from error

    inside_only = weasyprint.urls.URLFetcher(allowed_protocols={"data"}, allow_redirects=False)
    return bytes(weasyprint.HTML(string=html, url_fetcher=inside_only).write_pdf())
