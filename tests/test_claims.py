"""Claims: one holder at a time, gone holders are followed, living ones are not."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from medtransfer.claims import Claims, alone, create
from medtransfer.errors import RunError

HOLD = """
import sys, time
from pathlib import Path
from medtransfer.claims import Claims
with Claims(Path(sys.argv[1])) as claims:
    print(claims.take("a"), flush=True)
    time.sleep(60)
"""
RACE = """
import sys
from pathlib import Path
from medtransfer.claims import Claims
with Claims(Path(sys.argv[1])) as claims:
    print(*(i for i in range(200) if claims.take(f"{i}")))
    sys.stdout.flush()
    sys.stdin.read()
"""


def python(code, *arguments):
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[1])}
    return subprocess.Popen([sys.executable, "-c", code, *map(str, arguments)], env=environment,
                            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)  # fmt: skip


def elsewhere(folder, name="a"):
    """A claim as a process on another machine leaves it."""
    (folder / name).write_text(json.dumps({"machine": "another", "pid": 1, "born": "1", "token": "t"}))


def test_a_file_is_made_once_and_whole(tmp_path):
    assert create(tmp_path / "x", "one")
    assert not create(tmp_path / "x", "two")
    assert (tmp_path / "x").read_text() == "one"
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_file_systems_without_hard_links_do_too(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    assert create(tmp_path / "x", "one")
    assert not create(tmp_path / "x", "two")


def test_three_processes_share_two_hundred_pieces_without_a_piece_twice(tmp_path):
    racing = [python(RACE, tmp_path) for _ in range(3)]
    taken = [[int(i) for i in p.stdout.readline().split()] for p in racing]
    for process in racing:
        process.communicate()
    assert sorted(i for part in taken for i in part) == list(range(200))
    assert not list(tmp_path.iterdir())  # let go at the end


def test_a_living_holder_is_left_alone_and_a_killed_one_followed_at_once(tmp_path):
    holder = python(HOLD, tmp_path)
    assert holder.stdout.readline() == "True\n"
    with Claims(tmp_path) as claims:
        assert not claims.take("a")
        assert claims.living("a")
        with pytest.raises(RunError, match="another process"), alone(tmp_path, "a"):
            pass
        holder.kill()
        holder.wait()
        assert claims.take("a")
    assert not list(tmp_path.iterdir())


def test_a_holder_elsewhere_is_followed_after_its_lease_and_only_then(tmp_path):
    elsewhere(tmp_path)
    with Claims(tmp_path, lease_s=0.3) as claims:
        began = time.monotonic()
        for _ in range(4):  # touched, as by its holder
            assert not claims.take("a")
            os.utime(tmp_path / "a")
            time.sleep(0.1)
        assert not claims.take("a")
        assert claims.living("a") or time.monotonic() - began > 0.3
        while not claims.take("a"):
            time.sleep(0.02)
        assert time.monotonic() - began > 0.6
        text = (tmp_path / "a").read_text()
        touched = (tmp_path / "a").stat().st_mtime_ns
        time.sleep(0.2)
        assert (tmp_path / "a").stat().st_mtime_ns > touched  # and kept alive from now on
        assert (tmp_path / "a").read_text() == text


def test_what_was_taken_over_is_not_let_go_by_its_first_holder(tmp_path):
    with Claims(tmp_path) as claims:
        assert claims.take("a")
        elsewhere(tmp_path)
    assert (tmp_path / "a").is_file()
