"""What viewers show of what we write, by their own readers: dcmqi (3D Slicer), ITK (ITK-SNAP) and Cornerstone (OHIF).

dcmqi and SimpleITK come from the package index, OHIF's libraries by ``npm install --prefix tests/services/ohif``
(``tests/services/viewers.sh`` installs all of them); without them these tests are skipped.
"""

import base64
import json
import shutil
import subprocess
import warnings
from importlib.resources import files as inside
from pathlib import Path

import nibabel
import numpy as np
import pytest
from small_dicom import write_series
from test_out import TRUTH, marked, regular_volumes

from medtransfer.io import read
from medtransfer.io.scan import scan
from medtransfer.out.names import colour
from medtransfer.out.nifti import write_mask

pydicom = pytest.importorskip("pydicom")
OHIF = Path(__file__).parents[1] / "services" / "ohif"
NAMES = ("one", "two", "absent")
JAPANESE = "Yamada^Tarou=山田^太郎=やまだ^たろう"


def volumes(folder):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = [r for r in scan(folder, progress=False) if r.kind == "volume" and r.ok]
        return [(record, record.read()) for record in found]


def written(record, labels, folder):
    pytest.importorskip("highdicom", reason="the extra dicom-out is not installed")
    from medtransfer.out.seg import write_seg

    return write_seg(labels, record, folder / "mask.dcm", structures=NAMES)


def dcmqi(tool, *arguments):
    package = pytest.importorskip("dcmqi", reason="3D Slicer's reader dcmqi is not installed")
    program = inside(package) / "bin" / tool
    subprocess.run([str(program), *map(str, arguments)], check=True, capture_output=True, timeout=120)


def in_slicer(seg, folder):
    """Masks by segment number as 3D Slicer's reader gives them, and what it knows of each segment."""
    folder.mkdir()
    dcmqi("segimage2itkimage", "--inputDICOM", seg, "--outputDirectory", folder, "--outputType", "nii", "--prefix", "s")
    told = json.loads((folder / "s-meta.json").read_text())["segmentAttributes"]
    masks = {int(p.name.split("-")[1].split(".")[0]): nibabel.load(p) for p in folder.glob("s-*.nii.gz")}
    return masks, {s["labelID"]: s for group in told for s in group}


def in_ohif(seg, sources, folder):
    """Segments, and for each source image its plane and labels ``[rows, columns]``, as OHIF's reader gives them."""
    if shutil.which("node") is None or not (OHIF / "node_modules").is_dir():
        pytest.skip("OHIF's libraries are not installed (npm install --prefix tests/services/ohif)")
    headers = [pydicom.dcmread(f, stop_before_pixels=True).to_json_dict() for f in sources]
    (folder / "headers.json").write_text(json.dumps(headers))
    command = ["node", OHIF / "segments.mjs", seg, folder / "headers.json", folder / "shown.json"]
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    shown = json.loads((folder / "shown.json").read_text())
    for image in shown["images"]:
        pixels = np.frombuffer(base64.b64decode(image["labels"]), np.uint8)
        image["labels"] = pixels.reshape(image["rows"], image["columns"])
    return shown["segments"], shown["images"]


def laid_out(planes, shape, affine):
    """Labels of planes on a grid: pixels to millimetres by the DICOM standard's formula, C.7.6.2.1.1."""
    found = np.zeros(shape, np.uint8)
    for plane in planes:
        rows, columns = np.nonzero(plane["labels"])
        lps = (
            np.array(plane["imagePositionPatient"])[:, None]
            + np.outer(plane["rowCosines"], columns * plane["columnPixelSpacing"])
            + np.outer(plane["columnCosines"], rows * plane["rowPixelSpacing"])
        )
        voxels = nibabel.affines.apply_affine(np.linalg.inv(affine), (lps * [[-1], [-1], [1]]).T)
        assert np.abs(voxels - np.rint(voxels)).max(initial=0) < 0.01
        found[tuple(np.rint(voxels).astype(int).T)] = plane["labels"][rows, columns]
    return found


def japanese(folder):
    """A series of a Japanese scanner: three groups of a name in code extensions."""
    values = np.arange(6 * 8 * 10).reshape(6, 8, 10)
    write_series(folder, values, patient="P1", SpecificCharacterSet=["", "ISO 2022 IR 87"], PatientName=JAPANESE)
    return volumes(folder)[0]


@pytest.mark.parametrize("name", regular_volumes())
def test_3d_slicer_has_every_voxel_at_its_place(name, tmp_path):
    for i, (record, image) in enumerate(volumes(TRUTH / "open" / name)):
        labels = marked(image.spatial_shape)
        masks, told = in_slicer(written(record, labels, tmp_path), tmp_path / str(i))
        assert set(masks) == set(told) == {1, 2, 3}
        for number, mask in masks.items():
            mask = nibabel.as_closest_canonical(mask)
            assert np.array_equal(np.asarray(mask.dataobj) > 0, labels == number)
            assert np.abs(mask.affine - image.geometry.affine).max() < 1e-3  # mm


def test_3d_slicer_has_names_and_colours_of_all_segments_of_an_empty_mask(tmp_path):
    write_series(tmp_path / "series", np.zeros((4, 8, 10)), patient="P1")
    record, image = volumes(tmp_path / "series")[0]
    masks, told = in_slicer(written(record, np.zeros(image.spatial_shape, np.uint8), tmp_path), tmp_path / "slicer")
    assert [told[i]["SegmentLabel"] for i in (1, 2, 3)] == list(NAMES)
    for number, segment in told.items():  # within the rounding of CIELab to 16 bits
        assert np.abs(np.subtract(segment["recommendedDisplayRGBValue"], colour(number))).max() <= 1
    assert not any(np.asarray(m.dataobj).any() for m in masks.values())


def test_3d_slicer_has_the_measurements_of_a_report(tmp_path):
    pytest.importorskip("highdicom", reason="the extra dicom-out is not installed")
    from medtransfer.out.sr import write_sr

    record, image = japanese(tmp_path / "series")
    seg = written(record, marked(image.spatial_shape), tmp_path)
    report = write_sr(
        record,
        tmp_path / "sr.dcm",
        volumes_ml={"two": 12.5},
        seg=seg,
        probabilities={"ill": 0.25},
        values={"age": 61.5},
    )
    dcmqi("tid1500reader", "--inputDICOM", report, "--outputMetadata", tmp_path / "sr.json")
    told = json.loads((tmp_path / "sr.json").read_text())
    groups = {g["TrackingIdentifier"]: g for g in told["Measurements"]}
    said = {
        name: (float(item["value"]), item["units"]["CodeValue"])
        for name, group in groups.items()
        for item in group["measurementItems"]
    }
    assert said == {"two": (12.5, "mL"), "ill": (0.25, "1"), "age": (61.5, "1")}
    assert groups["two"]["ReferencedSegment"] == 2
    assert groups["two"]["segmentationSOPInstanceUID"] == pydicom.dcmread(seg).SOPInstanceUID
    assert told["VerificationFlag"] == "UNVERIFIED"


# Siemens' mosaics are left out: to OHIF a mosaic is one picture, and it has no slices to lay a mask on
@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in regular_volumes() if "mosaic" not in n])
def test_ohif_lays_every_voxel_on_its_image(name, tmp_path):
    for record, image in volumes(TRUTH / "open" / name):
        labels = marked(image.spatial_shape)
        segments, shown = in_ohif(written(record, labels, tmp_path), record.files, tmp_path)
        assert [(s["SegmentNumber"], s["SegmentLabel"]) for s in segments] == list(enumerate(NAMES, start=1))
        assert np.array_equal(laid_out(shown, labels.shape, image.geometry.affine), labels)


def test_ohif_shows_a_mask_of_a_japanese_patient(tmp_path):
    record, image = japanese(tmp_path / "series")
    labels = marked(image.spatial_shape)
    seg = written(record, labels, tmp_path)
    assert pydicom.dcmread(seg).PatientName == JAPANESE
    _, shown = in_ohif(seg, record.files, tmp_path)
    assert np.array_equal(laid_out(shown, labels.shape, image.geometry.affine), labels)


CHARSETS = [None, "", "ISO_IR 6", "ISO_IR 13", "GBK", "ISO_IR 999", ["ISO_IR 100", "ISO_IR 144"],
            ["ISO 2022 IR 6", "ISO 2022 IR 149"]]  # fmt: skip


@pytest.mark.parametrize("charset", CHARSETS)
@pytest.mark.filterwarnings("ignore")
def test_names_of_structures_fit_whatever_character_set_the_images_are_in(charset, tmp_path):
    for file in write_series(tmp_path / "series", np.zeros((4, 8, 10)), patient="P1"):
        header = pydicom.dcmread(file)
        header.SpecificCharacterSet = charset
        header.save_as(file)
    record, image = volumes(tmp_path / "series")[0]
    pytest.importorskip("highdicom", reason="the extra dicom-out is not installed")
    from medtransfer.out.seg import write_seg

    seg = write_seg(
        np.zeros(image.spatial_shape, np.uint8), record, tmp_path / "seg.dcm", structures=("Körper", "肝臓")
    )
    found = pydicom.dcmread(seg)
    assert found.PatientName == "P1^Test"
    assert [s.SegmentLabel for s in found.SegmentSequence] == ["Körper", "肝臓"]


@pytest.mark.parametrize("name", regular_volumes())
def test_itk_snap_has_every_voxel_at_its_place(name, tmp_path):
    sitk = pytest.importorskip("SimpleITK", reason="ITK-SNAP's reader ITK is not installed")
    for _, image in volumes(TRUTH / "open" / name):
        labels = marked(image.spatial_shape)
        write_mask(labels, image, tmp_path / "mask.nii.gz")
        same_place(sitk.ReadImage(tmp_path / "mask.nii.gz"), labels, image.geometry.affine)


@pytest.mark.parametrize("qform", ["none", "as the sform", "elsewhere"])
@pytest.mark.parametrize("axes", ["RAS", "LPS", "PSR", "IRP", "SAL"])
@pytest.mark.filterwarnings("ignore::medtransfer.errors.MedTransferWarning")
def test_itk_snap_has_a_mask_of_a_nifti_file_on_that_files_grid(axes, qform, tmp_path):
    sitk = pytest.importorskip("SimpleITK", reason="ITK-SNAP's reader ITK is not installed")
    turned = nibabel.orientations.inv_ornt_aff(nibabel.orientations.axcodes2ornt(tuple(axes)), (5, 6, 7))
    tilt = np.eye(4)
    tilt[1:3, 1:3] = [[np.cos(0.2), -np.sin(0.2)], [np.sin(0.2), np.cos(0.2)]]
    affine = tilt @ np.diag([0.7, 1.3, 4.0, 1.0]) @ turned
    affine[:3, 3] += (-20.5, 33.25, 7)
    source = tmp_path / "image.nii.gz"
    scan_of = nibabel.Nifti1Image(np.zeros((5, 6, 7), np.int16), affine)
    if qform != "none":
        scan_of.set_qform(np.diag([-0.7, 1.3, 4.0, 1.0]) if qform == "elsewhere" else affine, code=1)
    nibabel.save(scan_of, source)
    image = read(source)
    labels = marked(image.spatial_shape)
    write_mask(labels, image, tmp_path / "mask.nii.gz", source=source)
    theirs, ours = sitk.ReadImage(source), sitk.ReadImage(tmp_path / "mask.nii.gz")
    for place in ("GetSize", "GetOrigin", "GetSpacing", "GetDirection"):  # ITK-SNAP refuses a mask on another grid
        assert getattr(ours, place)() == getattr(theirs, place)()
    if qform != "elsewhere":
        same_place(ours, labels, image.geometry.affine)


def same_place(mask, labels, affine):
    """Whether an ITK image has the labels where an affine to RAS+ puts them."""
    import SimpleITK

    values = SimpleITK.GetArrayFromImage(mask).transpose(2, 1, 0)
    direction = np.array(mask.GetDirection()).reshape(3, 3) * mask.GetSpacing()
    index = np.stack(np.indices(values.shape), axis=-1).reshape(-1, 3)
    ras = (index @ direction.T + mask.GetOrigin()) * [-1, -1, 1]
    voxels = nibabel.affines.apply_affine(np.linalg.inv(affine), ras)
    assert np.abs(voxels - np.rint(voxels)).max() < 0.01
    found = labels[tuple(np.rint(voxels).astype(int).T)]
    assert np.array_equal(values.reshape(-1), found)
    assert values.size == labels.size
