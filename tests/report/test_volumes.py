"""Volumes inside a page: on their place, within their size, and with nothing of their source in the header."""

import base64
import gzip
import io

import nibabel
import numpy as np
import pytest

from medtransfer.image import Geometry, Image
from medtransfer.report.viewer import NIIVUE, embedded, script_hash
from medtransfer.report.volumes import scene
from medtransfer.report.words import Words


def turned(shape=(40, 30, 24), spacing=(0.8, 0.8, 2.5), seed=0):
    """An oblique volume."""
    rng = np.random.default_rng(seed)
    q, _ = np.linalg.qr(np.eye(3) + 0.2 * rng.normal(size=(3, 3)))
    affine = np.eye(4)
    affine[:3, :3] = q * np.sign(np.diag(q)) @ np.diag(spacing)
    affine[:3, 3] = (10, -20, 30)
    return Image(rng.normal(100, 30, shape).astype(np.float32), Geometry.from_affine(affine))


def opened(text):
    raw = gzip.decompress(base64.b64decode(text))
    return nibabel.Nifti1Image.from_stream(io.BytesIO(raw)), raw


def test_every_voxel_lies_where_it_lay():
    image = turned()
    mask = np.zeros(image.array.shape, np.uint8)
    mask[20:30, 12:20, 10:16] = 2
    for limit in (10**6, 4_000):
        found = scene("case-x", image, {"reference": mask}, limit=limit)
        kinds = dict(found.layers)
        grey, labels = (opened(kinds[k])[0] for k in ("image", "reference"))
        assert found.size <= limit
        assert np.array_equal(grey.affine, labels.affine)
        at = np.stack(np.indices(labels.shape), -1).reshape(-1, 3)
        world = at @ labels.affine[:3, :3].T + labels.affine[:3, 3]
        inverse = np.linalg.inv(image.geometry.affine)
        back = world @ inverse[:3, :3].T + inverse[:3, 3]
        index = np.rint(back).astype(int)
        assert np.abs(back - index).max() < 1e-3
        assert np.array_equal(np.asarray(labels.dataobj).ravel(), mask[tuple(index.T)])
        low, high = found.low, found.high
        wanted = np.clip(image.array[tuple(index.T)], low, high)
        assert np.abs(grey.get_fdata().ravel() - wanted).max() <= (high - low) / 255 / 2 + 1e-3
    assert max(found.steps) > 1
    assert found.steps[2] == 1  # the coarse axis is thinned last


def test_a_whole_volume_keeps_its_numbers():
    image = Image(np.arange(-600, 600, dtype=np.int16).reshape(10, 12, 10), Geometry.from_affine(np.eye(4)))
    found = scene("c", image, {}, limit=10**6, crop=False, bits=16)
    assert np.array_equal(opened(dict(found.layers)["image"])[0].get_fdata(), image.array)
    real = Image(image.array / 7, image.geometry)
    found = scene("c", real, {}, limit=10**6, crop=False, bits=16)
    stored = opened(dict(found.layers)["image"])[0].get_fdata()
    assert np.abs(stored - real.array).max() < 1200 / 7 / 2**15


@pytest.mark.parametrize("odd", [np.nan, np.inf, 5.0])
def test_values_that_are_no_numbers_and_flat_images_are_shown(odd):
    array = np.full((12, 12, 12), 5.0)
    array[3, 3, 3] = odd
    found = scene("c", Image(array, Geometry.from_affine(np.eye(4))), {}, limit=10**6)
    assert np.isfinite(opened(dict(found.layers)["image"])[0].get_fdata()).all()
    assert found.high > found.low


def test_the_header_says_nothing_but_place_type_and_scale():
    image = turned()
    image = Image(image.array, image.geometry, modality="Doe^Jane")
    found = scene("case-x", image, {"predicted": np.ones(image.array.shape, np.uint8)}, limit=10**6)
    for kind, text in found.layers:
        made, raw = opened(text)
        header = made.header
        for name in ("descrip", "aux_file", "db_name", "data_type", "intent_name", "magic"):
            assert bytes(header[name]).strip(b"\0") in (b"", b"n+1"), name
        assert len(header.extensions) == 0
        assert int(header["intent_code"]) == (0 if kind == "image" else 1002)
        packed = base64.b64decode(text)
        assert packed[3] == 0  # no name of a file in the gzip
        assert packed[4:8] == b"\0\0\0\0"  # and no time
        assert b"Doe" not in raw
    plain = Image(np.zeros((20, 20)), Geometry())
    assert scene("c", plain, {}, limit=10**6) is None


def test_what_stands_in_the_page_cannot_end_its_script():
    image = turned((12, 12, 12))
    found = embedded([scene("c", image, {}, limit=10**6)], ["</script><script>boom()</script>"], Words("en"))
    assert "<" not in found["volumes"]
    assert embedded([], ["a"], Words("en")) == {}


def test_the_viewer_is_the_published_file():
    assert "NiiVue 0.69.0" in (NIIVUE.parent / "LICENSE").read_text()
    assert script_hash() == base64.b64encode(
        bytes.fromhex("47b896b77ec4a5be3ef1949c33ad393b6f45629921f326c279000bcf51bdb4af")
    ).decode()  # fmt: skip
