"""Exactness certificates of every backbone, as a table in Markdown; minutes for the largest.

python tests/benchmarks/certificates.py [architecture ...]      (all of them by default)
"""

import sys
from collections.abc import Sequence

from medtransfer.backbones import ARCHITECTURES
from medtransfer.certify import Certificate, certify

COLUMNS = {"gray": "gray", "inflated, centre": "(centre)", "inflated, mean": "(mean)", "ACS, layers": "ACS layers",
           "ACS, whole": "whole ACS"}  # fmt: skip


def row(name: str, found: Sequence[Certificate]) -> str:
    """The largest error of each kind; a dash where there is none, and stars around what does not hold."""
    errors = {k: [c.error for c in found if word in c.claim] for k, word in COLUMNS.items()}
    cells = [f"{max(e):.1e}" if e else "–" for e in errors.values()]
    worst = max(c.error for c in found)
    return f"| {name} | {' | '.join(cells)} | {f'{worst:.1e}' if all(c.holds for c in found) else f'**{worst:.1e}**'} |"


if __name__ == "__main__":
    print(f"| architecture | {' | '.join(COLUMNS)} | worst |\n|---|{'---|' * (len(COLUMNS) + 1)}")
    for wanted in sys.argv[1:] or ARCHITECTURES:
        print(row(wanted, certify(wanted)), flush=True)
