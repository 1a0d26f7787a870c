"""A segmentation as a user runs it: config to report, interruptions, new images, comparison, and what is refused."""

import csv
import json
import os
import re
import signal

import nibabel
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image as Picture
from small_masks import config, write_balls

import medtransfer as mt
from medtransfer.cli import cli
from medtransfer.config import Experiment, sections
from medtransfer.contour import names_of, prepare_job, read_segmented, resolve
from medtransfer.errors import ConfigError, DataError
from medtransfer.segment.fingerprint import Fingerprint
from medtransfer.segment.plan import Plan
from medtransfer.segment.train import _Training


def call(*arguments):
    return CliRunner().invoke(cli, [*map(str, arguments)])


def dice_by_hand(found, reference, value):
    a, b = found == value, reference == value
    return 2 * (a & b).sum() / (a.sum() + b.sum())


@pytest.fixture(scope="module")
def balls(tmp_path_factory):
    return write_balls(tmp_path_factory.mktemp("balls"))


def test_from_config_to_report_to_new_masks(balls, tmp_path):
    (tmp_path / "seg.yaml").write_text(config(balls, tmp_path / "run"))
    planned = call("train", tmp_path / "seg.yaml", "--dry-run")
    assert planned.exit_code == 0, planned.output
    assert all(
        text in planned.output
        for text in ("patch: [16, 16, 16]", "parameters", "GB", "1 large, 2 small", "step, all learns")
    )
    assert not (tmp_path / "run" / "run.json").exists()

    done = call("train", tmp_path / "seg.yaml", "-q")
    assert done.exit_code == 0, done.output
    run = tmp_path / "run"
    assert Plan.load(run / "plan.yaml").patch == (16, 16, 16)
    rows = list(csv.DictReader((run / "segmentation.csv").open()))
    assert len(rows) == 4
    references = {}
    for i in (8, 9):  # the test part: as a user would open the files
        stored = nibabel.load(balls / f"mask{i}.nii.gz")
        for path in (run / "masks").glob("*.nii.gz"):
            written = nibabel.load(path)
            if written.shape == stored.shape and np.array_equal(written.affine, stored.affine):
                references.setdefault(path.name, []).append((written, stored))
    for row in rows:
        value = {"large": 1, "small": 2}[row["structure"]]
        by_hand = [dice_by_hand(np.asarray(w.dataobj), np.asarray(s.dataobj), value)
                   for w, s in references[f"{row['case']}.nii.gz"]]  # fmt: skip
        assert min(abs(float(row["dice"]) - d) for d in by_hand) < 1e-9
    estimates = json.loads((run / "segmentation.json").read_text())
    mean = np.mean([float(r["dice"]) for r in rows])
    assert estimates["all"]["dice"]["value"] == pytest.approx(mean)
    assert mean > 0.8

    page = (run / "report.html").read_text()
    assert f"{mean:.3f}" in page
    assert page.count('class="outlined"') == 2 * 3
    assert "default-src 'none'" in page
    assert not re.findall(r'(?:src|href)="(?!#|data:)', page)
    assert not re.findall(r"https?://", page)
    everything = page + (run / "segmentation.csv").read_text() + (run / "record.json").read_text()
    assert "subject-" not in everything
    assert str(balls) not in everything

    models = {p: p.stat().st_mtime_ns for p in run.glob("fold-*/model.safetensors")}
    before = (run / "segmentation.csv").read_bytes()
    for command in (("train", tmp_path / "seg.yaml", "-q"), ("evaluate", run, "-q"), ("report", run, "-q")):
        again = call(*command)
        assert again.exit_code == 0, again.output
        assert (run / "segmentation.csv").read_bytes() == before
    assert {p: p.stat().st_mtime_ns for p in run.glob("fold-*/model.safetensors")} == models
    assert call("evaluate", run, "-q", "--at-least", "1.01").exit_code == 5

    source = balls / "image3.nii.gz"
    made = call("predict", run, source, "--out", tmp_path / "new")
    assert made.exit_code == 0, made.output
    line = next(csv.DictReader(made.output.splitlines()))
    mask, image = nibabel.load(tmp_path / "new" / line["mask"]), nibabel.load(source)
    assert mask.shape == image.shape
    assert np.array_equal(mask.affine, image.affine)
    labels = np.asarray(mask.dataobj)
    assert min(dice_by_hand(labels, np.asarray(nibabel.load(balls / "mask3.nii.gz").dataobj), v) for v in (1, 2)) > 0.8
    assert float(line["ml:large"]) == pytest.approx((labels == 1).sum() * 1.5 / 1000, abs=1e-3)
    assert call("predict", run, source).exit_code == 2
    assert call("search", tmp_path / "seg.yaml").exit_code == 2
    assert call("compare", tmp_path / "seg.yaml").exit_code == 2
    refused = call("predict", run, source, "--out", tmp_path / "new", "--as", "seg")
    assert refused.exit_code == 3
    assert "--as nifti" in refused.output


def test_an_interrupted_training_ends_in_the_same_model(balls, tmp_path, monkeypatch):
    for name in ("straight", "stopped"):
        (tmp_path / f"{name}.yaml").write_text(config(balls, tmp_path / name, recipe="{method: full, freeze_epochs: 0, "
            "epochs: 2, patience: 2, lr: 0.01, backbone_lr_scale: 1}"))  # fmt: skip
    assert call("train", tmp_path / "straight.yaml", "-q").exit_code == 0
    steps, step = [], _Training._step

    def stop_later(self, *arguments):
        steps.append(1)
        if len(steps) == 14:
            os.kill(os.getpid(), signal.SIGTERM)
        step(self, *arguments)

    monkeypatch.setattr(_Training, "_step", stop_later)
    assert call("train", tmp_path / "stopped.yaml", "-q").exit_code == 75
    assert not (tmp_path / "stopped" / "report.html").exists()
    assert call("evaluate", tmp_path / "stopped", "-q").exit_code != 0
    assert call("train", tmp_path / "stopped.yaml", "-q").exit_code == 0
    assert len(steps) == 20
    for file in ("fold-0/model.safetensors", "segmentation.csv", "segmentation.json"):
        assert (tmp_path / "straight" / file).read_bytes() == (tmp_path / "stopped" / file).read_bytes()

    found = call("compare", tmp_path / "straight", tmp_path / "stopped", "--out", tmp_path / "c")
    assert found.exit_code == 0, found.output
    record = json.loads((tmp_path / "c" / "compare.json").read_text())
    assert record["cases"] == 2
    gaps = record["runs"][0]["differences"]
    assert [gaps[s][k]["value"] for s in ("large", "small") for k in ("dice", "nsd", "hd95")] == [0.0] * 6
    worse = (tmp_path / "stopped" / "segmentation.csv").read_text().splitlines()
    at = worse[0].split(",").index("dice")
    lower = [line.split(",") for line in worse[1:]]
    changed = [",".join([*row[:at], str(float(row[at]) - 0.25), *row[at + 1 :]]) for row in lower]
    (tmp_path / "stopped" / "segmentation.csv").write_text("\n".join([worse[0], *changed]) + "\n")
    call("compare", tmp_path / "straight", tmp_path / "stopped", "--out", tmp_path / "c")
    gaps = json.loads((tmp_path / "c" / "compare.json").read_text())["runs"][0]["differences"]
    assert gaps["small"]["dice"]["value"] == pytest.approx(-0.25)
    page = (tmp_path / "c" / "compare.html").read_text()
    assert page.count("−0.250") >= 4
    assert not re.findall(r"https?://|<script", page)
    assert read_segmented(tmp_path / "straight").structures == ("large", "small")


def test_folds_test_every_case_once_and_other_languages_write_the_page(balls, tmp_path):
    text = config(balls, tmp_path / "run", split="{folds: 2, val: 0.3}", report="{language: de}",
                  recipe="{method: full, freeze_epochs: 0, epochs: 1}")  # fmt: skip
    (tmp_path / "seg.yaml").write_text(text)
    done = call("train", tmp_path / "seg.yaml", "-q")
    assert done.exit_code == 0, done.output
    rows = list(csv.DictReader((tmp_path / "run" / "segmentation.csv").open()))
    assert len({r["case"] for r in rows}) == 10
    assert len(rows) == 20
    page = (tmp_path / "run" / "report.html").read_text()
    assert '<html lang="de">' in page
    assert page.count('class="outlined"') == 30  # the ten worst, three planes each


def test_plain_images_are_segmented_too(tmp_path):
    rng = np.random.default_rng(1)
    rows = ["case_id,patient_id,image,mask,part"]
    for i in range(8):
        labels = np.zeros((40, 36), np.uint8)
        row, col = rng.integers(4, 20, 2)
        labels[row : row + 10, col : col + 12] = 1
        image = (labels * 120 + rng.integers(0, 60, labels.shape)).astype(np.uint8)
        Picture.fromarray(image).save(tmp_path / f"i{i}.png")
        Picture.fromarray(labels).save(tmp_path / f"m{i}.png")
        rows.append(f"a{i},b{i},i{i}.png,m{i}.png,{'train' if i < 4 else 'val' if i < 6 else 'test'}")
    (tmp_path / "cohort.csv").write_text("\n".join(rows))
    text = config(tmp_path, tmp_path / "run", plan="{width: 4, steps_per_epoch: 10}", structures="[square]")
    (tmp_path / "seg.yaml").write_text(text)
    done = call("train", tmp_path / "seg.yaml", "-q")
    assert done.exit_code == 0, done.output
    assert (
        json.loads((tmp_path / "run" / "segmentation.json").read_text())["structures"]["square"]["dice"]["value"] > 0.8
    )
    made = call("predict", tmp_path / "run", tmp_path / "i0.png", "--out", tmp_path / "new")
    assert made.exit_code == 0, made.output
    written = np.asarray(Picture.open(next((tmp_path / "new").glob("*.png"))))
    assert dice_by_hand(written, np.asarray(Picture.open(tmp_path / "m0.png")), 1) > 0.8


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"plan": "{pach: [16, 16, 16]}"}, ("plan.pach", "line 12", "did you mean 'patch'?")),
        ({"plan": "{batch_size: 1}"}, ("plan.batch_size", "line 12", "greater than or equal to 2")),
        ({"evaluate": "{tolerance: 1}"}, ("evaluate.tolerance", "did you mean 'tolerance_mm'?")),
        ({"model": "{weight: random/unet}"}, ("model.weight", "did you mean 'weights'?")),
        ({"prepare": "{size: 32}"}, ("there is no key 'prepare'", "line 13")),
        ({"cohort": "{medmnist: a.npz}"}, ("from a table", "mask: COLUMN")),
        ({"task": "classification"}, ("plan", "line")),
    ],
)
def test_what_is_wrong_in_a_config_is_named_with_its_line(changes, said, tmp_path):
    with pytest.raises(ConfigError) as error:
        Experiment.from_text(config(tmp_path, tmp_path / "run", **changes))
    assert all(text in str(error.value) for text in said), error.value


def test_structures_are_named_one_for_every_label():
    assert names_of({2: "b", 1: "a"}) == names_of(["a", "b"]) == ("a", "b")
    for wrong in (None, {}, {1: "a", 3: "b"}, {0: "background"}, ["a", "a"], [""]):
        with pytest.raises(ConfigError):
            names_of(wrong)
    with pytest.raises(ConfigError, match="structures belong to masks"):
        Experiment.from_text("cohort: {csv: a.csv}\nmodel: {weights: random/resnet18}\nstructures: [a]\nout: b\n")


def test_missing_masks_and_masks_beside_their_image_are_refused(balls, tmp_path):
    def refused(**changes):
        (tmp_path / "seg.yaml").write_text(config(balls, tmp_path / "run", **changes))
        done = call("train", tmp_path / "seg.yaml", "-q")
        assert not (tmp_path / "run" / "report.html").exists()
        return done.exit_code, done.output

    code, said = refused(structures="[large]")  # the masks hold a second label
    assert (code, "labels that are no class" in said) == (3, True), said
    code, said = refused(cohort="{csv: cohort.csv, part: part, mask: labels}")
    assert (code, "labels" in said) == (3, True), said
    table = (balls / "cohort.csv").read_text()
    (balls / "swapped.csv").write_text(table.replace("mask0.nii", "mask1.nii"))
    code, said = refused(cohort="{csv: swapped.csv, part: part}")
    assert (code, "mask" in said) == (3, True), said
    moved = nibabel.load(balls / "mask0.nii.gz")
    shifted = moved.affine.copy()
    shifted[0, 3] += 5
    nibabel.save(nibabel.Nifti1Image(np.asarray(moved.dataobj), shifted), balls / "moved.nii.gz")
    (balls / "moved.csv").write_text(table.replace("mask0.nii", "moved.nii"))
    code, said = refused(cohort="{csv: moved.csv, part: part}")
    assert (code, "another grid" in said) == (3, True), said
    code, said = refused(cohort="{csv: cohort.csv, part: part}", split="{test: 0, val: 0.3}")
    assert code == 2, said


def test_copies_across_parts_stop_the_training(balls, tmp_path):
    table = (balls / "cohort.csv").read_text()
    (balls / "leak.csv").write_text(table.replace("image9.nii", "image0.nii").replace("mask9.nii", "mask0.nii"))
    (tmp_path / "seg.yaml").write_text(config(balls, tmp_path / "run", cohort="{csv: leak.csv, part: part}"))
    done = call("train", tmp_path / "seg.yaml", "-q")
    assert done.exit_code == 3
    assert "the audit stops here" in done.output


def test_what_is_given_changes_the_rest_of_the_plan():
    found = Fingerprint(n=40, shape=(60, 60, 30), spacing_mm=(1, 1, 2))
    coarse = resolve(found, {"spacing_mm": (2, 2, 2)})
    assert coarse.patch[0] <= 32
    assert coarse.spacing_mm == (2, 2, 2)
    small = resolve(found, {"patch": (24, 24, 8)})
    assert small.patch == (24, 24, 8)
    assert all(p % np.prod([s[i] for s in small.strides]) == 0 for i, p in enumerate(small.patch))
    flat = resolve(found, {"patch": (24, 24)})  # the slices of the volumes
    assert (flat.dims, flat.patch, flat.spacing_mm) == (2, (24, 24), (1, 1))
    with pytest.raises(ConfigError):
        resolve(found, {"patch": (24, 24, 24, 24)})
    with pytest.raises(ConfigError):
        resolve(found, {"spacing_mm": (1, 1)})


def test_the_plan_section_has_every_field_of_a_plan():
    assert set(sections("csv", "segmentation")["plan"].model_fields) == set(Plan.model_fields)


def test_a_job_needs_masks():
    cases = [
        mt.cohort.Case(f"c{i}", f"p{i}", np.zeros((4, 4, 4)), part=p) for i, p in enumerate(("train", "val", "test"))
    ]
    cohort = mt.Cohort(tuple(cases))
    with pytest.raises(DataError, match="no mask"):
        prepare_job(cohort, mt.Split.from_column(cohort), structures=["a"], plan={}, model={})


def test_a_dicom_series_gets_a_dicom_seg_on_its_voxels(balls, shared, tmp_path):
    pytest.importorskip("highdicom")
    import pydicom

    from medtransfer.io import read
    from medtransfer.io.segments import read_segmentation

    text = config(balls, tmp_path / "run", recipe="{method: full, freeze_epochs: 0, epochs: 1}")
    (tmp_path / "seg.yaml").write_text(text)
    assert call("train", tmp_path / "seg.yaml", "-q").exit_code == 0
    series = next((shared / "hippocampus" / "dicom_test" / "Study1").rglob("*.dcm")).parent
    masks = {}
    for form in ("nifti", "seg"):
        made = call("predict", tmp_path / "run", series, "--out", tmp_path / form, "--as", form)
        assert made.exit_code == 0, made.output
        masks[form] = tmp_path / form / next(csv.DictReader(made.output.splitlines()))["mask"]
    back, off = read_segmentation(masks["seg"], read(series))
    assert off < 0.01
    assert back.any()
    labels = read(masks["nifti"], labels=True).array  # segments are numbered without gaps: compared by name
    named = {s.SegmentNumber: s.SegmentLabel for s in pydicom.dcmread(masks["seg"]).SegmentSequence}
    assert {"large": 1, "small": 2}.keys() >= set(named.values())
    for number, name in named.items():
        assert np.array_equal(back == number, labels == {"large": 1, "small": 2}[name])


@pytest.mark.slow
def test_a_few_real_cases(shared, tmp_path):
    source = shared / "hippocampus"
    rows = [r for r in csv.DictReader((source / "cohort.csv").open()) if r["split"] == "train"][:14]
    parts = ["train"] * 8 + ["val"] * 2 + ["test"] * 4
    lines = [",".join([*(r[k] for k in ("case_id", "patient_id", "image", "mask")), part])
             for r, part in zip(rows, parts, strict=True)]  # fmt: skip
    (tmp_path / "few.csv").write_text("\n".join(["case_id,patient_id,image,mask,part", *lines]))
    text = config(tmp_path, tmp_path / "run", structures="{1: anterior, 2: posterior}",
                  cohort=f"{{csv: few.csv, root: {source}, part: part}}",
                  plan="{mirror: [x], width: 8, steps_per_epoch: 20}",
                  recipe="{method: full, freeze_epochs: 0, epochs: 6, lr: 0.005, backbone_lr_scale: 1}")  # fmt: skip
    (tmp_path / "seg.yaml").write_text(text)
    done = call("train", tmp_path / "seg.yaml", "-q")
    assert done.exit_code == 0, done.output
    found = json.loads((tmp_path / "run" / "segmentation.json").read_text())
    assert found["all"]["dice"]["value"] > 0.5
