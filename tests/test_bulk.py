"""Bulk prediction: each study once, whoever is killed, and the numbers of a single process."""

import csv
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Picture
from small_cohorts import blobs

from medtransfer import Prepare, Recipe, fit, load_model, split_by_patient
from medtransfer.bulk import predict_shared, read_list
from medtransfer.errors import ConfigError, RunError
from medtransfer.export import export
from medtransfer.pipeline import predict_files

PORTIONS = """
import sys, time
from pathlib import Path
from medtransfer.claims import divide

def compute(number):
    with open(sys.argv[1] + "/computed", "a") as file:
        file.write(f"{number}\\n")
    time.sleep(0.02)
    return f"{number},{number ** 2}\\n"

divide(Path(sys.argv[1]), int(sys.argv[2]), compute, lease_s=2)
"""
STUDIES = """
import sys
from medtransfer.bulk import predict_shared, read_list
predict_shared(sys.argv[1], read_list(sys.argv[2]), sys.argv[3], portion=int(sys.argv[4]), lease_s=5, progress=False)
"""


def python(code, *arguments):
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[1]), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, "-c", code, *map(str, arguments)], env=environment)


def kill_until_done(begin, folder, portions, rng, kills):
    """Two processes at a time; now and then one of them is killed and begun again."""
    running, killed = [begin(), begin()], 0
    deadline = time.monotonic() + 600
    while any(p.poll() is None for p in running) and time.monotonic() < deadline:
        done = len(list((folder / "parts").glob("[0-9]*.csv"))) if (folder / "parts").is_dir() else 0
        if killed < kills and done >= (killed + 1) * portions / (kills + 2):
            victim = rng.randrange(2)
            if running[victim].poll() is None:
                running[victim].send_signal(signal.SIGKILL)
                running[victim].wait()
                running[victim] = begin()
                killed += 1
        time.sleep(rng.random() * 0.03)
    assert [p.wait(60) for p in running] == [0, 0]
    return killed


@pytest.mark.parametrize("seed", [0, 1])
def test_portions_survive_kills_and_each_stands_there_once(tmp_path, seed):
    portions = 60
    killed = kill_until_done(lambda: python(PORTIONS, tmp_path, portions), tmp_path, portions, random.Random(seed), 4)
    assert killed
    parts = sorted((tmp_path / "parts").glob("[!.]*"))  # a kill may leave a hidden draft
    assert [p.read_text() for p in parts] == [f"{n},{n**2}\n" for n in range(portions)]
    assert not list((tmp_path / "claims").glob("[!.]*"))
    computed = (tmp_path / "computed").read_text().splitlines()
    assert portions <= len(computed) <= portions + killed  # a kill costs the one portion that was under way


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A small run of two folds, and pictures that it has not seen."""
    base = tmp_path_factory.mktemp("bulk")
    cohort = blobs(40, side=36)
    fit(load_model("random/resnet18", until="layer1"), cohort, split_by_patient(cohort, folds=2, val=0.2),
        Prepare(size=32, scale="range"), Recipe(method="logistic"), out=base / "run", progress=False)  # fmt: skip
    (base / "new").mkdir()
    for case in blobs(24, side=36, seed=5):
        Picture.fromarray(case.image).save(base / "new" / f"{case.case_id}.png")
    return base / "run", sorted((base / "new").iterdir())


def table(path):
    with open(path, newline="") as file:
        return list(csv.reader(file))


def test_the_numbers_are_those_of_one_command_and_a_second_call_computes_nothing(run, tmp_path):
    folder, images = run
    done = predict_shared(folder, images, tmp_path / "q", portion=5, progress=False)
    assert (done.studies, done.problems, done.own) == (24, 0, 24)
    plain = [line.split(",") for line in predict_files(folder, list(map(str, images)), progress=False).splitlines()]
    found = table(done.table)
    assert found[0] == [*plain[0], "problem"]
    for a, b in zip(found[1:], plain[1:], strict=True):
        assert a[:2] == b[:2]
        assert np.allclose(np.array(a[2:4], float), np.array(b[2:4], float), atol=2e-6)
        assert a[4] == b[4]
    before = done.table.read_bytes()
    assert predict_shared(folder, [], tmp_path / "q", progress=False).own == 0
    assert done.table.read_bytes() == before
    one_by_one = predict_shared(folder, images, tmp_path / "r", portion=5, workers=0, progress=False)
    assert one_by_one.table.read_bytes() == before
    text = "".join(p.read_text() for p in (tmp_path / "q").rglob("*") if p.is_file() and p.parent.name != "private")
    assert not any(p.name in text or str(p.parent) in text for p in images)
    assert (tmp_path / "q" / "private" / "studies.csv").stat().st_mode & 0o077 == 0


def test_a_study_that_cannot_be_predicted_says_why_and_holds_up_no_other(run, tmp_path):
    folder, images = run
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nshort")
    Picture.new("RGB", (36, 36), "red").save(tmp_path / "colour.png")
    studies = [images[0], tmp_path / "broken.png", images[1], tmp_path / "colour.png", images[2]]
    done = predict_shared(folder, studies, tmp_path / "q", progress=False)
    rows = table(done.table)[1:]
    assert (done.studies, done.problems) == (5, 2)
    assert [bool(r[-1]) for r in rows] == [False, True, False, True, False]
    assert "channels" in rows[3][-1]
    assert rows[1][2:4] == ["", ""]
    assert "broken" not in done.table.read_text()


def test_other_work_is_refused(run, tmp_path):
    folder, images = run
    predict_shared(folder, images[:3], tmp_path / "q", progress=False)
    with pytest.raises(RunError, match="other work"):
        predict_shared(folder, images[:4], tmp_path / "q", progress=False)
    with pytest.raises(ConfigError, match=r"studies 1 and 3.*twice"):
        predict_shared(folder, [images[0], images[1], images[0]], tmp_path / "r", progress=False)
    with pytest.raises(ConfigError, match=r"study 2 of 2.*does not exist"):
        predict_shared(folder, [images[0], tmp_path / "no.png"], tmp_path / "r", progress=False)
    with pytest.raises(ConfigError, match="no study"):
        predict_shared(folder, [], tmp_path / "r", progress=False)
    known = json.loads((tmp_path / "q" / "work.json").read_text())
    known["asked"]["key"] = "case-ffff"
    (tmp_path / "q" / "work.json").write_text(json.dumps(known))
    with pytest.raises(RunError, match="MEDTRANSFER_HOME"):
        predict_shared(folder, [], tmp_path / "q", progress=False)


def test_an_exported_model_is_shared_as_the_run_is(run, tmp_path):
    folder, images = run
    program = export(folder, tmp_path / "model.pt2", to="torch")
    a, b = (predict_shared(m, images, tmp_path / str(i), progress=False) for i, m in enumerate((folder, program)))
    assert [r[:2] + r[4:] for r in table(a.table)] == [r[:2] + r[4:] for r in table(b.table)]
    numbers = [np.array([r[2:4] for r in table(t.table)[1:]], float) for t in (a, b)]
    assert np.allclose(*numbers, atol=2e-6)
    with pytest.raises(RunError, match="other work"):
        predict_shared(folder, images, tmp_path / "1", progress=False)


def test_a_list_starts_from_its_own_folder(tmp_path):
    (tmp_path / "list.txt").write_text("\ufeff# new ones\na.png\n\nsub/b c.nii.gz\n", encoding="utf-8")
    assert read_list(tmp_path / "list.txt") == [tmp_path / "a.png", tmp_path / "sub" / "b c.nii.gz"]
    with pytest.raises(ConfigError, match="cannot be read"):
        read_list(tmp_path / "no.txt")


@pytest.mark.slow
def test_two_thousand_studies_by_two_processes_that_are_killed(run, tmp_path):
    folder, _ = run
    (tmp_path / "new").mkdir()
    rng = np.random.default_rng(3)
    for i in range(2000):
        Picture.fromarray(rng.integers(0, 255, (16, 16)).astype(np.uint8)).save(tmp_path / "new" / f"{i:04d}.png")
    (tmp_path / "list.txt").write_text("".join(f"new/{i:04d}.png\n" for i in range(2000)))
    together = tmp_path / "q"

    def begin():
        return python(STUDIES, folder, tmp_path / "list.txt", together, 16)

    killed = kill_until_done(begin, together, 125, random.Random(0), 5)
    assert killed == 5
    rows = table(together / "predictions.csv")
    assert [r[0] for r in rows[1:]] == [str(i) for i in range(1, 2001)]
    assert len({r[1] for r in rows[1:]}) == 2000
    assert not any(r[-1] for r in rows[1:])
    alone = predict_shared(folder, read_list(tmp_path / "list.txt"), tmp_path / "alone", progress=False)
    assert alone.table.read_bytes() == (together / "predictions.csv").read_bytes()


def test_the_command(run, tmp_path, monkeypatch):
    from click.testing import CliRunner

    from medtransfer.cli import cli

    folder, images = run
    (tmp_path / "list.txt").write_text("".join(f"{p}\n" for p in images))
    (tmp_path / "bad.png").write_bytes(b"no picture")
    call = CliRunner()
    asked = ["predict", str(folder), "--list", str(tmp_path / "list.txt")]
    told = call.invoke(cli, [*asked, "--dry-run"])
    assert told.exit_code == 0, told.output
    assert "measured on 6 cases" in told.output
    assert not (tmp_path / "q").exists()
    done = call.invoke(cli, [*asked, str(tmp_path / "bad.png"), "--queue", str(tmp_path / "q"), "-q"])
    assert done.exit_code == 0, done.output
    assert "25 studies, 1 of them with a problem" in done.output
    again = call.invoke(cli, ["predict", str(folder), "--queue", str(tmp_path / "q"), "-q"])
    assert "0 computed by this process" in again.output
    assert call.invoke(cli, ["predict", str(folder)]).exit_code == 2
