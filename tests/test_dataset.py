"""Prepared images: the cache never gives stale ones, says when it is too small, and changes no value."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image as Picture
from small_cohorts import blobs

from medtransfer import Prepare
from medtransfer.cache import Cache
from medtransfer.dataset import Prepared
from medtransfer.errors import MedTransferWarning, PrepareError


@pytest.fixture
def cases(tmp_path):
    made = []
    for case in blobs(12):
        path = tmp_path / f"{case.case_id}.png"
        Picture.fromarray(case.image).save(path)
        made.append(replace(case, image=path))
    return made


def prepared(cases, tmp_path, size=20, **options):
    return Prepared(cases, Prepare(size=size), cache=Cache(tmp_path / "cache", **options), progress=False)


def test_what_comes_from_the_cache_is_what_was_prepared(cases, tmp_path, monkeypatch):
    first = prepared(cases, tmp_path)
    first.load(range(12))
    monkeypatch.setattr(Prepare, "__call__", None)  # nothing may be prepared again
    again = prepared(cases, tmp_path)
    again.load(range(12))
    assert np.array_equal(first.batch(range(12)).numpy(), again.batch(range(12)).numpy())


def test_other_settings_and_other_content_are_never_taken_for_the_same(cases, tmp_path):
    before = prepared(cases, tmp_path).one(0)
    assert prepared(cases, tmp_path, size=10).one(0).shape == (1, 10, 10)
    Picture.fromarray(np.full((40, 40), 7, np.uint8)).save(cases[0].image)
    after = prepared(cases, tmp_path).one(0)
    assert not np.array_equal(before, after)


def test_a_cache_that_is_too_small_is_told_beforehand_and_left_empty(cases, tmp_path):
    small = prepared(cases, tmp_path, limit_bytes=1000)
    with pytest.warns(MedTransferWarning, match="do not fit"):
        small.load(range(12))
    assert len(list((tmp_path / "cache").rglob("*.npy"))) <= 1
    assert small.batch([3]).shape == (1, 1, 20, 20)


def test_images_that_differ_in_channels_are_named(cases, tmp_path):
    Picture.fromarray(np.zeros((40, 40, 3), np.uint8)).save(cases[5].image)
    with pytest.raises(PrepareError, match="gray: true"):
        prepared(cases, tmp_path).load(range(12))
