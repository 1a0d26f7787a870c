"""Small cohorts made on the spot; real data only where it lies beside the repository."""

from pathlib import Path

import pytest
from small_cohorts import blobs

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(autouse=True)
def _own_folders(tmp_path_factory, monkeypatch):
    """No test touches the user's key, store of weights or cache."""
    base = tmp_path_factory.mktemp("user")
    monkeypatch.setenv("MEDTRANSFER_HOME", str(base / "home"))
    monkeypatch.setenv("MEDTRANSFER_CACHE", str(base / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(base / "torch"))


@pytest.fixture
def shared():
    """Folder of real data; the test is skipped where it is absent."""
    if not (SHARED / "data").is_dir():
        pytest.skip("the real data is not beside this repository")
    return SHARED / "data"


@pytest.fixture
def cohort():
    return blobs()
