"""What stands beside a segmentation's report: other tools, masks used again, cards, another place's cases, one case."""

import base64
import csv
import gzip
import io
import json
import re
from pathlib import Path
from xml.etree import ElementTree

import nibabel
import numpy as np
import pytest
from click.testing import CliRunner
from small_masks import config, write_balls

from medtransfer.cli import cli
from medtransfer.segment.run import SegmentationRun

TOOL = {8: 0.61, 9: 0.67}  # another tool's Dice of the test part


def call(*arguments):
    return CliRunner().invoke(cli, [*map(str, arguments)])


def dice_by_hand(found, reference, value):
    a, b = found == value, reference == value
    return 2 * (a & b).sum() / (a.sum() + b.sum())


def array(path):
    return np.asarray(nibabel.load(path).dataobj)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with ``balls/`` and the run ``run/``; pseudonyms are of one key."""
    base = tmp_path_factory.mktemp("reports")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("home", "cache"):
            patch.setenv(f"MEDTRANSFER_{name.upper()}", str(base / name))
        balls = write_balls(base / "balls")
        lines = (balls / "cohort.csv").read_text().splitlines()
        rows = [f"{line},{TOOL.get(i, '')}" for i, line in enumerate(lines[1:])]
        (balls / "cohort.csv").write_text("\n".join([lines[0] + ",tool_dice", *rows]) + "\n")
        text = config(balls, base / "run", evaluate="{tolerance_mm: 1, bootstrap: 100, beside: {tool_dice: large}}")
        (base / "seg.yaml").write_text(text)
        done = call("train", base / "seg.yaml", "-q")
        assert done.exit_code == 0, done.output
    return base


@pytest.fixture(autouse=True)
def _same_key(request, monkeypatch):
    if "trained" in request.fixturenames:
        base = request.getfixturevalue("trained")
        for name in ("home", "cache"):
            monkeypatch.setenv(f"MEDTRANSFER_{name.upper()}", str(base / name))


def by_file(trained):
    """Pseudonym of each tested case -> its number, found by shape and content as a user would."""
    private = list(csv.DictReader((trained / "run" / "private" / "ids.csv").open()))
    return {r["case"]: int(r["case_id"].split("-")[1]) for r in private if r["case_id"] in ("scan-8", "scan-9")}


def test_another_tools_dice_stands_beside_the_runs(trained):
    run = trained / "run"
    found = json.loads((run / "segmentation.json").read_text())["beside"]
    assert len(found) == 1
    (row,) = found
    numbers = by_file(trained)
    gaps = []
    for pair in row["pairs"]:
        number = numbers[pair["case"]]
        own = dice_by_hand(
            array(run / "masks" / f"{pair['case']}.nii.gz"), array(trained / "balls" / f"mask{number}.nii.gz"), 1
        )
        assert pair["ours"] == pytest.approx(own)
        assert pair["theirs"] == TOOL[number]
        gaps.append(own - TOOL[number])
    assert row["difference"]["value"] == pytest.approx(np.mean(gaps))
    assert row["p"] == 0.5  # two patients, both differences of one sign: 2 of 4 exchanges
    page = (run / "report.html").read_text()
    assert '<section id="beside">' in page
    assert "tool_dice" in page
    refused = call("evaluate", run, "-q", "--set", "evaluate.beside={tool_dice: liver}")
    assert (refused.exit_code, "large, small, all" in refused.output) == (2, True), refused.output
    missing = call("evaluate", run, "-q", "--set", "evaluate.beside={other: large}")
    assert (missing.exit_code, "other" in missing.output) == (3, True), missing.output


def test_masks_that_are_there_are_not_made_again(trained, monkeypatch):
    run = trained / "run"
    before = (run / "segmentation.csv").read_bytes()
    made = []
    segment = SegmentationRun.segment

    def counted(self, image, **keywords):
        made.append(keywords["where"])
        return segment(self, image, **keywords)

    monkeypatch.setattr(SegmentationRun, "segment", counted)
    assert call("report", run, "-q").exit_code == 0
    assert made == []
    assert (run / "segmentation.csv").read_bytes() == before

    first, second = sorted((run / "masks").glob("*.nii.gz"))
    first.write_bytes(second.read_bytes())  # a file that is not as it was written
    assert call("report", run, "-q").exit_code == 0
    assert made == [first.name.removesuffix(".nii.gz")]
    assert (run / "segmentation.csv").read_bytes() == before

    made.clear()
    finish = run / "fold-0" / "finish.json"
    kept = finish.read_text()
    finish.write_text(kept + "\n")  # post-processing of another content
    assert call("report", run, "-q").exit_code == 0
    assert len(made) == 2
    finish.write_text(kept)

    made.clear()
    source = trained / "balls" / f"image{by_file(trained)[second.name.removesuffix('.nii.gz')]}.nii.gz"
    stored = source.read_bytes()
    image = nibabel.load(source)
    nibabel.save(nibabel.Nifti1Image(image.get_fdata().astype(np.float32) + 1, image.affine), source)
    assert call("report", run, "-q").exit_code == 0
    assert len(made) == 2  # of one the image changed, of the other the rule changed back
    source.write_bytes(stored)
    assert call("report", run, "-q").exit_code == 0
    assert (run / "segmentation.csv").read_bytes() == before


def test_names_of_labels_stand_beside_the_masks(trained, tmp_path):
    assert '"small"' in (trained / "run" / "masks" / "labels.txt").read_text()
    made = call("predict", trained / "run", trained / "balls" / "image1.nii.gz", "--out", tmp_path / "new")
    assert made.exit_code == 0, made.output
    assert {p.name for p in (tmp_path / "new").iterdir() if p.suffix != ".gz"} == {"labels.txt", "labels.ctbl"}


def test_the_model_cards_say_what_the_page_says(trained):
    run = trained / "run"
    card = (run / "model_card.md").read_text()
    found = json.loads((run / "segmentation.json").read_text())
    for name in ("large", "small"):
        assert re.search(rf"\| {name}: Dice[^|]* \| {found['structures'][name]['dice']['value']:.3f}", card), card
    assert "Two balls" in card
    assert "subject-" not in card
    root = ElementTree.fromstring((run / "model_card.xml").read_text())
    assert "large, small" in "".join(root.itertext())
    assert "calibration and operating point" not in "".join(root.itertext())


def test_another_places_cases_are_segmented_and_scored(trained, tmp_path):
    away = write_balls(tmp_path / "away", cases=6, seed=5)
    text = (away / "cohort.csv").read_text().replace("subject-", "other-").replace("scan-", "away-")
    (away / "cohort.csv").write_text(text)
    run = trained / "run"
    done = call("evaluate", run, "-q", "--cohort", away / "cohort.csv", "--root", away, "--name", "St Mary")
    assert done.exit_code == 0, done.output
    out = run / "external-St-Mary"
    rows = list(csv.DictReader((out / "segmentation.csv").open()))
    assert len(rows) == 12
    ids = {r["case"]: r["case_id"] for r in csv.DictReader((run / "private" / "external-St-Mary.csv").open())}
    for row in rows:
        number, value = ids[row["case"]].split("-")[1], {"large": 1, "small": 2}[row["structure"]]
        own = dice_by_hand(array(out / "masks" / f"{row['case']}.nii.gz"), array(away / f"mask{number}.nii.gz"), value)
        assert float(row["dice"]) == pytest.approx(own)
    page = (out / "report.html").read_text()
    assert "External validation on St-Mary" in page
    assert 'id="beside"' not in page
    assert "other-" not in page
    assert (out / "model_card.md").is_file()
    assert call("evaluate", run, "-q", "--cohort", away / "cohort.csv", "--root", away, "--at-least", "1.01",
                "--name", "b").exit_code == 5  # fmt: skip
    assert call("evaluate", run, "--cohort", away / "cohort.csv", "--root", away, "--recalibrate", "0.5").exit_code == 2


def test_cases_that_were_trained_on_are_no_external_validation(trained, tmp_path):
    run, balls = trained / "run", trained / "balls"
    same = call("evaluate", run, "-q", "--cohort", balls / "cohort.csv", "--root", balls)
    assert (same.exit_code, "training patient" in same.output) == (3, True), same.output
    renamed = (balls / "cohort.csv").read_text().replace("subject-", "other-")
    (tmp_path / "renamed.csv").write_text(renamed)
    copies = call("evaluate", run, "-q", "--cohort", tmp_path / "renamed.csv", "--root", balls)
    assert (copies.exit_code, "voxel by voxel" in copies.output) == (3, True), copies.output
    assert "other-" not in copies.output


def volumes_of(page):
    """What a page shows, decoded as the viewer would."""
    text = re.search(r'id="viewer-data">(.*?)</script>', page, re.S)[1]
    data = json.loads(text)
    for scene in data["scenes"]:
        for kind, packed in scene["layers"].items():
            raw = gzip.decompress(base64.b64decode(packed))
            scene["layers"][kind] = nibabel.Nifti1Image.from_stream(io.BytesIO(raw))
    return data


def test_a_case_of_the_run_is_shown_on_a_page_of_its_own(trained, tmp_path):
    alias, number = next(iter(by_file(trained).items()))
    made = call("view", alias, "--run", trained / "run", "--no-open")
    assert made.exit_code == 0, made.output
    path = Path(made.output.strip())
    assert path == trained / "run" / "views" / f"{alias}.html"
    assert path.stat().st_mode & 0o077 == 0
    page = path.read_text()
    data = volumes_of(page)
    assert data["structures"] == ["large", "small"]
    (scene,) = data["scenes"]
    image = nibabel.as_closest_canonical(nibabel.load(trained / "balls" / f"image{number}.nii.gz"))
    reference = nibabel.as_closest_canonical(nibabel.load(trained / "balls" / f"mask{number}.nii.gz"))
    predicted = nibabel.as_closest_canonical(nibabel.load(trained / "run" / "masks" / f"{alias}.nii.gz"))
    for kind, wanted in (("image", image), ("reference", reference), ("predicted", predicted)):
        shown = scene["layers"][kind]
        np.testing.assert_allclose(shown.affine, wanted.affine, atol=1e-5)
        np.testing.assert_allclose(shown.get_fdata(), wanted.get_fdata(), atol=0.02 if kind == "image" else 0)
    assert page.count('class="outlined"') == 3
    assert "subject-" not in page
    assert "scan-" not in page
    assert str(trained) not in page
    assert not re.findall(r'(?:src|href)="(?!#|data:)', page)
    assert call("view", "case-nobody", "--run", trained / "run", "--no-open").exit_code != 0
    anew = call("view", trained / "balls" / "image0.nii.gz", "--run", trained / "run", "--no-open", "--out",
                tmp_path / "new.html")  # fmt: skip
    assert anew.exit_code == 0, anew.output
    assert list(volumes_of((tmp_path / "new.html").read_text())["scenes"][0]["layers"]) == ["image", "predicted"]


def test_a_file_is_shown_with_masks_over_it(trained, tmp_path):
    balls = trained / "balls"
    (tmp_path / "labels.txt").write_text('    1  1 2 3  1 1 1  "<b>liver</b>"\n')
    mask = nibabel.load(balls / "mask0.nii.gz")
    nibabel.save(mask, tmp_path / "Doe_Jane.nii.gz")
    made = call("view", balls / "image0.nii.gz", tmp_path / "Doe_Jane.nii.gz", "--reference", balls / "mask0.nii.gz",
                "--no-open", "--out", tmp_path / "a.html")  # fmt: skip
    assert made.exit_code == 0, made.output
    page = (tmp_path / "a.html").read_text()
    assert page.count("1.000") == 2  # the Dice of a mask with itself
    assert "Doe_Jane" not in page
    assert "image0" not in page
    assert "<b>liver" not in page
    assert volumes_of(page)["structures"] == ["<b>liver</b>", "2"]
    size = np.prod(nibabel.load(balls / "mask0.nii.gz").header.get_zooms())
    assert f"{(array(balls / 'mask0.nii.gz') == 1).sum() * size / 1000:.3g} ml" in page

    one, two = (mask.__class__((array(balls / "mask0.nii.gz") == v).astype(np.uint8), mask.affine) for v in (1, 2))
    nibabel.save(one, tmp_path / "large.nii.gz")
    nibabel.save(two, tmp_path / "small.nii.gz")
    made = call("view", balls / "image0.nii.gz", tmp_path / "large.nii.gz", tmp_path / "small.nii.gz",
                "--names", "large, small", "--no-open", "--out", tmp_path / "b.html")  # fmt: skip
    assert made.exit_code == 0, made.output
    data = volumes_of((tmp_path / "b.html").read_text())
    assert data["structures"] == ["large", "small"]
    assert np.array_equal(np.unique(data["scenes"][0]["layers"]["predicted"].get_fdata()), [0, 1, 2])
    small = call("view", balls / "image0.nii.gz", "--limit-mb", "0.002", "--no-open", "--out", tmp_path / "c.html")
    assert small.exit_code == 0, small.output
    layers = volumes_of((tmp_path / "c.html").read_text())["scenes"][0]["layers"]
    assert list(layers) == ["image"]
    assert np.prod(layers["image"].shape) < np.prod(mask.shape) / 2
    assert call("view", balls / "nowhere.nii.gz", "--no-open").exit_code == 3


def test_a_dicom_series_is_shown_with_a_dicom_seg_over_it(shared, tmp_path):
    pytest.importorskip("highdicom", reason="highdicom is not installed")
    import pydicom

    from medtransfer.io.scan import scan
    from medtransfer.out.seg import write_seg

    series = next((shared / "hippocampus" / "dicom_test" / "Study1").rglob("*.dcm")).parent
    record = next(r for r in scan(series, progress=False) if r.kind == "volume")
    labels = np.zeros(record.shape[:3], np.uint8)
    labels[10:20, 12:30, 8:15] = 1
    labels[5:9, 12:30, 8:15] = 2
    seg = write_seg(labels, record, tmp_path / "mask.dcm", structures=("head", "tail"))
    made = call("view", series, seg, "--no-open", "--out", tmp_path / "a.html")
    assert made.exit_code == 0, made.output
    page = (tmp_path / "a.html").read_text()
    data = volumes_of(page)
    assert data["structures"] == ["head", "tail"]
    (scene,) = data["scenes"]
    assert np.array_equal(scene["layers"]["predicted"].get_fdata(), labels)
    image = record.read()
    np.testing.assert_allclose(scene["layers"]["predicted"].affine, image.geometry.affine, atol=1e-4)
    np.testing.assert_allclose(scene["layers"]["image"].get_fdata(), image.array, rtol=1e-3, atol=0.1)
    header = pydicom.dcmread(next(series.glob("*.dcm")), stop_before_pixels=True)
    for keyword in ("PatientName", "PatientID", "StudyInstanceUID", "SeriesInstanceUID"):
        value = str(header.get(keyword, ""))
        assert len(value) < 4 or value not in page, keyword
