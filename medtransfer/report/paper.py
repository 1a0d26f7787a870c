"""The page on paper: HTML to PDF through WeasyPrint, from no source but the page itself."""

from __future__ import annotations

from typing import Any

from medtransfer.errors import RunError, require

# WeasyPrint cannot break a grid between two pages
_NO_GRID = """
.headline, .tiles, .two, .gallery, .gallery.wide, .pair, .triple, dl, ul.flags li { display: block !important }
.tile { display: inline-block; width: 17%; vertical-align: top } dd { margin: 0 0 6px }
.gallery figure { display: inline-block; width: 46%; vertical-align: top }
.pair img { display: inline-block; width: 49% }
.triple > * { display: inline-block; width: 32%; vertical-align: top }
"""


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
    page = weasyprint.HTML(string=html, url_fetcher=inside_only)
    try:
        return bytes(page.write_pdf(stylesheets=[weasyprint.CSS(string=_NO_GRID)]))
    except (AssertionError, ValueError, IndexError, TypeError) as error:  # its layout fails on some pages in these ways
        raise RunError(
            "the PDF cannot be laid out",
            got=type(error).__name__,
            fix="report.html is written: print it from a browser",
        ) from error
