"""A run as an archive: complete for the receiver, empty of patients and machines, and refused where it was changed."""

import csv
import hashlib
import io
import json
import os
import subprocess
import zipfile

import nibabel
import numpy as np
import pytest
from click.testing import CliRunner
from small_masks import config, write_balls
from test_privacy import FOLDER, dump, experiment, found_in  # noqa: F401  a fixture

import medtransfer as mt
from medtransfer.cli import cli
from medtransfer.config import Experiment
from medtransfer.errors import ConfigError, DataError, RunError
from medtransfer.pipeline import predict_files, train
from medtransfer.share import TOP, check


def call(*arguments):
    return CliRunner().invoke(cli, [*map(str, arguments)])


def everything(raw, name=""):
    """All bytes of an archive and of the archives and images in it, packed and unpacked."""
    import base64
    import gzip
    import re

    yield name.encode()
    yield raw
    if raw[:2] == b"PK":
        for entry in zipfile.ZipFile(io.BytesIO(raw)).infolist():
            yield from everything(zipfile.ZipFile(io.BytesIO(raw)).read(entry), entry.filename)
    elif raw[:2] == b"\x1f\x8b":
        yield from everything(gzip.decompress(raw))
    for text in re.findall(rb"base64,([A-Za-z0-9+/=]{40,})", raw):
        yield base64.b64decode(text)


def numbers(text):
    return [[*row.values()][2:] for row in csv.DictReader(text.splitlines())]


def test_nothing_that_identifies_goes_into_the_archive(dump, tmp_path, monkeypatch):  # noqa: F811
    run = tmp_path / "canary_run"
    skipped = "controls: [], shuffled_labels: false, learning_curve: false, explain: false, robustness: false"
    quick = f"evaluate={{bootstrap: 100, {skipped}}}"
    text = experiment(dump, run).resolved(private=True)
    train(
        Experiment.from_text(text, changes=[quick, "recipe.epochs=1", "recipe.freeze_epochs=0"]),
        command="medtransfer train canary.yaml",
        progress=False,
    )
    image = str(dump / FOLDER / "canaryfile_0.dcm")
    before = predict_files(run, [image], progress=False)
    hd = pytest.importorskip("highdicom", reason="the extra dicom-out is not installed")
    for option in ((), ("--deidentified",)):
        folder = tmp_path / f"sr{len(option)}"
        told = call("predict", run, image, "-q", "--sr", folder, *option)
        assert told.exit_code == 0, told.output
        file = next(folder.glob("*.sr.dcm"))
        groups = {g.tracking_identifier: g for g in hd.sr.srread(file).content.get_image_measurement_groups()}
        chances = {name: group.get_measurements()[0].value for name, group in groups.items()}
        assert [f"{p:.6f}" for p in chances.values()] == numbers(before)[0][:-1]
        decided = json.loads((run / "metrics.json").read_text())["threshold"]["by_fold"]["0"]
        assert groups["1"].get_measurements()[1].value == pytest.approx(decided, abs=1e-6)
        assert bool(found_in(file.read_bytes())) == (option == ())
    made = call("share", run, "--out", tmp_path / "a.zip", "--json")
    assert made.exit_code == 0, made.output
    facts = json.loads(made.output)
    raw = (tmp_path / "a.zip").read_bytes()
    looked_at = 0
    for piece in everything(raw):
        assert not found_in(piece)
        assert str(tmp_path).encode() not in piece
        assert str(dump).encode() not in piece
        looked_at += 1
    assert looked_at > 20
    names = zipfile.ZipFile(io.BytesIO(raw)).namelist()
    assert len(names) == facts["files"] + 1
    assert not [n for n in names if "private" in n or "last" in n or "scan" in n]
    assert "private" in facts["left_out"]
    mt.share(run, tmp_path / "b.zip")
    assert (tmp_path / "b.zip").read_bytes() == raw  # the same run makes the same archive

    monkeypatch.setenv("MEDTRANSFER_HOME", str(tmp_path / "receiver"))
    monkeypatch.setenv("MEDTRANSFER_CACHE", str(tmp_path / "receiver-cache"))
    zipfile.ZipFile(tmp_path / "a.zip").extractall(tmp_path / "there")
    there = tmp_path / "there" / TOP
    assert numbers(predict_files(there, [image], progress=False)) == numbers(before)
    page = (there / "report.html").read_bytes()
    assert call("report", there, "-q").exit_code == 0
    assert (there / "report.html").read_bytes() == page
    assert b"data:image" not in page
    primary = json.loads((there / "metrics.json").read_text())
    assert f"{primary['estimates'][primary['primary']]['value']:.3f}".encode() in page
    assert call("share", "--check", there).exit_code == 0
    listed = (there / "SHA256SUMS").read_text().splitlines()
    for line in listed:
        assert hashlib.sha256((there / line[66:]).read_bytes()).hexdigest() == line[:64]
    done = subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=there, capture_output=True)
    assert done.returncode == 0


def changed(source, target, change):
    """The archive with its files changed by a function from name and bytes to bytes, or None to leave one out."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            raw = change(name, old.read(name))
            if raw is not None:
                new.writestr(name, raw)
    return target


@pytest.fixture(scope="module")
def segmented(tmp_path_factory):
    base = tmp_path_factory.mktemp("segmented")
    balls = write_balls(base / "patients")
    recipe = "{method: full, freeze_epochs: 0, epochs: 1, patience: 1, lr: 0.01, backbone_lr_scale: 1}"
    (base / "seg.yaml").write_text(config(balls, base / "run", recipe=recipe))
    done = call("train", base / "seg.yaml", "-q")
    assert done.exit_code == 0, done.output
    return base


def test_a_segmentation_is_shared_too(segmented, tmp_path):
    archive = mt.share(segmented / "run", tmp_path / "a.zip")
    assert check(archive)["format"] == "medtransfer.share/1"
    for piece in everything(archive.read_bytes()):
        assert b"subject-" not in piece
        assert b"scan-" not in piece
        assert str(segmented).encode() not in piece
    zipfile.ZipFile(archive).extractall(tmp_path)
    there = tmp_path / TOP
    assert not list(there.rglob("*.nii.gz"))
    image = segmented / "patients" / "image0.nii.gz"
    masks = []
    for folder, out in ((segmented / "run", tmp_path / "here"), (there, tmp_path / "new")):
        done = call("predict", folder, image, "--out", out, "-q")
        assert done.exit_code == 0, done.output
        masks.append(np.asarray(nibabel.load(next(out.glob("*.nii.gz"))).dataobj))
    assert np.array_equal(*masks)
    assert call("report", there, "-q").exit_code == 0
    assert call("share", "--check", there).exit_code == 0
    with_masks = mt.share(segmented / "run", tmp_path / "b.zip", pictures=True)
    assert [n for n in zipfile.ZipFile(with_masks).namelist() if n.endswith(".nii.gz")]


def test_what_was_changed_is_found(segmented, tmp_path):
    archive = mt.share(segmented / "run", tmp_path / "a.zip", note="for the trial only")
    assert "for the trial only" in zipfile.ZipFile(archive).read(f"{TOP}/card.md").decode()
    model = f"{TOP}/fold-0/model.safetensors"
    for name, change in {
        "have changed": lambda n, raw: raw[:-1] + bytes([raw[-1] ^ 1]) if n == model else raw,
        "are missing": lambda n, raw: None if n == model else raw,
        "no archive": lambda n, raw: None if n.endswith("SHA256SUMS") else raw,
    }.items():
        with pytest.raises(DataError, match=name):
            check(changed(archive, tmp_path / "b.zip", change))
    with zipfile.ZipFile(archive, "a") as more:
        more.writestr(f"{TOP}/extra.py", "print()")
    with pytest.raises(DataError, match="not of it"):
        check(archive)
    with zipfile.ZipFile(archive, "a") as more:
        more.writestr("../outside", "x")
    refused = call("share", "--check", archive)
    assert refused.exit_code == 3
    assert "outside of its folder" in refused.output
    (tmp_path / "c.zip").write_bytes(b"PK no zip")
    with pytest.raises(DataError, match="cannot be read"):
        check(tmp_path / "c.zip")


def test_an_identifier_in_a_file_stops_the_packing(segmented, tmp_path):
    import shutil

    run = tmp_path / "run"
    shutil.copytree(segmented / "run", run)
    record = json.loads((run / "record.json").read_text())
    for text in ("seen in subject-3 again", f"made in {os.path.realpath(segmented)}", "of image4.nii.gz"):
        (run / "record.json").write_text(json.dumps(record | {"title": text}))
        with pytest.raises(DataError, match="nothing was written") as refused:
            mt.share(run, tmp_path / "a.zip")
        assert "subject" not in str(refused.value)
        assert not (tmp_path / "a.zip").exists()
    (run / "record.json").write_text(json.dumps(record))
    mt.share(run, tmp_path / "a.zip")
    with pytest.raises(ConfigError, match="exists already"):
        mt.share(run, tmp_path / "a.zip")
    state = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(state | {"status": "running"}))
    with pytest.raises(RunError, match="not complete"):
        mt.share(run, tmp_path / "b.zip")
