"""What the build adds to the pages: below each block what it printed, and readable signatures of settings classes."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from blocks import FENCE

MADE = Path(__file__).parents[1] / "_made"


def show_outputs(app: Any, docname: str, source: list[str]) -> None:
    """Put the output of every block that ran below it."""
    kept = MADE / "blocks.json"
    outcomes = json.loads(kept.read_text(encoding="utf-8")) if kept.is_file() else []
    text = source[0]
    for shown in reversed([o for o in outcomes if o["page"] == f"{docname}.md" and o["output"] and not o["quiet"]]):
        for fence in FENCE.finditer(text):
            if text.count("\n", 0, fence.start()) + 1 == shown["line"]:
                mark = "`" * (max((len(m) for m in re.findall("`+", shown["output"])), default=2) + 3)
                below = f"\n\n{mark}{{code-block}} text\n:class: output\n\n{shown['output']}\n{mark}\n"
                text = text[: fence.end()] + below + text[fence.end() :]
                break
    source[0] = text


def only_pages_there(app: Any, docname: str, source: list[str]) -> None:
    """Leave out patterns of the front page that no page fits: some pages belong to optional parts of the package."""
    if docname == "index":
        lines = source[0].split("\n")
        gone = {line for line in lines if line.endswith("*") and not [*Path(app.srcdir).glob(f"{line}.md")]}
        source[0] = "\n".join(line for line in lines if line not in gone)


def short_signature(
    app: Any, what: str, name: str, thing: Any, options: Any, signature: str | None, returned: str | None
) -> tuple[str, None] | None:
    """Settings classes are called by keywords; their types and limits stand in the config reference."""
    from pydantic import BaseModel

    if what == "class" and isinstance(thing, type) and issubclass(thing, BaseModel):
        fields = ", ".join(f"{k}={v.get_default()!r}" for k, v in thing.model_fields.items())
        return f"(*, {fields})", None
    return None


def setup(app: Any) -> dict[str, Any]:
    app.connect("source-read", show_outputs)
    app.connect("source-read", only_pages_there)
    app.connect("autodoc-process-signature", short_signature)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
