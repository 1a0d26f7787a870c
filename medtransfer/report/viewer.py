"""The viewer in a page: NiiVue, which this package carries, and the volumes it shows."""

from __future__ import annotations

import base64
import gzip
import hashlib
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from markupsafe import Markup

from medtransfer.report.volumes import Scene
from medtransfer.report.words import Words

NIIVUE = Path(__file__).parent / "niivue" / "niivue.umd.js.gz"


@cache
def script_hash() -> str:
    """Hash of the viewer's script for a content policy: with it the page may run this script and no other."""
    return base64.b64encode(hashlib.sha256(gzip.decompress(NIIVUE.read_bytes())).digest()).decode()


def embedded(scenes: Sequence[Scene], structures: Sequence[str], w: Words) -> dict[str, Any]:
    """What the templates need to show scenes; empty where there is nothing to show.

    The viewer's script stands in the page compressed, as data, and runs only when a reader asks for a volume.
    """
    from jinja2.utils import htmlsafe_json_dumps

    if not scenes:
        return {}
    words = {k: w.plain(f"viewer.{k}") for k in ("image", "reference", "predicted")}
    facts = {"scenes": [s.to_json() for s in scenes], "structures": list(structures), "words": words}
    return {
        "volumes": htmlsafe_json_dumps(facts),
        "niivue": Markup(base64.b64encode(NIIVUE.read_bytes()).decode()),  # noqa: S704  letters and digits
        "hash": script_hash(),
        "thinned": max(max(s.steps) for s in scenes),
    }
