"""The folder watcher: each study once, whole or not at all, whatever happens in between."""

import fcntl
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from medtransfer.export.card import Card
from medtransfer.export.opened import Exported
from medtransfer.prepare import Prepare
from medtransfer.segment.plan import Plan

EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "watch_folder.py"


def load():
    spec = importlib.util.spec_from_file_location("watch_folder", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def watch():
    pytest.importorskip("highdicom", reason="SEG and SR need highdicom")
    return load()


def study(folder, seed, *, brightest=1000):
    """An axial CT series of six slices; what is brighter than 500 is counted by hand."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, brightest, (6, 12, 10)).astype(np.int16)
    uids = [generate_uid(entropy_srcs=[f"{seed} {k}"]) for k in range(3)]
    for z, plane in enumerate(pixels):
        meta = FileMetaDataset()
        meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID = ExplicitVRLittleEndian, CTImageStorage
        meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=[f"{seed} slice {z}"])
        ds = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
        ds.SOPClassUID, ds.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
        ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.FrameOfReferenceUID = uids
        ds.PatientID, ds.PatientName, ds.Modality = f"SECRET{seed}", "Doe^Jane", "CT"
        ds.ImageType, ds.InstanceNumber = ["ORIGINAL", "PRIMARY", "AXIAL"], z + 1
        ds.SamplesPerPixel, ds.PhotometricInterpretation, ds.PixelRepresentation = 1, "MONOCHROME2", 1
        ds.Rows, ds.Columns, ds.BitsAllocated, ds.BitsStored, ds.HighBit = 12, 10, 16, 16, 15
        ds.ImagePositionPatient, ds.ImageOrientationPatient = [0, 0, 2.0 * z], [1, 0, 0, 0, 1, 0]
        ds.PixelSpacing, ds.SliceThickness, ds.RescaleSlope, ds.RescaleIntercept = [1, 1], 2, 1, 0
        ds.PixelData = plane.tobytes()
        pydicom.dcmwrite(folder / f"{z}.dcm", ds, enforce_file_format=True)
    return pixels > 500


def thresholding():
    """A model whose answer is known: bright voxels are the structure."""
    plan = Plan(patch=(8, 8, 4), scale=(0, 1000))
    card = Card("segmentation", ("bright",), (1, 4, 8, 8), plan=plan.model_dump(mode="json"))
    return Exported(card, lambda x: np.concatenate([1.0 * (x <= 0.5), 1.0 * (x > 0.5)], axis=1))


def results(outbox):
    return {p.name: json.loads((p / "result.json").read_text()) for p in outbox.iterdir() if not p.name.startswith(".")}


@pytest.fixture
def boxes(tmp_path):
    inbox, outbox = tmp_path / "in", tmp_path / "out"
    bright = [study(inbox / f"Doe Jane {i}", i) for i in range(2)]
    outbox.mkdir()
    return inbox, outbox, bright


def test_every_study_is_done_once(watch, boxes):
    from medtransfer.io.scan import scan
    from medtransfer.io.segments import read_segmentation

    inbox, outbox, bright = boxes
    before = sorted((p, p.stat().st_mtime_ns) for p in inbox.rglob("*"))
    first = list(watch.look(thresholding(), inbox, outbox, quiet_s=0))
    assert len(first) == 2
    found = results(outbox)
    assert sorted(found) == sorted(first)
    counts = [int(b.sum()) for b in bright]
    assert sorted(r["series"][0]["voxels"]["bright"] for r in found.values()) == sorted(counts)
    volumes = sorted(r["series"][0]["volumes_ml"]["bright"] for r in found.values())
    assert volumes == pytest.approx(sorted(2 * c / 1000 for c in counts))
    for name, result in found.items():
        seg, sr = (outbox / name / f for f in result["series"][0]["written"])
        patient = pydicom.dcmread(seg).PatientID
        number = int(patient.removeprefix("SECRET"))
        image = scan(inbox / f"Doe Jane {number}", progress=False)[0].read()
        labels, _ = read_segmentation(seg, image)
        assert int(labels.sum()) == counts[number]
        assert pydicom.dcmread(sr).Modality == "SR"
        assert "SECRET" not in json.dumps(result)
        assert "Doe" not in json.dumps(result) + name
    kept = {p: p.read_bytes() for p in outbox.rglob("*") if p.is_file()}
    assert list(watch.look(thresholding(), inbox, outbox, quiet_s=0)) == []
    shutil.copytree(inbox / "Doe Jane 0", inbox / "sent again")
    assert list(watch.look(thresholding(), inbox, outbox, quiet_s=0)) == []
    assert {p: p.read_bytes() for p in outbox.rglob("*") if p.is_file()} == kept
    shutil.rmtree(inbox / "sent again")
    assert sorted((p, p.stat().st_mtime_ns) for p in inbox.rglob("*") if p != inbox) == before


def test_a_study_waits_until_it_is_whole(watch, boxes, tmp_path):
    inbox, outbox, _ = boxes
    names = {}
    assert list(watch.look(thresholding(), inbox, outbox, quiet_s=3600, names=names)) == []  # still fresh
    late = tmp_path / "late.dcm"
    (inbox / "Doe Jane 1" / "5.dcm").rename(late)
    (inbox / "Doe Jane 1" / "5.dcm.part").write_bytes(late.read_bytes()[:100])  # still on its way
    assert len(list(watch.look(thresholding(), inbox, outbox, quiet_s=0, names=names))) == 1
    (inbox / "Doe Jane 1" / "5.dcm.part").unlink()
    shutil.copy2(late, inbox / "Doe Jane 1" / "5.dcm")  # a copy that keeps an old modification time
    os.utime(inbox / "Doe Jane 1" / "5.dcm", (1, 1))
    assert list(watch.look(thresholding(), inbox, outbox, quiet_s=3600, names=names)) == []
    assert len(list(watch.look(thresholding(), inbox, outbox, quiet_s=0, names=names))) == 1
    assert [r["files"] for r in results(outbox).values()] == [6, 6]


def test_probabilities_stand_in_json_and_sr(watch, boxes):
    inbox, outbox, _ = boxes
    prepare = Prepare(size=(8, 8, 4), scale=(0, 1000))
    stored = {"threshold": {"rule": "youden", "by_fold": {"0": 0.7, "1": 0.9}}}
    card = Card("classification", ("no", "yes"), (1, 4, 8, 8), prepare=prepare.model_dump(mode="json"), decided=stored)
    model = Exported(card, lambda x: np.tile([[0.25, 0.75]], (len(x), 1)))
    assert len(list(watch.look(model, inbox, outbox, quiet_s=0))) == 2
    for name, result in results(outbox).items():
        row = result["series"][0]
        assert row["probabilities"] == {"no": 0.25, "yes": 0.75}
        assert (row["thresholds"], row["called"]) == ({"yes": pytest.approx(0.8)}, "no")
        assert "0.75" in str(pydicom.dcmread(outbox / name / row["written"][0]))


def test_values_stand_in_json_and_sr(watch, boxes):
    inbox, outbox, _ = boxes
    prepare = Prepare(size=(8, 8, 4), scale=(0, 1000))
    card = Card("regression", ("age",), (1, 4, 8, 8), prepare=prepare.model_dump(mode="json"))
    assert len(list(watch.look(Exported(card, lambda x: np.full((len(x), 1), 61.25)), inbox, outbox, quiet_s=0))) == 2
    for name, result in results(outbox).items():
        row = result["series"][0]
        assert row["values"] == {"age": 61.25}
        assert "61.25" in str(pydicom.dcmread(outbox / name / row["written"][0]))


def test_a_mask_that_marks_nothing_is_sent_as_that(watch, tmp_path):
    from medtransfer.io.scan import scan
    from medtransfer.io.segments import read_segmentation

    study(tmp_path / "in" / "dark", 5, brightest=400)
    (tmp_path / "out").mkdir()
    (name,) = watch.look(thresholding(), tmp_path / "in", tmp_path / "out", quiet_s=0)
    row = results(tmp_path / "out")[name]["series"][0]
    seg, sr = (tmp_path / "out" / name / f for f in row["written"])
    labels, _ = read_segmentation(seg, scan(tmp_path / "in" / "dark", progress=False)[0].read())
    assert not labels.any()
    assert row["volumes_ml"] == {"bright": 0}
    assert "mL" in str(pydicom.dcmread(sr))


def test_what_does_not_fit_is_said_and_not_tried_again(watch, boxes):
    inbox, outbox, _ = boxes
    prepare = Prepare(size=(8, 8))
    model = Exported(Card("classification", ("no",), (1, 8, 8), prepare=prepare.model_dump(mode="json")), None)
    assert len(list(watch.look(model, inbox, outbox, quiet_s=0))) == 2
    assert all("no series of this study is a image" in r["error"] for r in results(outbox).values())
    assert list(watch.look(model, inbox, outbox, quiet_s=0)) == []


DRIVER = """
import os, signal, sys, time
sys.path[:0] = [{tests!r}, {examples!r}]
import watch_folder, test_watch

def open_exported(path):
    model, calls = test_watch.thresholding(), [0]
    def answer(x, known=model.answer):
        calls[0] += 1
        if {stuck} and len([p for p in os.listdir({outbox!r}) if p.startswith("study-")]) == 1:
            print("reading the second study", flush=True)
            time.sleep(120)
        return known(x)
    model.answer = answer
    return model

watch_folder.open_exported = open_exported
sys.argv = ["watch", "model", {inbox!r}, {outbox!r}, "--quiet", "0", "--once"]
watch_folder.main()
"""


def drive(inbox, outbox, *, stuck):
    told = {"tests": str(Path(__file__).parent), "examples": str(EXAMPLE.parent), "inbox": str(inbox)}
    code = DRIVER.format(**told, outbox=str(outbox), stuck=stuck)
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)


def test_killed_in_the_middle_nothing_is_lost_or_doubled(watch, boxes):
    inbox, outbox, _ = boxes
    process = drive(inbox, outbox, stuck=True)
    said = [process.stdout.readline(), process.stdout.readline()]
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert said[1] == "reading the second study\n"
    first = results(outbox)
    assert len(first) == 1
    assert len(list(outbox.glob(".draft-*"))) == 1
    stamps = {p: p.stat().st_mtime_ns for p in outbox.glob("study-*/*")}
    again = drive(inbox, outbox, stuck=False)
    assert len(again.communicate()[0].splitlines()) == 1
    assert again.returncode == 0
    both = results(outbox)
    assert len(both) == 2
    assert not list(outbox.glob(".draft-*"))
    assert all(p.stat().st_mtime_ns == at for p, at in stamps.items())
    assert all(len(list((outbox / name).glob("*.seg.dcm"))) == 1 for name in both)
    assert all("error" not in r for r in both.values())


def test_a_study_that_kills_the_program_is_set_aside(watch, boxes):
    inbox, outbox, _ = boxes
    shutil.rmtree(inbox / "Doe Jane 1")
    model = thresholding()

    def ends(x):
        raise SystemExit(1)

    for _ in range(3):
        with pytest.raises(SystemExit):
            list(watch.look(Exported(model.card, ends), inbox, outbox, quiet_s=0))
    assert results(outbox) == {}
    assert len(list(watch.look(Exported(model.card, ends), inbox, outbox, quiet_s=0))) == 1
    assert "3 times" in next(iter(results(outbox).values()))["error"]


def test_two_watchers_do_not_share_a_box(watch, boxes, monkeypatch):
    inbox, outbox, _ = boxes
    monkeypatch.setattr(sys, "argv", ["watch", "model", str(inbox), str(outbox), "--once"])
    with open(outbox / ".lock", "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(SystemExit, match="another watcher"):
            watch.main()


def test_the_image_runs_without_rights_and_without_the_network():
    lines = (EXAMPLE.parents[1] / "Dockerfile").read_text().splitlines()
    users = [line.split()[1] for line in lines if line.startswith("USER ")]
    assert users
    assert users[-1].split(":")[0] not in ("root", "0")
    assert not [line for line in lines if "://" in line]
    after = lines[next(i for i, line in enumerate(lines) if line.startswith("USER ")) :]
    assert not [line for line in after if line.startswith("RUN ")]


def test_quiet_is_counted_from_the_last_change(watch, boxes):
    inbox, outbox, _ = boxes
    for path in inbox.rglob("*.dcm"):
        path.touch()
    touched = time.time()
    assert list(watch.look(thresholding(), inbox, outbox, quiet_s=2)) == [] or time.time() - touched > 2
