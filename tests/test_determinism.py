"""The same bytes whatever prepares the images, and whatever scales the loss."""

from importlib import import_module

import pytest
from PIL import Image as Picture
from small_cohorts import blobs

from medtransfer import Augment, Prepare, Recipe, fit, load_model
from medtransfer.config import Experiment
from medtransfer.errors import ConfigError
from medtransfer.pipeline import train
from medtransfer.split import split_by_patient

FINETUNE = Recipe(epochs=2, freeze_epochs=1, unfreeze_from="layer1", batch_size=8, lr=3e-3)


def test_workers_change_no_byte_of_weights_and_metrics(tmp_path, monkeypatch):
    (tmp_path / "images").mkdir()
    rows = ["case_id,patient_id,image,label"]
    for case in blobs(60):
        Picture.fromarray(case.image).save(tmp_path / "images" / f"{case.case_id}.png")
        rows.append(f"{case.case_id},{case.patient_id},{case.case_id}.png,{case.label}")
    (tmp_path / "cohort.csv").write_text("\n".join(rows) + "\n")
    found = set()
    for workers in (0, 1, 4):
        text = f"""
data: {tmp_path}
cohort: {{csv: cohort.csv, root: images}}
prepare: {{size: 40, scale: range}}
augment: {{rotate_deg: 10, noise_std: 0.05}}
model: {{weights: random/resnet18, until: layer1}}
recipe: {{epochs: 2, freeze_epochs: 1, batch_size: 8}}
evaluate: {{bootstrap: 200, controls: []}}
workers: {workers}
out: {tmp_path / f"run-{workers}"}
"""
        monkeypatch.setenv("MEDTRANSFER_CACHE", str(tmp_path / f"cache-{workers}"))  # prepared anew each time
        run = train(Experiment.from_text(text), progress=False).run
        assert run.workers == workers
        files = ("fold-0/model.safetensors", "fold-0/last.safetensors", "fold-0/history.json", "metrics.json")
        found.add(tuple((run.folder / name).read_bytes() for name in files))
    assert len(found) == 1


def trained(out):
    cohort = blobs(40)
    model, prepare = load_model("random/resnet18", until="layer1"), Prepare(size=40, scale="range")
    return fit(model, cohort, split_by_patient(cohort), prepare, FINETUNE, out=out, augment=Augment(noise_std=0.1),
               progress=False)  # fmt: skip


def test_scaling_the_loss_by_powers_of_two_changes_no_bit(tmp_path, monkeypatch):
    plain = trained(tmp_path / "plain")
    module = import_module("medtransfer.fit")
    job = module.Job
    monkeypatch.setattr(module, "Job", lambda *a, scaled=False: job(*a, scaled=True))
    scaled = trained(tmp_path / "scaled")
    files = ("fold-0/model.safetensors", "fold-0/history.json")
    assert [(plain.folder / f).read_bytes() for f in files] == [(scaled.folder / f).read_bytes() for f in files]
    a, b = ((r.folder / "fold-0" / "last.safetensors").read_bytes() for r in (plain, scaled))
    assert b"growth" not in a
    assert b"growth" in b  # the scale is part of what a run goes on from


def test_half_precision_without_its_device_is_refused(tmp_path):
    import torch

    cohort = blobs(40)
    fixed = (
        load_model("random/resnet18", until="layer1"),
        cohort,
        split_by_patient(cohort),
        Prepare(size=40),
        FINETUNE,
    )
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="CUDA"):
            fit(*fixed, out=tmp_path / "a", precision="16-mixed")
    assert not (tmp_path / "a").exists()
