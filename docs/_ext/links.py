"""Links of built pages: every address inside the manual, and every anchor, has to be there."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


class _Page(HTMLParser):
    """The anchors of a page, and where it points to."""

    def __init__(self) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.targets: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if value and name in ("id", "name"):
                self.anchors.add(value)
            elif value and name in ("href", "src"):
                self.targets.add(value)


def broken(folder: Path) -> list[str]:
    """Links that lead nowhere, as ``page: target``; addresses outside the manual are not followed."""
    pages: dict[Path, _Page] = {}
    for path in sorted(folder.rglob("*.html")):
        pages[path] = _Page()
        pages[path].feed(path.read_text(encoding="utf-8"))
    found = []
    for path, page in pages.items():
        for target in sorted(page.targets):
            address = urlsplit(target)
            if address.scheme or address.netloc:
                continue
            place = (path.parent / unquote(address.path)).resolve() if address.path else path
            place = place / "index.html" if place.is_dir() else place
            anchor = unquote(address.fragment)
            missing = not place.exists() or (anchor and place in pages and anchor not in pages[place].anchors)
            if missing:
                found.append(f"{path.relative_to(folder)}: {target}")
    return found
