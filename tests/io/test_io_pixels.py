"""Stored values: bits, signs, packings, tables and colours, from numbers chosen by hand."""

from __future__ import annotations

import numpy as np
import pydicom
import pytest
from dicom_files import instance, item, save
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGLosslessSV1,
    RLELossless,
)

from medtransfer.errors import ReadError
from medtransfer.io import pixels, read
from medtransfer.io.scan import scan
from medtransfer.io.tagwalk import read_header

GREY = np.arange(20, dtype=np.uint16).reshape(4, 5)


def test_unused_high_bits_are_ignored(tmp_path):
    ds = instance(GREY | 0xA000, BitsStored=12, HighBit=11)
    np.testing.assert_array_equal(read(save(tmp_path, ds)).array, GREY)


def test_twelve_bit_signed_values_are_extended(tmp_path):
    ds = instance(np.array([[0x0FFF, 0x0800, 0x07FF, 1]], np.uint16), BitsStored=12, HighBit=11, PixelRepresentation=1)
    assert read(save(tmp_path, ds)).array.tolist() == [[-1, -2048, 2047, 1]]


def test_a_high_bit_above_the_stored_bits_shifts(tmp_path):
    ds = instance(GREY << 4, BitsStored=12, HighBit=15)
    np.testing.assert_array_equal(read(save(tmp_path, ds)).array, GREY)


def test_packed_twelve_bits(tmp_path):
    """Samples 0x123, 0xABC, 0x456 as a little-endian bit stream: 23 C1 AB, 56 .4."""
    ds = instance(np.zeros((1, 3), np.uint16), BitsAllocated=12, BitsStored=12, HighBit=11)
    ds.PixelData = bytes([0x23, 0xC1, 0xAB, 0x56, 0x04, 0x00])
    assert read(save(tmp_path, ds)).array.tolist() == [[0x123, 0xABC, 0x456]]


@pytest.mark.parametrize(("keyword", "dtype"), [("FloatPixelData", "<f4"), ("DoubleFloatPixelData", "<f8")])
def test_float_pixels(tmp_path, keyword, dtype):
    values = np.linspace(-1.5, 2.5, 20).reshape(4, 5).astype(dtype)
    ds = instance(GREY)
    del ds.PixelData, ds.BitsStored, ds.HighBit, ds.PixelRepresentation
    ds.BitsAllocated = 8 * values.itemsize
    setattr(ds, keyword, values.tobytes())
    image = read(save(tmp_path, ds))
    np.testing.assert_array_equal(image.array, values)
    assert image.array.dtype.itemsize == values.itemsize


@pytest.mark.parametrize(
    "syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian, DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian]
)
@pytest.mark.parametrize("signed", [False, True])
def test_every_native_syntax(tmp_path, syntax, signed):
    values = (GREY.astype(np.int16) * 999 - 9000) if signed else (GREY * 3000)
    ds = instance(values, RescaleSlope=1, RescaleIntercept=-1024)
    if syntax == ExplicitVRBigEndian:
        ds.PixelData = values.byteswap().tobytes()
    ds.file_meta.TransferSyntaxUID = syntax
    image = read(save(tmp_path, ds))
    np.testing.assert_array_equal(image.array, values.astype(np.int32) - 1024)


def test_run_length_multi_frame(tmp_path):
    frames = np.stack([GREY + 7 * k for k in range(3)]).astype(np.uint16)
    ds = instance(frames, Modality="US")
    ds.compress(RLELossless)
    image = read(save(tmp_path, ds))
    assert image.kind == "image"
    np.testing.assert_array_equal(image.array, frames)


def test_whole_numbers_stay_whole_and_do_not_wrap(tmp_path):
    top = np.array([[0, 65535]], np.uint16)
    assert read(save(tmp_path / "a", instance(top))).array.tolist() == [[0, 65535]]
    image = read(save(tmp_path / "b", instance(top, RescaleSlope=1, RescaleIntercept=-1024)))
    assert image.array.tolist() == [[-1024, 64511]]
    assert image.value_range == (-1024, 64511)
    image = read(save(tmp_path / "c", instance(top, BitsStored=12, RescaleSlope=1, RescaleIntercept=-1024, HighBit=11)))
    assert image.array.dtype == np.int16
    assert image.value_range == (-1024, 3071)


def test_a_rescale_with_fractions(tmp_path):
    image = read(save(tmp_path, instance(GREY, RescaleSlope="0.1", RescaleIntercept="-1.5")))
    assert image.array.dtype == np.float32
    np.testing.assert_allclose(image.array, GREY * 0.1 - 1.5, rtol=1e-6)


@pytest.mark.parametrize("bits", [8, 16])
def test_modality_lut(tmp_path, bits):
    """First mapped value 5: below it the first entry, above the table the last (PS3.3 C.11.1.1.1)."""
    table = [10, 20, 30, 200]
    lut = item(LUTDescriptor=[4, 5, bits], ModalityLUTType="US", LUTData=table)
    lut["LUTDescriptor"].VR = lut["LUTData"].VR = "US"
    image = read(save(tmp_path, instance(GREY, ModalityLUTSequence=[lut])))
    assert image.array.ravel().tolist() == [10] * 6 + [20, 30] + [200] * 12


def test_monochrome1_is_flagged_not_inverted(tmp_path):
    image = read(save(tmp_path, instance(GREY, PhotometricInterpretation="MONOCHROME1", Modality="DX")))
    np.testing.assert_array_equal(image.array, GREY)
    assert image.inverted
    assert image.value_range == (0, 65535)


@pytest.mark.parametrize("planar", [0, 1])
def test_rgb_by_pixel_and_by_plane(tmp_path, planar):
    colour = np.arange(4 * 5 * 3, dtype=np.uint8).reshape(4, 5, 3)
    ds = instance(colour[..., 0], SamplesPerPixel=3, PhotometricInterpretation="RGB", PlanarConfiguration=planar)
    ds.PixelData = (colour if planar == 0 else colour.transpose(2, 0, 1)).tobytes()
    image = read(save(tmp_path, ds))
    assert image.rgb
    np.testing.assert_array_equal(image.array, colour)


def test_ybr_becomes_rgb(tmp_path):
    """Pure red in full-range BT.601 is Y 76, Cb 85, Cr 255."""
    ds = instance(
        np.zeros((2, 2), np.uint8), SamplesPerPixel=3, PhotometricInterpretation="YBR_FULL", PlanarConfiguration=0
    )
    ds.PixelData = bytes([76, 85, 255] * 4)
    assert np.abs(read(save(tmp_path, ds)).array.astype(int) - [255, 0, 0]).max() <= 1


@pytest.mark.parametrize("bits", [8, 16])
def test_palette_becomes_rgb(tmp_path, bits):
    ds = instance(np.array([[0, 1, 2, 3]], np.uint8), PhotometricInterpretation="PALETTE COLOR")
    for channel, name in enumerate(("Red", "Green", "Blue")):
        values = np.array([0, 50, 100, 250], np.uint16) + channel
        data = values.astype(np.uint8).tobytes() if bits == 8 else (values * 256).astype("<u2").tobytes()
        setattr(ds, f"{name}PaletteColorLookupTableDescriptor", [4, 0, bits])
        setattr(ds, f"{name}PaletteColorLookupTableData", data)
    image = read(save(tmp_path, ds))
    assert image.array.tolist() == [[[v, v + 1, v + 2] for v in (0, 50, 100, 250)]]


def test_one_bit(tmp_path):
    ds = instance(np.zeros((3, 3), np.uint8), BitsAllocated=1, BitsStored=1, HighBit=0)
    ds.PixelData = bytes([0b10010110, 0b00000001])
    assert read(save(tmp_path, ds)).array.ravel().tolist() == [0, 1, 1, 0, 1, 0, 0, 1, 1]


def test_excess_bytes_are_harmless_and_missing_ones_not(tmp_path):
    ds = instance(GREY)
    whole = ds.PixelData
    ds.PixelData = whole + b"\0\0\0\0"
    np.testing.assert_array_equal(read(save(tmp_path / "more", ds)).array, GREY)
    ds.PixelData = whole[:-2]
    with pytest.raises(ReadError, match=r"truncated.*38 bytes where 1 x 4 x 5 pixels need 40"):
        read(save(tmp_path / "less", ds))


def test_truncated_compressed_pixels_are_refused(tmp_path):
    ds = instance(np.stack([GREY] * 2), Modality="US")
    ds.compress(RLELossless)
    path = save(tmp_path, ds) / "0.dcm"
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(ReadError, match="truncated"):
        read(path)


def test_an_unknown_transfer_syntax_is_named_at_the_scan(tmp_path):
    path = save(tmp_path, instance(GREY)) / "0.dcm"
    ds = pydicom.dcmread(path)
    ds.compress(RLELossless)
    ds.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.100"  # MPEG2
    ds.save_as(path)
    found = scan(path, progress=False)
    assert [p.name for p in found[0].problems] == ["undecodable"]
    with pytest.raises(ReadError, match=r"no decoder .*MPEG2"):
        found[0].read()


def test_jpeg_lossless_that_kills_its_decoder_is_an_error(tmp_path, monkeypatch):
    """The decoder process may end on a damaged file: that is a ReadError, and the next file is read."""
    pytest.importorskip("gdcm")
    ds = instance(GREY)
    ds.compress(RLELossless)
    ds.file_meta.TransferSyntaxUID = JPEGLosslessSV1
    with pytest.raises(ReadError, match="cannot be decoded"):
        read(save(tmp_path, ds))


@pytest.mark.parametrize(
    ("tags", "match"),
    [
        ({"BitsAllocated": 24}, "pixel bits is impossible"),
        ({"BitsStored": 20}, "pixel bits is impossible"),
        ({"Rows": 0}, "positive"),
        ({"Rows": None}, "Rows is missing"),
        ({"SamplesPerPixel": 3}, "colour model"),
        ({"PhotometricInterpretation": "HSV"}, "colour model"),
        ({"RescaleSlope": 0}, "RescaleSlope is 0"),
        ({"NumberOfFrames": -1}, "NumberOfFrames"),
    ],
)
def test_impossible_descriptions_are_refused(tmp_path, tags, match):
    with pytest.raises(ReadError, match=match):
        read(save(tmp_path, instance(GREY, **tags)))


def test_a_size_bomb_is_refused_before_it_is_allocated(tmp_path):
    ds = instance(GREY)
    ds.compress(RLELossless)
    ds.Rows = ds.Columns = 65535
    path = save(tmp_path, ds) / "0.dcm"
    with pytest.raises(ReadError, match="far too large"):
        pixels.pixel_format(read_header(path))


@pytest.mark.parametrize(
    ("number", "package"),
    [("51", "python-gdcm"), ("57", "python-gdcm"), ("70", "python-gdcm"), ("80", "pyjpegls"), ("90", "pylibjpeg")],
)
def test_a_missing_decoder_is_named_with_its_package(tmp_path, monkeypatch, number, package):
    from medtransfer.io import decode

    monkeypatch.setattr(decode, "_installed", lambda name: False)
    decode.plugin_for.cache_clear()
    ds = instance(GREY, BitsStored=12, HighBit=11)
    ds.compress(RLELossless)
    ds.file_meta.TransferSyntaxUID = f"1.2.840.10008.1.2.4.{number}"
    found = scan(save(tmp_path, ds), progress=False)
    decode.plugin_for.cache_clear()
    assert [p.name for p in found[0].problems] == ["undecodable"]
    with pytest.raises(ReadError, match=package):
        found[0].read()
