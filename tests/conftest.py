"""Small cohorts made on the spot; real data only where it lies beside the repository."""

from pathlib import Path

import numpy as np
import pytest

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


def blobs(n=60, side=40, seed=0, per_patient=2):
    """n images of noise; those of class 1 hold a bright square."""
    from medtransfer.cohort import Case, Cohort

    rng = np.random.default_rng(seed)
    cases = []
    for i in range(n):
        label = (i // per_patient) % 2
        image = rng.integers(0, 120, (side, side)).astype(np.uint8)
        if label:
            r, c = rng.integers(5, side - 20, 2)
            image[r : r + 14, c : c + 14] += 90
        cases.append(Case(f"c{i}", f"p{i // per_patient}", image, label=label, covariates={"age": str(40 + i % 30)}))
    return Cohort(tuple(cases), ("no", "yes"))


@pytest.fixture
def cohort():
    return blobs()
