"""Damaged files give a result or an error of the family, never a bare exception or the end of the process."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from dicom_files import SHARED, instance, save, stack
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from medtransfer.errors import MedTransferError
from medtransfer.io import read
from medtransfer.io.scan import scan

EDITS = st.lists(
    st.one_of(
        st.tuples(st.just("set"), st.integers(0, 8000), st.integers(0, 255)),
        st.tuples(st.just("set"), st.integers(128, 1500), st.sampled_from([0, 1, 127, 128, 255])),
        st.tuples(st.just("cut"), st.integers(0, 8000), st.integers(1, 8)),
        st.tuples(st.just("put"), st.integers(0, 8000), st.integers(1, 8)),
        st.tuples(st.just("end"), st.integers(0, 8000), st.just(0)),
    ),
    min_size=1,
    max_size=12,
)


class Sources(list[tuple[str, bytes]]):
    """Its text is short, for hypothesis prints it."""

    def __repr__(self) -> str:
        return f"{len(self)} files"


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[str, bytes]]:
    """Small files of every kind: made here, and real ones where they are at hand."""
    import nibabel as nib
    import pydicom.data
    from pydicom.uid import ImplicitVRLittleEndian, RLELossless

    folder = tmp_path_factory.mktemp("sources")
    save(folder / "a", stack(1))
    implicit = stack(1)[0]
    implicit.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    save(folder / "b", implicit)
    packed = instance(np.zeros((2, 8, 8), np.uint16))
    packed.compress(RLELossless)
    save(folder / "c", packed)
    grey = np.random.default_rng(0).integers(0, 255, (9, 11), dtype=np.uint8)
    for name in ("g.png", "g.tif", "g.jpg", "g.bmp"):
        PIL.Image.fromarray(grey).save(folder / name)
    for name in ("v.nii", "v.nii.gz"):
        nib.save(nib.Nifti1Image(np.zeros((3, 4, 5), np.int16), np.eye(4)), folder / name)
    files = [f for f in folder.rglob("*") if f.is_file()]
    real = [Path(pydicom.data.__file__).parent / "test_files", SHARED / "dicom_truth" / "open"]
    files += [
        f for r in real if r.is_dir() for f in sorted(r.rglob("*")) if f.is_file() and 300 < f.stat().st_size < 150_000
    ]
    endings = (".nii.gz", ".nii", ".png", ".tif", ".jpg", ".bmp", ".dcm")
    return Sources([(next((e for e in endings if f.name.endswith(e)), ""), f.read_bytes()) for f in files])


def damage(data: bytes, edits: list[tuple[str, int, int]]) -> bytes:
    out = bytearray(data)
    for kind, at, value in edits:
        at = at % max(1, len(out))
        if kind == "set" and out:
            out[at] = value
        elif kind == "cut":
            del out[at : at + value]
        elif kind == "put":
            out[at:at] = bytes(value)
        elif kind == "end":
            del out[at:]
    return bytes(out)


def attempt(folder: Path, ending: str, data: bytes) -> None:
    path = folder / f"x{ending}"
    path.write_bytes(data)
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for record in scan(path, progress=False):
                record.read()
    except MedTransferError as error:
        assert str(folder) not in str(error)  # noqa: PT017
    finally:
        logging.disable(logging.NOTSET)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), edits=EDITS)
def test_damaged_files(tmp_path, sources, data, edits):
    ending, whole = sources[data.draw(st.integers(0, len(sources) - 1))]
    attempt(tmp_path, ending, damage(whole, edits))


@pytest.mark.slow
@settings(
    max_examples=10_000,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data(), edits=EDITS)
def test_ten_thousand_damaged_files(tmp_path, sources, data, edits):
    ending, whole = sources[data.draw(st.integers(0, len(sources) - 1))]
    attempt(tmp_path, ending, damage(whole, edits))


def test_a_damaged_value_representation_of_big_endian_pixels(tmp_path):
    from pydicom.data import get_testdata_file

    raw = Path(get_testdata_file("MR_small_bigendian.dcm")).read_bytes()
    assert raw.count(b"\x7f\xe0\x00\x10OW") == 1
    (tmp_path / "a.dcm").write_bytes(raw.replace(b"\x7f\xe0\x00\x10OW", b"\x7f\xe0\x00\x10O\0"))
    with pytest.raises(MedTransferError):
        read(tmp_path / "a.dcm")
