"""Eighteen planted identifiers: none leaves through what a whole study writes or prints."""

import json
import logging
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid

import medtransfer as mt
from medtransfer.config import Experiment
from medtransfer.errors import ConfigError, MedTransferError
from medtransfer.export import export
from medtransfer.pipeline import predict_files, train
from medtransfer.pseudonym import pseudonym

CANARIES = {
    "PatientName": "Canaryname^Anna", "PatientID": "CANARYID", "PatientBirthDate": "19310217",
    "AccessionNumber": "CANARYACC7", "ReferringPhysicianName": "Canarydoc^Ref",
    "PerformingPhysicianName": "Canarydoc^Perf",
    "InstitutionName": "Canary Hospital", "InstitutionAddress": "Canary Street 1", "StudyDate": "19870605",
    "StudyID": "CANARYSTUDY", "ImageComments": "canary comment", "PatientComments": "canary remark",
    "StudyDescription": "canary study text", "SeriesDescription": "canary series text",
    "OtherPatientIDs": "CANARYOTHER",
    "StationName": "CANARYSTATION",
}  # fmt: skip
PRIVATE, FOLDER, COLUMN = "canaryprivate", "canary_folder", "Canary Columnname"
UID_ROOT = "1.2.826.0.1.3680043.8.498.77777"


@pytest.fixture
def dump(tmp_path):
    """Forty images of twenty patients, identifiers everywhere a scanner and an office put them."""
    rng = np.random.default_rng(0)
    folder = tmp_path / FOLDER
    folder.mkdir()
    rows = [f"PatientID,label,age,{COLUMN}"]
    for i in range(40):
        patient, label = i // 2, i // 2 % 2
        meta = FileMetaDataset()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
        meta.MediaStorageSOPInstanceUID = f"{UID_ROOT}.{i}.3"
        ds = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
        for name, value in CANARIES.items():
            setattr(ds, name, value)
        ds.PatientID = f"CANARYID{patient}"
        ds.SOPClassUID, ds.SOPInstanceUID = SecondaryCaptureImageStorage, f"{UID_ROOT}.{i}.3"
        ds.StudyInstanceUID, ds.SeriesInstanceUID = f"{UID_ROOT}.{i}.1", f"{UID_ROOT}.{i}.2"
        ds.Modality, ds.SamplesPerPixel, ds.PhotometricInterpretation = "DX", 1, "MONOCHROME2"
        ds.Rows = ds.Columns = 40
        ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 12, 11, 0
        image = rng.integers(0, 1500, (40, 40)).astype(np.uint16)
        if label:
            image[10:25, 10:25] += 1800
        ds.PixelData = image.tobytes()
        ds.private_block(0x0011, "CANARYMAKER", create=True).add_new(1, "LO", PRIVATE)
        ds.save_as(folder / f"canaryfile_{i}.dcm", enforce_file_format=True)
        if i % 2 == 0:
            rows.append(f"CANARYID{patient},{label},{40 + patient},Canarycell {i}")
    (tmp_path / "labels.csv").write_text("\n".join(rows) + "\n")
    return tmp_path


def words():
    values = [*CANARIES.values(), PRIVATE, UID_ROOT]
    return [w.encode() for w in values] + [b"anary"]  # any case of the word itself: folder, file, column and cell


def found_in(raw):
    return [w for w in words() if w.lower() in raw.lower()]


def experiment(dump, out):
    return Experiment.from_text(
        f"""
data: {dump}
cohort: {{dicom: {FOLDER}, labels: labels.csv, on: PatientID, choose: all}}
split: {{val: 0.2, test: 0.25}}
prepare: {{size: 32}}
model: {{weights: random/resnet18, until: layer1}}
recipe: {{epochs: 2, freeze_epochs: 1, batch_size: 8}}
evaluate: {{bootstrap: 100}}
out: {out}
"""
    )


def test_nothing_that_identifies_leaves(dump, tmp_path_factory, monkeypatch, caplog, capsys):
    base = tmp_path_factory.mktemp("results")
    monkeypatch.setenv("MEDTRANSFER_HOME", str(base / "home"))
    monkeypatch.setenv("MEDTRANSFER_CACHE", str(base / "cache"))
    caplog.set_level(logging.DEBUG)
    run = base / "run"
    scan = mt.scan(dump / FOLDER, progress=False)
    (base / "scan.json").write_text(scan.to_json())
    (base / "scan.csv").write_text(scan.to_csv())
    (base / "scan.txt").write_text(f"{scan}\n{scan._repr_html_()}\n{scan[0]!r}")
    result = train(experiment(dump, run), command="medtransfer train", progress=False)
    print(result.evaluation, result.run, result.run.cohort, result.run.cohort[0], result.run.split)
    (base / "predicted.csv").write_text(predict_files(run, [str(dump / FOLDER / "canaryfile_0.dcm")], progress=False))
    export(run, base / "exported")
    damaged = dump / FOLDER / "canaryfile_3.dcm"
    raw = bytearray(damaged.read_bytes())
    damaged.write_bytes(raw[: len(raw) - 900])  # a crash: a truncated file in the dump
    try:
        train(experiment(dump, base / "crashed"), progress=False)
    except MedTransferError as error:
        (base / "crash.txt").write_text(f"{error!r} {error}")
    out, err = capsys.readouterr()
    (base / "console.txt").write_text(out + err + caplog.text)
    looked_at = 0
    for path in base.rglob("*"):
        relative = path.relative_to(base)
        if "private" in relative.parts or relative.parts[0] == "home":
            continue
        assert not found_in(str(relative).encode()), relative
        if path.is_file():
            looked_at += 1
            hits = found_in(path.read_bytes())
            assert not hits, (str(relative), hits)
    assert looked_at > 20
    assert (
        pydicom.dcmread(dump / FOLDER / "canaryfile_0.dcm").PatientName == "Canaryname^Anna"
    )  # the source is untouched
    private = run / "private"
    assert private.stat().st_mode & 0o077 == 0
    assert all(p.stat().st_mode & 0o077 == 0 for p in private.iterdir())
    assert json.loads((run / "run.json").read_text())["status"] == "complete"


def test_generated_identifiers_are_not_the_originals():
    uid = generate_uid()
    from medtransfer.pseudonym import pseudonym

    assert uid not in pseudonym("study", uid)
    assert pseudonym("study", uid) == pseudonym("study", uid) != pseudonym("series", uid)


def test_the_key_is_private_and_decides_the_pseudonym(tmp_path, monkeypatch):
    from medtransfer.pseudonym import data_folder

    first = pseudonym("patient", "P1")
    key = data_folder() / "private.key"
    assert key.stat().st_mode & 0o077 == 0
    monkeypatch.setenv("MEDTRANSFER_HOME", str(tmp_path / "other"))
    assert pseudonym("patient", "P1") != first
    assert Path(tmp_path / "other" / "private.key").is_file()


def test_another_users_key_changes_names_and_no_number(dump, tmp_path, monkeypatch):
    found = []
    for user in "ab":
        monkeypatch.setenv("MEDTRANSFER_HOME", str(tmp_path / user))
        text = experiment(dump, tmp_path / f"run-{user}").resolved(private=True)
        changes = ["recipe={method: logistic}", "split={folds: 4, val: 0}"]
        result = train(Experiment.from_text(text, changes=changes), progress=False)
        found.append((result.evaluation.predictions, result.evaluation.estimates))
    (first, numbers), (second, others) = found
    assert not set(first.patient) & set(second.patient)
    assert (first.probability == second.probability).all()
    assert numbers == others


def test_a_key_that_cannot_be_made_or_read_is_told_without_its_place(tmp_path, monkeypatch):
    (tmp_path / "Doe Jane").write_text("a file where the folder would be")
    monkeypatch.setenv("MEDTRANSFER_HOME", str(tmp_path / "Doe Jane" / "home"))
    with pytest.raises(ConfigError, match="MEDTRANSFER_HOME") as told:
        pseudonym("patient", "P01")
    assert "Doe" not in str(told.value)
