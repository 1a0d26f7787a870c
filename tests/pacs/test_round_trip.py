"""From the archive and back, in small; tests/benchmarks/pacs.py does it with 500 instances and 20 faults."""

import pytest
from round_trip import round_trip

from medtransfer.pacs import pace


def test_from_the_archive_through_a_segmentation_and_back(tmp_path, orthanc, monkeypatch):
    pytest.importorskip("highdicom", reason="medtransfer[dicom-out] is not installed")
    monkeypatch.setattr(pace, "FIRST_PAUSE_S", 0.02)
    found = round_trip(tmp_path, studies=6, slices=20, fetching=("reset", "truncate", "401", "corrupt", "gone", "503"),
                       sending=("lost", "401"))  # fmt: skip
    assert found["instances"] == 120
    assert (found["lost"], found["segmentations_lost"], found["doubled"]) == (0, 0, 0)
    assert found["segmentations"] == 6
    assert found["faults"] == 8
    assert found["elsewhere"] == 0
    assert not found["leaks"]
