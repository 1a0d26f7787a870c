"""Two processes train one model and end where one process ends; kills at any moment change nothing."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
PROGRAM = """
import sys
from small_cohorts import blobs
from medtransfer import Augment, Prepare, Recipe, fit, load_model, split_by_patient
cohort = blobs(60)
recipe = Recipe(epochs=3, freeze_epochs=1, unfreeze_from="layer1", batch_size=8, lr=3e-3, ema=0.5, average=2)
model, prepare = load_model("random/resnet18", until="layer1"), Prepare(size=40, scale="range")
fit(model, cohort, split_by_patient(cohort), prepare, recipe, out=sys.argv[1], devices=int(sys.argv[2]),
    accelerator="cpu", augment=Augment(noise_std=0.05), progress=False)
"""


def environment():
    return os.environ | {"PYTHONPATH": f"{HERE.parent}{os.pathsep}{HERE}", "OMP_NUM_THREADS": "1"}


@pytest.mark.slow
def test_two_processes_give_the_metrics_of_one(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    subprocess.run([sys.executable, program, tmp_path / "one", "1"], env=environment(), check=True)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    subprocess.run([*launch, program, tmp_path / "two", "2"], env=environment(), check=True)
    one, two = (json.loads((tmp_path / name / "record.json").read_text())["history"] for name in ("one", "two"))
    for a, b in zip(one, two, strict=True):
        assert a["train_loss"] == pytest.approx(b["train_loss"], abs=1e-4)
        assert a["val_loss"] == pytest.approx(b["val_loss"], abs=1e-4)
        assert a["val_auroc"] == pytest.approx(b["val_auroc"], abs=1e-6)


@pytest.mark.slow
def test_kills_at_random_moments_leave_byte_identical_ends():
    done = subprocess.run([sys.executable, HERE / "stress" / "kills.py", "--runs", "4"], env=environment(),
                          capture_output=True, text=True, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "0 runs ended otherwise" in done.stdout


@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="this system has no SIGUSR1")
@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1"])
def test_signals_are_heeded_between_steps(name):
    from medtransfer.training import stopping

    with stopping() as stop:
        stop.listening = True
        os.kill(os.getpid(), getattr(signal, name))
        assert stop.is_set()


def test_threads_are_those_that_the_container_gives(tmp_path, monkeypatch):
    import torch

    from medtransfer.team import cores, threads

    quota = tmp_path / "cpu.max"
    quota.write_text("max 100000\n")
    whole = cores(quota)
    assert whole == cores(tmp_path / "absent") >= 1
    quota.write_text("150000 100000\n")
    assert cores(quota) == min(whole, 2)  # a core and a half keep two threads busy
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before = torch.get_num_threads()
    with threads(10_000):
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before
