"""Runs the code that the pages show, in page order and in an empty folder, and keeps what it printed.

A page's blocks share one folder and one set of Python names, as a reader's session would. Python blocks are
executed, console blocks run line by line, YAML blocks are read as configs. An HTML comment right above a block
marks what is special about it:

    <!-- not run: why -->   shown only; counted, with its reason
    <!-- quiet -->          run, but what it prints is not shown
    <!-- exit 3 -->         the last command has to end with this code
    <!-- needs: onnx unzip -->   not run where one of these packages or programs is not installed

and one anywhere in the page, ``<!-- here: phantom archive -->``, names what its folder holds and what runs beside it
(see ``here.py``). Where that cannot be had, blocks that name it among their needs are not run, or all if none does. A
YAML block whose first line is ``# NAME.yaml`` becomes that file; any other block is read as a part of a config. ``cd``
and ``export`` last until the end of the page.
"""

from __future__ import annotations

import ast
import contextlib
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

FENCE = re.compile(r"^(?P<fence>`{3,})(?P<language>[^`\n]*)\n(?P<code>.*?)^(?P=fence)[ \t]*$", re.M | re.S)
MARK = re.compile(r"<!--\s*(not run: .+?|needs: .+?|quiet|exit \d+)\s*-->\s*\Z")
HERE = re.compile(r"<!--\s*here: ([\w ]+?)\s*-->")
CODE = {"python", "py", "sh", "bash", "console", "shell", "yaml", "yml"}
MOST_LINES = 40


@dataclass
class Block:
    """A fenced block of a page."""

    page: str
    line: int
    language: str
    code: str
    marks: list[str] = field(default_factory=list)
    here: Sequence[str] = ()

    @property
    def reason(self) -> str:
        """Why it is not run, or nothing."""
        said = next((m.removeprefix("not run: ") for m in self.marks if m.startswith("not run: ")), "")
        return said or absent([name for name in self.needs if name not in self.here])

    @property
    def needs(self) -> list[str]:
        """Packages and programs, and those things of the page's folder that can be lacking."""
        return [name for m in self.marks if m.startswith("needs: ") for name in m.split()[1:]]

    @property
    def exit_code(self) -> int:
        return next((int(m.split()[1]) for m in self.marks if m.startswith("exit")), 0)


@dataclass
class Outcome:
    """What came of a block: ``ran``, ``checked`` (a config that was read), ``not run`` or ``failed``."""

    page: str
    line: int
    language: str
    status: str
    seconds: float = 0.0
    output: str = ""
    reason: str = ""
    quiet: bool = False

    def to_record(self) -> dict[str, Any]:
        return asdict(self)


def blocks_of(text: str, page: str) -> list[Block]:
    """All code blocks of a page, in order.

    >>> [b.reason for b in blocks_of("<!-- not run: needs a cluster -->\\n```sh\\nsbatch job\\n```\\n", "a.md")]
    ['needs a cluster']
    """
    found = []
    here = [word for names in HERE.findall(text) for word in names.split()]
    for fence in FENCE.finditer(text):
        language = fence["language"].strip()
        if language not in CODE:
            continue
        marks, above = list[str](), text[: fence.start()].rstrip("\n")
        while (mark := MARK.search(above)) and above.count("\n", mark.start()) == 0:
            marks.append(mark[1])
            above = above[: mark.start()].rstrip("\n")
        line = text.count("\n", 0, fence.start()) + 1
        found.append(Block(page, line, language, fence["code"], marks, here))
    return found


def absent(names: Sequence[str]) -> str:
    """Which of some packages or programs are not installed, in words; nothing where all are.

    >>> absent(["json", "ls"]), absent(["json", "no_such_thing"])
    ('', 'no_such_thing is not installed')
    """
    gone = [n for n in names if find_spec(n) is None and shutil.which(n) is None]
    return f"{', '.join(gone)} {'is' if len(gone) == 1 else 'are'} not installed" if gone else ""


def run_page(path: Path, name: str, folder: Path | None = None) -> list[Outcome]:
    """Run a page's blocks; after a failure the rest of the page is not tried."""
    from here import prepare

    text = path.read_text(encoding="utf-8")
    outcomes: list[Outcome] = []
    with contextlib.ExitStack() as stack:
        place = folder or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="page-")))
        stack.enter_context(contextlib.chdir(place))
        stack.enter_context(_own_folders(place))
        names: dict[str, Any] = {"__name__": "__page__"}
        blocks = blocks_of(text, name)
        lacking = {}
        if any(not b.reason for b in blocks):
            lacking = prepare(blocks[0].here, place, stack)
        for lost, why in lacking.items():
            for block in [b for b in blocks if lost in b.needs] or blocks:
                block.marks.append(f"not run: {why}")
        for block in blocks:
            outcomes.append(_run(block, names, place))
            if outcomes[-1].status == "failed":
                break
    return outcomes


@contextlib.contextmanager
def _own_folders(place: Path) -> Any:
    """Key, store and cache of their own, a ``medtransfer`` command for the shell, and no browser."""
    home = place / ".home"
    home.mkdir(exist_ok=True)
    tool = home / "medtransfer"
    tool.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m medtransfer "$@"\n')
    tool.chmod(0o755)
    new = {"MEDTRANSFER_HOME": str(home), "MEDTRANSFER_CACHE": str(home / "cache"), "TORCH_HOME": str(home / "torch"),
           "PATH": os.pathsep.join([str(home), str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
           "COLUMNS": "118", "BROWSER": "true"}  # fmt: skip
    old = dict(os.environ)
    os.environ.update(new)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(old)


def _run(block: Block, names: dict[str, Any], place: Path) -> Outcome:
    done = Outcome(block.page, block.line, block.language, "ran", reason=block.reason, quiet="quiet" in block.marks)
    if block.reason:
        done.status = "not run"
        if block.language in ("yaml", "yml"):
            check_yaml(block.code, place)
        return done
    started, out, err = time.monotonic(), io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            if block.language in ("python", "py"):
                execute(block.code, names, f"{block.page}:{block.line}")
            elif block.language in ("yaml", "yml"):
                done.status = "checked"
                check_yaml(block.code, place)
            else:
                console(block.code, block.exit_code, out, err)
    except (Exception, SystemExit) as error:  # whatever the page's code raises is the page's failure
        done.status = "failed"
        err.write("".join(traceback.format_exception(error)[-4:]))
    done.seconds = round(time.monotonic() - started, 1)
    text = out.getvalue() + (err.getvalue() if done.status == "failed" or block.exit_code else "")
    lines = text.replace(str(place), ".").rstrip().splitlines()
    keep = lines if done.status == "failed" or len(lines) <= MOST_LINES else [*lines[:MOST_LINES], "..."]
    done.output = "\n".join(line[:160].rstrip() for line in keep)
    return done


def execute(code: str, names: dict[str, Any], where: str) -> None:
    """As at Python's prompt: the value of a last line that is an expression is printed."""
    tree = ast.parse(code, where)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, where, "exec"), names)
    if last is not None:
        value = eval(compile(ast.Expression(last.value), where, "eval"), names)
        if value is not None:
            print(value if type(value).__module__.startswith(("medtransfer", "pathlib")) else repr(value))


def console(code: str, exit_code: int, out: io.StringIO, err: io.StringIO) -> None:
    """``medtransfer`` lines in this process, which has torch loaded; anything else in a shell."""
    lines = re.sub(r"\\\n\s*", "", code).splitlines()
    commands = [line.removeprefix("$ ").split("  #")[0].strip() for line in lines]
    commands = [c for c in commands if c and not c.startswith("#")]
    for i, command in enumerate(commands):
        wanted = exit_code if i == len(commands) - 1 else 0
        if re.fullmatch(r"medtransfer\s[^|&;<>$`*]*", command):
            code_found = _medtransfer(shlex.split(command))
        elif re.fullmatch(r"(export|cd)\s[^&;]*|\w+=(\$\(.*\)|[^\s&;]*)", command):
            code_found = _lasting(command)
        else:
            done = subprocess.run(["bash", "-euc", command], capture_output=True, text=True, check=False)
            out.write(done.stdout)
            err.write(done.stderr)
            code_found = done.returncode
        if code_found != wanted:
            raise RuntimeError(f"'{command}' ended with {code_found} instead of {wanted}")


def _lasting(command: str) -> int:
    """What ``cd``, ``export`` or an assignment changes, for the commands after it."""
    done = subprocess.run(["bash", "-eauc", f"{command}\npwd && env -0"], capture_output=True, text=True, check=False)
    if done.returncode == 0:
        where, _, found = done.stdout.partition("\n")
        os.chdir(where)
        os.environ.update(pair.split("=", 1) for pair in found.split("\0") if "=" in pair)
    return done.returncode


def _medtransfer(words: list[str]) -> int:
    from medtransfer.cli import cli

    before, sys.argv = sys.argv, words
    try:
        cli.main(args=words[1:], prog_name="medtransfer")
    except SystemExit as end:
        return int(end.code or 0)
    finally:
        sys.argv = before
    return 0


def check_yaml(code: str, place: Path) -> None:
    """Read a block as a config; a part of one is completed by the least that a config needs."""
    from medtransfer.config import Experiment, parse

    first = code.splitlines()[0]
    if (named := re.match(r"# (?:medtransfer \w+ )?([\w.-]+\.ya?ml)\b", first)) is not None:
        (place / named[1]).write_text(code, encoding="utf-8")
    values, _ = parse(code, "block")
    if set(values) == {"cohort"} or "cohort" not in values or "out" not in values:
        masks = {"task": "segmentation"} if "plan" in values or "structures" in values else {}
        values = (
            masks | {"cohort": {"csv": "cohort.csv"}, "model": {"weights": "embedded/compact2d"}, "out": "x"} | values
        )
    from ruamel.yaml import YAML

    text = io.StringIO()
    YAML(typ="safe", pure=True).dump(values, text)
    Experiment.from_text(text.getvalue(), name="block")
