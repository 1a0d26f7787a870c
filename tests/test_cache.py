"""The cache: what goes in comes out, damage is found, writers do not disturb each other."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np

from medtransfer.cache import Cache, fingerprint, write_atomically


def test_every_flipped_byte_is_found_and_dropped(tmp_path):
    cache, name = Cache(tmp_path), fingerprint("x")
    array = np.arange(12, dtype=np.float32).reshape(3, 4)
    cache.put(name, array)
    path = next(tmp_path.glob("*/*.npy"))
    raw = path.read_bytes()
    for at in range(0, len(raw), 7):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :])
        assert cache.get(name) is None
        assert not path.exists()
    cache.put(name, array)
    assert (cache.get(name) == array).all()


def test_an_entry_under_another_name_is_not_taken(tmp_path):
    cache = Cache(tmp_path)
    a, b = fingerprint("a"), fingerprint("b")
    cache.put(a, np.zeros(3))
    (tmp_path / b[:2]).mkdir(exist_ok=True)
    (tmp_path / a[:2] / f"{a}.npy").rename(tmp_path / b[:2] / f"{b}.npy")
    assert cache.get(b) is None


def test_many_writers_of_the_same_names(tmp_path):
    names = [fingerprint(str(i)) for i in range(20)]

    def work(_):
        cache = Cache(tmp_path)
        for i, name in enumerate(names):
            cache.put(name, np.full(100, i))
            found = cache.get(name)
            assert found is not None
            assert (found == i).all()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(16)))
    assert len(list(tmp_path.rglob("*"))) == len({n[:2] for n in names}) + len(names)  # no drafts left


def test_the_limit_drops_the_oldest(tmp_path):
    import os

    cache = Cache(tmp_path, limit_bytes=20_000)
    for i in range(10):
        name = fingerprint(str(i))
        cache.put(name, np.zeros(1000))
        if (path := tmp_path / name[:2] / f"{name}.npy").exists():
            os.utime(path, (i, i))
    cache.trim()
    assert sum(p.stat().st_size for p in tmp_path.glob("*/*.npy")) <= 20_000
    assert cache.get(fingerprint("9")) is not None
    assert cache.get(fingerprint("0")) is None


def test_a_failed_write_leaves_what_was_there(tmp_path, monkeypatch):
    import os

    import pytest

    target = tmp_path / "a"
    write_atomically(target, b"old")

    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="space"):
        write_atomically(target, b"new")
    assert target.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
