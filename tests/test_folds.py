"""Folds trained by processes of their own end in the bytes of the run that one process trains."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Picture
from small_cohorts import blobs

from medtransfer import Prepare, Recipe, fit, load_model, split_by_patient
from medtransfer.claims import Claims
from medtransfer.errors import ConfigError, RunError

CONFIG = """\
cohort: {csv: cohort.csv, root: images}
split: {folds: 3, val: 0.2, seed: 0}
prepare: {size: 32, scale: range}
augment: {noise_std: 0.05}
model: {weights: random/resnet18, until: layer1}
recipe: {epochs: 3, freeze_epochs: 1, unfreeze_from: layer1, batch_size: 8, start: logistic}
evaluate: {bootstrap: 200, controls: [histogram], explain: false, robustness: false, learning_curve: false,
           shuffled_labels: false}
out: run
"""


@pytest.fixture
def study(tmp_path):
    """A folder with images, a table and a config of three folds."""
    (tmp_path / "images").mkdir()
    rows = ["case_id,patient_id,image,label"]
    for case in blobs(60, side=36):
        Picture.fromarray(case.image).save(tmp_path / "images" / f"{case.case_id}.png")
        rows.append(f"{case.case_id},{case.patient_id},{case.case_id}.png,{'yes' if case.label else 'no'}")
    (tmp_path / "cohort.csv").write_text("\n".join(rows) + "\n")
    (tmp_path / "config.yaml").write_text(CONFIG)
    return tmp_path


def start(study, *arguments):
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[1]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "medtransfer", "train", "config.yaml", "-q", *arguments]
    return subprocess.Popen(command, cwd=study, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                            text=True)  # fmt: skip


def ended(process):
    out, error = process.communicate(timeout=300)
    return process.returncode, out, error


def contents(run):
    names = ["model.safetensors", "history.json", "last.safetensors"]
    found = {f"fold-{k}/{n}": (run / f"fold-{k}" / n).read_bytes() for k in range(3) for n in names}
    return found | {n: (run / n).read_bytes() for n in ("metrics.json", "split.json", "run.json")}


@pytest.mark.slow
def test_three_processes_and_a_last_call_give_the_bytes_of_one(study):
    whole = start(study, "--set", "out=whole")
    assert ended(whole)[0] == 0
    together = [start(study, "--fold", str(k), "--json") for k in (0, 1, 2)]  # the same folder begun at once
    for k, process in enumerate(together):
        code, out, error = ended(process)
        assert code == 0, error
        assert json.loads(out)["fold"] == k
    assert json.loads((study / "run" / "run.json").read_text())["status"] == "running"
    assert not (study / "run" / "report.html").exists()
    models = {p: p.stat().st_mtime_ns for p in (study / "run").glob("fold-*/*")}
    code, _, error = ended(start(study))
    assert code == 0, error
    assert {p: p.stat().st_mtime_ns for p in (study / "run").glob("fold-*/*")} == models  # nothing was trained again
    assert contents(study / "run") == contents(study / "whole")
    assert not list((study / "run").rglob("claim"))


def arguments():
    cohort = blobs(40)
    return load_model("random/resnet18", until="layer1"), cohort, split_by_patient(cohort, folds=2, val=0.2), Prepare(
        size=32, scale="range"
    ), Recipe(method="logistic")  # fmt: skip


def test_folds_of_a_linear_model_one_by_one_and_at_once(tmp_path):
    settings = arguments()
    first = fit(*settings, out=tmp_path / "apart", fold=1, progress=False)
    assert np.isfinite(first.predict(settings[2].folds[1].test).probability).all()  # a trained fold can speak
    with pytest.raises(RunError):
        first.predict(settings[2].folds[0].test)
    fit(*settings, out=tmp_path / "apart", fold=0, progress=False)
    assert json.loads((tmp_path / "apart" / "run.json").read_text())["status"] == "running"
    fit(*settings, out=tmp_path / "apart", progress=False)
    fit(*settings, out=tmp_path / "whole", progress=False)
    for name in ("fold-0/model.safetensors", "fold-1/model.safetensors", "fold-0/held_out.json", "run.json"):
        assert (tmp_path / "apart" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_fold_that_another_process_trains_is_refused_by_name(tmp_path):
    settings = arguments()
    with Claims(tmp_path / "run" / "fold-1") as claims:
        assert claims.take("claim")
        with pytest.raises(RunError, match=r"run/fold-1.*another process"):
            fit(*settings, out=tmp_path / "run", fold=1, progress=False)
        fit(*settings, out=tmp_path / "run", fold=0, progress=False)
    with pytest.raises(ConfigError, match=r"--fold.*no such fold.*0 to 1"):
        fit(*settings, out=tmp_path / "run", fold=2, progress=False)


@pytest.mark.slow
def test_of_processes_that_train_together_one_evaluates(study):
    """As examples/torchrun_multinode.sbatch does it, on one machine."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "medtransfer"]
    settings = ["--set", "devices=2", "--set", "accelerator=cpu", "--set", "split={val: 0.2, test: 0.25}", "--json"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[1]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*launch, "train", "config.yaml", "-q", *settings], cwd=study, env=environment,
                          capture_output=True, text=True, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count('"metrics"') == 1
    assert (study / "run" / "report.html").is_file()
    assert json.loads((study / "run" / "run.json").read_text())["status"] == "complete"
