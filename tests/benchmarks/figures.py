"""One line a figure, for people and for ``all.py``; children that are timed alternately, each in its own process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
FIGURE, RESULT = "FIGURE ", "RESULT "


def figure(what: str, value: float, *, least: float | None = None, most: float | None = None, note: str = "") -> None:
    """Print a ratio and the bar that it has to reach (``least``) or stay under (``most``), where there is one."""
    print(FIGURE + json.dumps({"what": what, "value": round(value, 3), "least": least, "most": most, "note": note}),
          flush=True)  # fmt: skip


def result(**facts: Any) -> None:
    """What a child says to its parent."""
    print(RESULT + json.dumps(facts), flush=True)


def child(command: Sequence[object], *, python: str = sys.executable) -> dict[str, Any] | str:
    """The last result of a program of this folder, or why there is none, in one line."""
    told = os.environ | {"PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONWARNINGS": "ignore"}
    words = [python, str(Path(__file__).parent / str(command[0])), *map(str, command[1:])]
    done = subprocess.run(words, capture_output=True, text=True, env=told)
    found = [line for line in done.stdout.splitlines() if line.startswith(RESULT)]
    if found:
        return json.loads(found[-1].removeprefix(RESULT))  # type: ignore[no-any-return]
    last = (done.stderr.strip().splitlines() or ["nothing was said"])[-1]
    return "not installed" if "ModuleNotFoundError" in last else last[:200]


def machine() -> str:
    """Processor, cores and threads, and how busy the machine is."""
    import platform

    info = Path("/proc/cpuinfo")
    names = (
        [x.split(":")[1].strip() for x in info.read_text().splitlines() if "model name" in x] if info.exists() else []
    )
    threads = os.environ.get("OMP_NUM_THREADS", "all")
    return (f"{names[0] if names else platform.processor()}, {os.cpu_count()} cores, {threads} threads, "
            f"load {os.getloadavg()[0]:.1f}")  # fmt: skip
