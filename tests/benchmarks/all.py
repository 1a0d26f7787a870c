"""Run the benchmarks in their quick forms and write what they found into docs/benchmarks.md.

    python tests/benchmarks/all.py [--only peers tuning_peers] [--others path/to/python] [--args peers "--rounds 1"]

A section of the page is what one script printed, with the command, the machine and the day. ``--only`` renews the
sections of these scripts and leaves the others as they stand.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import re
import shlex
import subprocess
import sys
from typing import Any

from figures import FIGURE, ROOT, machine

PAGE = ROOT / "docs" / "benchmarks.md"
HEAD = """# Benchmarks

Made by `make bench`: the scripts in `tests/benchmarks`, in quick forms. Ratios are taken within one run, ours and
others in turn. Network weights are random where only speed is measured. A bar is what the
figure has to reach (≥) or to stay under (≤); a missed one is marked. The load tells how busy the machine was.
"""
QUICK = {  # in the order of the page; what needs the data beside the repository says so itself
    "peers": "--side 64 224 --rounds 3 --few 256",
    "tuning_peers": "--side 224 --images 64 --rounds 1",
    "frozen": "resnet50 resnet18 densenet121",
    "tuning": "--batch 8 --rounds 3",
    "sliding": "--size 128 --rounds 2",
    "reading": "2",
    "label_efficiency": "--data pneumonia --n 50 100 --draws 2",
    "transfer": "--seeds 2",
    "embedded": "--draws 4",
    "enough": "--full 200 --seeds 4",
    "coverage": "--simulations 100 --resamples 200",
    "audits": "--cohorts 3 --shuffles 2",
    "pacs": "",
}


def run(name: str, words: str, others: str) -> list[str]:
    """The section of one script, and its output on the way."""
    command = [sys.executable, str(ROOT / "tests" / "benchmarks" / f"{name}.py"), *shlex.split(words)]
    command += ["--others", others] if "peers" in name else []
    told = os.environ | {"PYTHONPATH": str(ROOT)}
    where = machine()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=told) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        lines = []
        for line in process.stdout:
            print(line, end="", flush=True)
            lines.append(line)
        trouble = process.stderr.read().strip()
    found = [json.loads(line.removeprefix(FIGURE)) for line in lines if line.startswith(FIGURE)]
    section = [f"`python tests/benchmarks/{name}.py {words}`, {where}, {datetime.date.today()}", ""]
    if process.returncode:
        last = (trouble.splitlines() or ["no word"])[-1]
        section += [f"It did not finish: {last.replace(str(ROOT), '.')}", ""]
    return section + (table(found) if found else [])


def table(found: list[dict[str, Any]]) -> list[str]:
    """Figures as a table."""
    rows = ["| what | figure | bar | reached | how |", "|---|---:|---:|---|---|"]
    for f in found:
        least, most, value = f["least"], f["most"], f["value"]
        bar = f"≥ {least:g}" if least is not None else f"≤ {most:g}" if most is not None else ""
        held = value >= least if least is not None else most is None or value <= most
        rows.append(
            f"| {f['what']} | {value:.3g} | {bar} | {('yes' if held else '**no**') if bar else ''} | {f['note']} |"
        )
    return [*rows, ""]


def read() -> dict[str, list[str]]:
    """The sections of the page as it stands."""
    if not PAGE.is_file():
        return {}
    parts = re.split(r"^## (\w+)\n\n", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {name: [*body.rstrip("\n").split("\n"), ""] for name, body in zip(parts[1::2], parts[2::2], strict=True)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", nargs="+", choices=list(QUICK), default=list(QUICK))
    parser.add_argument("--others", default=sys.executable, help="the Python in which other packages are installed")
    parser.add_argument("--args", nargs=2, action="append", default=[], metavar=("SCRIPT", "ARGUMENTS"))
    asked = parser.parse_args()
    words = QUICK | dict(asked.args)
    for name in asked.only:
        print(f"== {name} {words[name]}", flush=True)
        sections = read() | {name: run(name, words[name], asked.others)}
        body = "\n".join("\n".join([f"## {k}", "", *sections[k]]) for k in QUICK if k in sections)
        PAGE.write_text(f"{HEAD}\n{body}".rstrip("\n") + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
