"""Drawings made without a plotting library: participant flow, natural frequencies, images as PNG."""

from __future__ import annotations

import base64
import struct
import textwrap
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from markupsafe import Markup, escape
from numpy.typing import NDArray

from medtransfer.report.words import Words


def flow(steps: Sequence[Any], w: Words) -> Markup:
    """Participant flow: one box a step, what was left out beside it.

    Parameters
    ----------
    steps : list of [label, count, [[reason, count], ...]]
        In order; the reasons say what was left out between the step before and this one.
    """
    parts: list[str] = []
    y = 8.0
    for i, step in enumerate(steps):
        label, count = str(step[0]), step[1]
        reasons = step[2] if len(step) > 2 and step[2] else []
        lines = textwrap.wrap(label, 34)[:3] or [""]
        side = [line for r in reasons for line in textwrap.wrap(f"{r[1]} × {r[0]}", 42)[:3]]
        if i:
            gap = max(34.0, 22.0 + 17 * len(side) + 16)
            parts.append(f'<path class="arrow" d="M170 {y} V{y + gap - 2}" marker-end="url(#flow-tip)"/>')
            if side:
                parts.append(f'<path class="arrow" d="M170 {y + gap / 2} H352" marker-end="url(#flow-tip)"/>')
                height = 17 * len(side) + 14
                top = y + gap / 2 - height / 2
                parts.append(f'<rect class="out" x="356" y="{top}" width="310" height="{height}" rx="6"/>')
                parts += [f'<text x="368" y="{top + 20 + 17 * k}">{escape(t)}</text>' for k, t in enumerate(side)]
            y += gap
        height = 36 + 17 * len(lines)
        parts.append(f'<rect class="box" x="10" y="{y}" width="320" height="{height}" rx="8"/>')
        parts.append(f'<text class="count" x="170" y="{y + 25}">{escape(count)}</text>')
        parts += [f'<text class="label" x="170" y="{y + 44 + 17 * k}">{escape(t)}</text>' for k, t in enumerate(lines)]
        y += height
    tip = (
        '<defs><marker id="flow-tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" '
        'orient="auto"><path class="tip" d="M0 0L8 4L0 8z"/></marker></defs>'
    )
    alt = escape(w.plain("alt.flow") + ": " + "; ".join(f"{s[0]}: {s[1]}" for s in steps))
    head = f'<svg class="flow" viewBox="0 0 680 {y + 10}" role="img" aria-label="{alt}">'
    return Markup(head + tip + "".join(parts) + "</svg>")  # noqa: S704  every text inside was escaped


def hundred(found: int, missed: int, false_alarms: int, w: Words) -> Markup:
    """One hundred cases as dots: found, missed, false alarms, rightly cleared."""
    kinds = ["found"] * found + ["missed"] * missed + ["alarm"] * false_alarms
    kinds += ["clear"] * (100 - len(kinds))
    dots = "".join(
        f'<circle class="{kind}" cx="{12 + 22 * (i % 20)}" cy="{12 + 22 * (i // 20)}" r="8"/>'
        for i, kind in enumerate(kinds[:100])
    )
    cleared = 100 - found - missed - false_alarms
    counts = {"found": found, "missed": missed, "alarms": false_alarms, "cleared": cleared}
    alt = escape(w.plain("slider.sentence", diseased=found + missed, **counts))
    return Markup(f'<svg class="hundred" viewBox="0 0 442 112" role="img" aria-label="{alt}">{dots}</svg>')  # noqa: S704


def png(image: NDArray[np.uint8]) -> str:
    """A ``data:`` address of an image ``[rows, cols]`` or ``[rows, cols, 3]``, without any metadata."""
    array = np.ascontiguousarray(image, dtype=np.uint8)
    step = max(1, int(np.ceil(max(array.shape[:2]) / 320)))
    array = array[::step, ::step]
    rows, cols = array.shape[:2]
    raw = np.concatenate([np.zeros((rows, 1), np.uint8), array.reshape(rows, -1)], axis=1).tobytes()
    head = struct.pack(">IIBBBBB", cols, rows, 8, 2 if array.ndim == 3 else 0, 0, 0, 0)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    file = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(raw, 9)) + chunk(b"IEND", b"")
    return "data:image/png;base64," + base64.b64encode(file).decode()
