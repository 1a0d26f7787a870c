"""Every way from weights to a volume, for classes and for numbers, from NIfTI files and from DICOM series."""

import json

import numpy as np
import pytest
import torch
from small_volumes import write_dicom, write_nifti

import medtransfer as mt
from medtransfer.backbones import architecture

SIZE = (24, 20, 12)
ROUTES = {
    "inflated": ("random/resnet18", {"depth": "centre", "until": "layer1"}),
    "spread": ("random/resnet18", {"depth": "mean", "until": "layer1", "flat_until": "stem"}),
    "acs": ("random/resnet18", {"depth": "acs", "until": "layer1"}),
    "monai": ("random/monai_resnet10", {"until": "layer1"}),
    "segresnet": ("random/monai_segresnet8", {"until": "down1"}),
    "medicalnet": ("file", {"arch": "medicalnet_resnet10", "until": "layer1", "mean": (0.5,), "std": (0.2,)}),
    "embedded": ("embedded/compact3d", {}),
    "neighbours": ("random/resnet18", {"depth": "neighbours", "until": "layer1"}),
    "attention": ("random/resnet18", {"depth": "slices", "until": "layer1", "head": mt.Head(attention=8)}),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    root = tmp_path_factory.mktemp("volumes")
    (root / "nifti").mkdir()
    network = architecture("medicalnet_resnet10").build(dims=3, channels=1, init=True)
    torch.save({"state_dict": {f"module.{k}": v for k, v in network.state_dict().items()}}, root / "medicalnet.pth")
    return {"nifti": write_nifti(root / "nifti"), "dicom": write_dicom(root / "dicom"), "file": root / "medicalnet.pth"}


def cohort_of(files, kind, task):
    asked = {"label": "label"} if task == "classification" else {"label": None, "target": "radius"}
    asked |= {"task": task, "part": "part"}
    if kind == "nifti":
        return mt.Cohort.from_csv(files["nifti"], root=files["nifti"].parent, **asked)
    dump, labels = files["dicom"]
    return mt.Cohort.from_dicom(dump, labels=labels, on="PatientID", progress=False, **asked)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["nifti", "dicom"])
@pytest.mark.parametrize("task", ["classification", "regression"])
@pytest.mark.parametrize("route", ROUTES)
def test_every_route_trains_and_answers(files, tmp_path, route, task, kind):
    name, options = ROUTES[route]
    cohort = cohort_of(files, kind, task)
    assert len(cohort) == 12
    split = mt.Split.from_column(cohort)
    weights = str(files["file"]) if name == "file" else name
    model = mt.load_model(weights, dims=3, classes=max(1, len(cohort.classes)), task=task, **options)
    prepare = mt.Prepare(size=SIZE, spacing_mm=(1, 1, 2), scale=(0.0, 500.0))
    recipe = mt.Recipe(method="full", freeze_epochs=1, epochs=2, batch_size=3, lr=1e-3, backbone_lr_scale=0.5)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    run = mt.fit(model, cohort, split, prepare, recipe, out=tmp_path / "run", progress=False)
    entries = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [e["phase"] for e in entries] == ["head", "fine-tuning"]
    assert all(np.isfinite([e["train_loss"], e["val_loss"]]).all() for e in entries)
    last = mt.Run.open(tmp_path / "run", cohort, progress=False)
    moved = [k for k, v in run.model().state_dict().items() if not torch.equal(v, before[k])]
    assert any(k.startswith("head.") for k in moved)
    found = last.predict(split.test)
    assert np.array_equal(found.probability, run.predict(split.test).probability)
    assert np.isfinite(found.probability).all()
    if task == "regression":
        assert (np.abs(found.probability) < 40).all()  # millimetres around the mean of 2 to 8, not of another scale
    assert mt.evaluate(found, bootstrap=100).estimates
