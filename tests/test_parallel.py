"""Scanning and preparing elsewhere give what threads give."""

import multiprocessing
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Picture
from small_cohorts import blobs

from medtransfer import Cohort, Prepare, scan
from medtransfer._case import Case
from medtransfer.cache import Cache
from medtransfer.config import Experiment
from medtransfer.dataset import Prepared
from medtransfer.errors import ConfigError, ReadError
from medtransfer.parallel import computing, spread


def square(number):
    return os.getpid(), number * number


@pytest.fixture
def images(tmp_path):
    """Files of a small cohort, one of them a bag of two, and a file that is none."""
    for case in blobs(12, side=36):
        Picture.fromarray(case.image).save(tmp_path / f"{case.case_id}.png")
    (tmp_path / "broken.dcm").write_bytes(b"no DICOM")
    (tmp_path / "empty.png").touch()
    return tmp_path


def cases(folder):
    files = sorted(folder.glob("c*.png"))
    single = [Case(p.stem, p.stem, p, label=i % 2) for i, p in enumerate(files)]
    return Cohort(tuple(single), ("no", "yes")), [*single, Case("bag", "b", tuple(files[:3]))]


def test_processes_keep_the_order():
    with computing("loky"):
        found = list(spread(square, list(range(20)), workers=2))
    assert [v for _, v in found] == [n * n for n in range(20)]
    assert os.getpid() not in {pid for pid, _ in found}
    assert [v for _, v in spread(square, [3], workers=0)] == [9]


@pytest.mark.filterwarnings("ignore::medtransfer.errors.MedTransferWarning")
def test_a_scan_by_processes_is_the_scan_by_threads(images):
    plain = scan(images, progress=False).to_json()
    with computing("loky"):
        assert scan(images, progress=False, workers=2).to_json() == plain


def test_preparing_by_processes_gives_the_same_bytes_and_fills_the_cache(images, tmp_path):
    prepare, (cohort, mixed) = Prepare(size=32, scale="range"), cases(images)
    bags = [Case(c.case_id, c.patient_id, c.image if isinstance(c.image, tuple) else (c.image,)) for c in mixed]
    for given in (cohort.cases, bags):
        plain = Prepared(given, prepare, progress=False)
        plain.load(range(len(given)))
        cache = Cache(tmp_path / f"cache-{len(given)}")
        with computing("loky"):
            there = Prepared(given, prepare, cache=cache, progress=False)
            there.load(range(len(given)))
        for i in range(len(given)):
            assert there.one(i).tobytes() == plain.one(i).tobytes()
        assert len(list(cache.folder.rglob("*.npy"))) == 12


def test_a_result_from_beside_another_cache_is_kept_here(images, tmp_path, monkeypatch):
    from medtransfer import dataset

    def elsewhere(function, alone, *, workers):  # a worker whose cache is its own
        for one in alone:
            one.cache = Cache(tmp_path / "theirs")
            yield function(one)

    monkeypatch.setattr(dataset, "spread", elsewhere)
    cohort, _ = cases(images)
    ours = Cache(tmp_path / "ours")
    with computing("loky"):
        Prepared(cohort.cases, Prepare(size=32, scale="range"), cache=ours, progress=False).load(range(12))
    assert len(list(ours.folder.rglob("*.npy"))) == 12


def test_an_unreadable_image_is_told_as_ever(images):
    (images / "c3.png").write_bytes(b"\x89PNG\r\n\x1a\nshort")
    cohort, _ = cases(images)
    with computing("loky"), pytest.raises(ReadError):
        Prepared(cohort.cases, Prepare(size=32, scale="range"), progress=False).load(range(12))


def test_processes_end_with_the_block():
    with computing("loky"):
        with computing("loky"):
            assert list(spread(abs, [-1, 2, -3], workers=2)) == [1, 2, 3]
        assert len(multiprocessing.active_children()) >= 2  # the outer block goes on with them
    assert multiprocessing.active_children() == []


def test_an_error_of_the_work_is_told_as_itself():
    with computing("loky"), pytest.raises(FileNotFoundError):
        list(spread(os.stat, ["no such file"], workers=2))


@pytest.mark.parametrize("wrong", ["procs", "threads=4", "loky=host", ""])
def test_a_backend_of_another_name_is_refused_with_those_there_are(wrong):
    with pytest.raises(ConfigError, match=r"threads, loky, dask=ADDRESS"), computing(wrong):
        pass
    text = f"cohort: {{csv: t.csv}}\nmodel: {{weights: random/resnet18}}\nout: run\nbackend: '{wrong}'\n"
    with pytest.raises(ConfigError, match=r"line 4, backend.*threads, loky, dask=ADDRESS"):
        Experiment.from_text(text)


@pytest.mark.slow
def test_a_dask_cluster_on_this_machine(images):
    distributed = pytest.importorskip("distributed", reason="dask is not installed")
    cohort, _ = cases(images)
    plain = Prepared(cohort.cases, Prepare(size=32, scale="range"), progress=False)
    here = f"{Path(__file__).resolve().parents[1]}{os.pathsep}{Path(__file__).parent}"
    os.environ["PYTHONPATH"] = here + os.pathsep + os.environ.get("PYTHONPATH", "")
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address=None, host="127.0.0.1"
        ) as cluster,
        computing(f"dask={cluster.scheduler_address}"),
    ):
        there = Prepared(cohort.cases, Prepare(size=32, scale="range"), progress=False)
        there.load(range(12))
        assert len({pid for pid, _ in spread(square, list(range(40)), workers=2)} - {os.getpid()}) == 2
    for i in range(12):
        assert np.array_equal(there.one(i), plain.one(i))


@pytest.mark.slow
def test_ray_on_this_machine(images, monkeypatch):
    ray = pytest.importorskip("ray", reason="ray is not installed")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    cohort, _ = cases(images)
    plain = Prepared(cohort.cases, Prepare(size=32, scale="range"), progress=False)
    try:
        with computing("ray"):
            found = list(spread(square, list(range(50)), workers=2))
            assert [v for _, v in found] == [n * n for n in range(50)]
            assert os.getpid() not in {pid for pid, _ in found}
            there = Prepared(cohort.cases, Prepare(size=32, scale="range"), progress=False)
            there.load(range(12))
            assert all(np.array_equal(there.one(i), plain.one(i)) for i in range(12))
            (images / "c3.png").write_bytes(b"\x89PNG\r\n\x1a\nshort")
            with pytest.raises(ReadError):
                Prepared(cohort.cases, Prepare(size=32, scale="range"), progress=False).load(range(12))
    finally:
        ray.shutdown()
