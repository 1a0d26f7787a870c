"""Real files: the shared truth set, the bad inputs as wanted, and headers against pydicom on every file at hand."""

from __future__ import annotations

import hashlib
import json
import re
import resource
import tarfile
import time
import warnings
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from dicom_files import SHARED

from medtransfer.errors import MedTransferError, MedTransferWarning
from medtransfer.io import read
from medtransfer.io.header import TAGS
from medtransfer.io.parsed import by_pydicom
from medtransfer.io.scan import scan
from medtransfer.io.tagwalk import read_header

TRUTH, BAD = SHARED / "dicom_truth", SHARED / "bad_inputs"
needs_truth = pytest.mark.skipif(not TRUTH.is_dir(), reason="../shared/dicom_truth is not there")
needs_bad = pytest.mark.skipif(not BAD.is_dir(), reason="../shared/bad_inputs is not there")
CASES = json.loads((TRUTH / "open.json").read_text())["cases"] if TRUTH.is_dir() else []
GDCM_ONLY = ("1.2.840.10008.1.2.4.51", "1.2.840.10008.1.2.4.53", "1.2.840.10008.1.2.4.55")
GDCM_ONLY += ("1.2.840.10008.1.2.4.57", "1.2.840.10008.1.2.4.70")


def load(folder: Path) -> list[tuple[np.ndarray, np.ndarray | None]]:
    """All images of a folder as (array, affine)."""
    return [(im.array, im.geometry.affine) for im in (s.read() for s in scan(folder))]


def differs(array: np.ndarray, affine: np.ndarray | None, wanted: dict, exact: bool) -> bool:
    if list(array.shape) != wanted["shape"]:
        return True
    if affine is not None and wanted.get("affine_ras") is not None:
        if np.abs(affine - np.array(wanted["affine_ras"])).max() > 2e-3:
            return True
        assert nib.orientations.aff2axcodes(affine) == ("R", "A", "S")
    if (
        exact
        and hashlib.sha256(np.ascontiguousarray(array.astype("<f4")).tobytes()).hexdigest() == wanted["sha256_f32"]
    ):
        return False
    if exact and wanted.get("integral"):
        return True
    close = float(wanted.get("atol") or 0) + 1e-5 * max(1e-30, abs(wanted["max"]), abs(wanted["min"]))
    pairs = [(float(array[tuple(at)]), value) for at, value in wanted["probes"]]
    pairs += [(float(array.min()), wanted["min"]), (float(array.max()), wanted["max"])]
    return any(abs(a - b) > close for a, b in pairs)


@needs_truth
@pytest.mark.parametrize("case", CASES, ids=[c["id"] for c in CASES])
def test_truth(case):
    if set(case["transfer_syntax"]) & set(GDCM_ONLY):
        pytest.importorskip("gdcm")
    folder = TRUTH / "open" / case["id"]
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            got = load(folder)
        except MedTransferError:
            got = None
    if case["status"] == "refuse_or_flag":
        assert got is None or any(issubclass(w.category, MedTransferWarning) for w in told)
        return
    assert got is not None
    for wanted in case["expected"]:
        assert not all(differs(a, affine, wanted, case["status"] == "exact") for a, affine in got)


OUTCOMES = {
    "d01_ok": "", "d02_truncated_pixeldata": "001.dcm: truncated.*found 91,072 bytes.*131,072",
    "d03_zero_byte_file": "W 999.dcm: empty file", "d04_nondicom_mixed": "", "d05_dicomdir_inside": "",
    "d06_no_pixelspacing": "missing spacing", "d07_no_iop": "missing orientation",
    "d09_inconsistent_shape": "mixed size",
    "d11_missing_slice": "gap", "d12_per_slice_rescale": "", "d13_dup_slice": "W duplicate",
    "d14_localiser_inside": "W localiser inside", "d15_bad_charset": "W character set", "d17_no_preamble": "",
    "d18_one_file_not_dicom_ext": "W bad.dcm: not DICOM", "d19_huge_rows": "000.dcm: truncated",
    "d21_no_pixeldata": "no pixel data", "d23_unicode_space path äöü 影像": "", "d26_gantry_tilt": "W tilt",
    "d27_mosaic": "", "d29_seg_1bit": "", "d30_shuffled_noext": "", "d31_enhanced_4d": "",
    "n01_ok.nii.gz": "", "n02_nan_inf.nii.gz": "NaN or infinite", "n03_zero_sform.nii.gz": "sform is singular",
    "n05_qform_sform_disagree.nii.gz": "W sform is taken", "n06_codes_zero.nii.gz": "W no orientation",
    "n07_4d.nii.gz": "", "n08_float_labels.nii.gz": "", "n10_truncated.nii.gz": "truncated",
    "n11_huge_dims.nii.gz": "far too large", "n13_scl_slope_nan.nii.gz": "", "n14_scl_slope_zero.nii.gz": "",
    "n16_zero_pixdim.nii.gz": "W pixdim along x, y, z", "n17_empty.nii.gz": "empty file",
    "n19_plain_named_gz.nii.gz": "",
    "n20_2d.nii.gz": "W two-dimensional", "n22_oblique.nii.gz": "W sheared", "n23_uint16_max.nii.gz": "",
}  # fmt: skip


@needs_bad
@pytest.mark.parametrize("name", sorted(OUTCOMES))
def test_bad_inputs_as_wanted(name):
    """'' loads in silence, 'W text' loads with a warning, any other text is the error."""
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            load(BAD / name)
            error = ""
        except MedTransferError as caught:
            error = str(caught)
    texts = [str(w.message) for w in told]
    outcome = OUTCOMES[name]
    if outcome.startswith("W "):
        assert not error
        assert any(re.search(outcome[2:], text) for text in texts)
    elif outcome:
        assert re.search(outcome, error), error
    else:
        assert not error
        assert not texts
    assert time.monotonic() - began < 2
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 * 1024


@needs_bad
def test_bad_inputs_are_all_known():
    assert set(json.loads((BAD / "wanted.json").read_text())) == set(OUTCOMES)


@needs_bad
@pytest.mark.parametrize(
    ("name", "options", "match"),
    [
        ("n07_4d.nii.gz", {"dims": 3}, "3D image is wanted"),
        ("n08_float_labels.nii.gz", {"labels": True}, "whole numbers"),
        ("n20_2d.nii.gz", {"dims": 3}, "3D image is wanted"),
    ],
)
def test_bad_inputs_in_context(name, options, match):
    with pytest.raises(MedTransferError, match=match):
        read(BAD / name, **options)


@needs_bad
def test_bad_inputs_values():
    assert scan(BAD / "d12_per_slice_rescale")[0].read().array.min() == -100
    assert sorted(np.unique(scan(BAD / "d29_seg_1bit")[0].read().array)) == [0, 1]
    assert scan(BAD / "d27_mosaic")[0].read().array.shape == (35, 64, 64, 2)
    assert scan(BAD / "d31_enhanced_4d")[0].read().array.shape == (64, 64, 6, 4)
    assert read(BAD / "n23_uint16_max.nii.gz").array.max() == 65535
    assert scan(BAD / "d04_nondicom_mixed").skipped == {"not DICOM": 1, "not an image": 2}


def _real_files(tmp_path: Path) -> list[Path]:
    import pydicom.data

    folders = [TRUTH / "open", BAD, SHARED / "data" / "hippocampus" / "dicom_test", Path(pydicom.data.__file__).parent]
    packed = SHARED / "data" / "siim_ct_contrast_dicom" / "dicom_dir.tar.gz"
    if packed.is_file():
        with tarfile.open(packed) as archive:
            archive.extractall(tmp_path, filter="data")
        folders.append(tmp_path)
    return [f for folder in folders if folder.is_dir() for f in folder.rglob("*") if f.is_file()]


def test_the_walk_gives_the_same_tags_as_pydicom(tmp_path):
    same = walked = 0
    for file in _real_files(tmp_path):
        if file.stat().st_size < 132 or file.read_bytes()[128:132] != b"DICM":
            continue
        try:
            fast = read_header(file)
        except MedTransferError:
            with pytest.raises(MedTransferError):
                by_pydicom(file)
            continue
        slow = by_pydicom(file)
        for keyword in TAGS:
            assert fast.text(keyword) == slow.text(keyword), (file.name, keyword)
        assert set(fast.raw) == set(slow.raw)
        assert (fast.syntax, fast.pixel_tag, fast.offset, fast.length) == (
            slow.syntax, slow.pixel_tag, slow.offset, slow.length,
        )  # fmt: skip
        same, walked = same + 1, walked + fast.walked
    assert same > 100
    # pydicom's own files are made to be odd; among scanners' files the walk must be the rule
    assert walked > (0.8 if TRUTH.is_dir() else 0.4) * same
