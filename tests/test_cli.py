"""The command line from end to end: what works, what each mistake says, and the code it exits with."""

import json
import re
import signal
import subprocess
import sys
import time
from contextlib import chdir
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image as Picture
from safetensors.torch import save_file
from small_cohorts import blobs

from medtransfer.cli import cli

CONFIG = """\
cohort: {csv: cohort.csv, root: images}
split: {val: 0.2, test: 0.25, seed: 0}
prepare: {size: 32, scale: range}
model: {weights: random/resnet18, until: layer1}
recipe: {method: logistic}
evaluate: {bootstrap: 200, controls: [histogram], explain: false, robustness: false, learning_curve: false,
           shuffled_labels: false}
out: run
"""


def call(*arguments, cwd, **options):
    command = [sys.executable, "-m", "medtransfer", *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=240, check=False, **options)


def ask(*arguments, cwd):
    """As ``call``, in this process, which has loaded what commands need."""
    with chdir(cwd):
        done = CliRunner().invoke(cli, [str(a) for a in arguments])
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    return SimpleNamespace(returncode=done.exit_code, stdout=done.stdout, stderr=done.stderr)


@pytest.fixture
def study(tmp_path, monkeypatch):
    """A folder with images, a table and a config."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).resolve().parents[1]))
    (tmp_path / "images").mkdir()
    rows = ["case_id,patient_id,image,label,sex"]
    for case in blobs(80, side=36):
        Picture.fromarray(case.image).save(tmp_path / "images" / f"{case.case_id}.png")
        rows.append(f"{case.case_id},{case.patient_id},{case.case_id}.png,{'yes' if case.label else 'no'},F")
    (tmp_path / "cohort.csv").write_text("\n".join(rows) + "\n")
    (tmp_path / "config.yaml").write_text(CONFIG)
    return tmp_path


def test_train_evaluates_reports_and_says_the_second_time_that_it_is_complete(study):
    first = call("train", "config.yaml", "--json", cwd=study)
    assert first.returncode == 0, first.stderr
    result = json.loads(first.stdout)
    assert (study / "run" / "report.html").is_file()
    assert 0.5 < result["metrics"]["estimates"]["auroc"]["value"] <= 1
    metrics = (study / "run" / "metrics.json").read_bytes()
    models = {p: p.stat().st_mtime_ns for p in (study / "run").glob("fold-*/*")}
    again = call("train", "config.yaml", cwd=study)
    assert again.returncode == 0, again.stderr
    assert {p: p.stat().st_mtime_ns for p in (study / "run").glob("fold-*/*")} == models
    assert (study / "run" / "metrics.json").read_bytes() == metrics
    other = ask("train", "config.yaml", "--set", "out=other", cwd=study)
    assert other.returncode == 0, other.stderr
    assert (study / "other" / "metrics.json").read_bytes() == metrics  # the same bytes from the same config and seed
    for command in (["evaluate", "run", "--set", "evaluate.threshold=sensitivity>=0.9"], ["report", "run"]):
        assert ask(*command, cwd=study).returncode == 0
    assert ask("evaluate", "run", "--at-least", "1.01", cwd=study).returncode == 5
    compared = ask("compare", "run", "other", "--json", cwd=study)
    assert compared.returncode == 0, compared.stderr
    predicted = ask("predict", "run", "images/c0.png", "images/c2.png", cwd=study)
    assert predicted.returncode == 0, predicted.stderr
    rows = [line.split(",") for line in predicted.stdout.splitlines()]
    assert rows[0] == ["row", "case", "p:no", "p:yes", "called"]
    assert len(rows) == 3
    limit = json.loads((study / "run" / "metrics.json").read_text())["threshold"]["by_fold"]["0"]
    assert all(r[-1] == ("yes" if float(r[3]) >= limit else "no") for r in rows[1:])
    assert not re.search(r"\bc[02]\b|images", predicted.stdout)  # as a word: a pseudonym may hold any two digits
    exported = ask("export", "run", "--out", "shared-model", cwd=study)
    assert exported.returncode == 0, exported.stderr
    assert json.loads((study / "shared-model" / "card.json").read_text())["names"] == ["no", "yes"]


def test_dry_run_checks_everything_and_leaves_nothing(study):
    done = ask("train", "config.yaml", "--dry-run", "--json", cwd=study)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["parts"]["train"] > 0
    assert not (study / "run").exists()


def edited(study, old, new, name="cohort.csv"):
    text = (study / name).read_text()
    assert old in text
    (study / name).write_text(text.replace(old, new, 1))


@pytest.mark.parametrize(
    ("spoil", "code", "says"),
    [
        (lambda s: (s / "images" / "c3.png").unlink(), 3, "c3.png|line 5"),
        (lambda s: edited(s, "c4.png,no", "c4.png,maybe"), 3, "maybe"),
        (lambda s: edited(s, "recipe:", "recipee:", "config.yaml"), 2, "line 5.*did you mean 'recipe'"),
        (lambda s: edited(s, "method", "methd", "config.yaml"), 2, "line 5.*did you mean 'method'"),
        (lambda s: (s / "cohort.csv").unlink(), 3, "no such table"),
        (lambda s: (s / "images" / "c3.png").write_bytes(b"\x89PNG\r\n\x1a\nshort"), 3, "c3.png|case-"),
        (
            lambda s: edited(s, "random/resnet18", "imagenet/resnet18", "config.yaml"),
            4,
            "not on this machine.*weights fetch",
        ),
        (lambda s: edited(s, "out: run", "out: cohort.csv/run", "config.yaml"), 2, "cannot be made"),
        (lambda s: edited(s, "label", "diagnosis"), 3, "no column 'label'"),
        (lambda s: edited(s, "test: 0.25", "test: 0.99", "config.yaml"), (2, 3), "test|val"),
        (lambda s: edited(s, "patient_id", "pat"), 3, "patient"),
    ],
)
def test_every_mistake_ends_in_one_message_and_its_code(study, spoil, code, says):
    import re

    spoil(study)
    done = ask("train", "config.yaml", cwd=study)
    assert done.returncode in (code if isinstance(code, tuple) else (code,)), done.stderr
    assert re.search(says, done.stderr), done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) <= 3, done.stderr


def test_a_class_absent_from_a_part_and_a_patient_in_two_parts(study):
    lines = (study / "cohort.csv").read_text().splitlines()
    few = [lines[0], *[r for r in lines[1:] if ",no," in r], *[r for r in lines[1:] if ",yes," in r][:2]]
    (study / "few.csv").write_text("\n".join(few))
    done = ask("train", "config.yaml", "--set", "cohort.csv=few.csv", cwd=study)
    assert done.returncode == 3, done.stderr
    assert "yes" in done.stderr
    parts = [lines[0] + ",part", *[f"{r},{('train', 'val', 'test')[i % 3]}" for i, r in enumerate(lines[1:])]]
    (study / "parts.csv").write_text("\n".join(parts))
    changes = ["--set", "cohort.csv=parts.csv", "--set", "cohort.part=part", "--set", "split={official: true}"]
    done = ask("train", "config.yaml", *changes, cwd=study)
    assert done.returncode == 3, done.stderr
    assert "patient-" in done.stderr
    assert "LeakageError" in done.stderr


def test_foreign_weights_are_refused_with_their_own_code(study):
    save_file({"a.weight": __import__("torch").zeros(3)}, study / "w.safetensors")
    changes = ["--set", "model={weights: w.safetensors, arch: resnet18, mean: [0.5, 0.5, 0.5], std: [0.5, 0.5, 0.5]}"]
    done = ask("train", "config.yaml", *changes, cwd=study)
    assert done.returncode == 4, done.stderr
    assert "fit nowhere" in done.stderr
    done = ask("weights", "import", "w.safetensors", "--mean", "0.5", "--std", "0.5", cwd=study)
    assert done.returncode == 4, done.stderr
    assert ask("weights", "import", "w.safetensors", "--mean", "x", "--std", "0.5", cwd=study).returncode == 2


@pytest.mark.parametrize("number", [pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGTERM])
def test_a_signal_in_the_middle_of_training_loses_nothing(study, number):
    recipe = "recipe={method: finetune, epochs: 6, freeze_epochs: 1, batch_size: 4, patience: 50}"
    arguments = ["train", "config.yaml", "-q", "--set", recipe]
    command = [sys.executable, "-m", "medtransfer", *arguments]
    running = subprocess.Popen(command, cwd=study, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    for _ in range(1200):
        if (study / "run" / "fold-0" / "last.safetensors").is_file() or running.poll() is not None:
            break
        time.sleep(0.05)
    running.send_signal(number)
    _, message = running.communicate(timeout=120)
    assert running.returncode == 75, message
    assert "same command" in message
    assert "Traceback" not in message
    done = call(*arguments, cwd=study)
    assert done.returncode == 0, done.stderr
    whole = call(*arguments, "--set", "out=whole", cwd=study)
    assert whole.returncode == 0, whole.stderr
    a, b = ((study / name / "fold-0" / "model.safetensors").read_bytes() for name in ("run", "whole"))
    assert a == b


def test_scan_lists_series_and_init_writes_a_config_that_loads(study):
    done = ask("scan", "images", "--json", "-q", cwd=study)
    assert done.returncode == 0, done.stderr
    assert "c3.png" not in done.stdout
    assert ask("init", cwd=study).returncode == 0
    assert ask("init", cwd=study).returncode == 2
    from medtransfer.config import Experiment

    assert Experiment.from_file(study / "experiment.yaml").top.out == "runs/first"


def test_weights_are_imported_listed_and_verified(study):
    from medtransfer.backbones import architecture

    network = architecture("mobilenet_v3_small").build()
    save_file({k: v.contiguous() for k, v in network.state_dict().items()}, study / "w.safetensors")
    options = ["--name", "hospital/small", "--mean", "0.485,0.456,0.406", "--std", "0.229,0.224,0.225"]
    done = ask("weights", "import", "w.safetensors", *options, cwd=study)
    assert done.returncode == 0, done.stderr
    assert "loaded" in done.stdout
    assert "hospital/small" in ask("weights", "list", cwd=study).stdout
    assert ask("weights", "verify", "hospital/small", cwd=study).returncode == 0


def test_the_demo_runs_whole(study):
    done = call("demo", "--out", "demo", "--patients", "60", "--json", "-q", cwd=study)
    assert done.returncode == 0, done.stderr
    assert "synthetic" in (study / "demo" / "report.html").read_text().lower()


def test_contrast_medium_on_real_slices(shared, tmp_path):
    from medtransfer.config import Experiment
    from medtransfer.pipeline import train

    config = Path(__file__).resolve().parents[1] / "configs" / "ct_contrast.yaml"
    quick = [f"evaluate.{name}=false" for name in ("explain", "robustness", "learning_curve", "shuffled_labels")]
    changes = [f"data={shared}", f"out={tmp_path / 'run'}", *quick]
    result = train(Experiment.from_file(config, changes=changes), progress=False)
    estimate = result.evaluation.estimates["auroc"]
    assert estimate.value >= 0.88
    names = [c.name for c in result.evaluation.controls]
    assert any("istogram" in n for n in names)
    assert any("untrained" in n for n in names)
    assert len(np.unique(result.evaluation.predictions.patient)) == 54
    assert "CONTRAST_1" not in result.report.read_text()


def test_markup_in_a_table_reaches_the_report_as_text(study):
    evil = "<img src=x onerror=alert(1)>"
    lines = (study / "cohort.csv").read_text().splitlines()
    rows = [f"{r.replace(',yes,', f',{evil},')},{('north', '<script>alert(2)</script>')[i % 2]}"
            for i, r in enumerate(lines[1:])]  # fmt: skip
    (study / "cohort.csv").write_text("\n".join([lines[0] + ",site", *rows]))
    (study / "images" / "<b>c0.png").write_bytes((study / "images" / "c0.png").read_bytes())
    edited(study, "c0.png", "<b>c0.png")
    changes = ["--set", f'cohort.classes=["no", "{evil}"]', "--set", 'title="<svg onload=alert(3)>"']
    done = ask("train", "config.yaml", *changes, cwd=study)
    assert done.returncode == 0, done.stderr
    report = (study / "run" / "report.html").read_text()
    for payload in ("<img src=x", "<script>alert", "<svg onload", "<b>c0"):
        assert payload not in report
    assert "&lt;img src=x onerror=alert(1)&gt;" in report
    assert "&lt;script&gt;alert(2)" in report
