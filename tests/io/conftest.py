from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def private_folders(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Key and cache of the tests stay in their own folder."""
    home = tmp_path_factory.getbasetemp() / "medtransfer_home"
    monkeypatch.setenv("MEDTRANSFER_HOME", str(home))
    monkeypatch.setenv("MEDTRANSFER_CACHE", str(home / "cache"))
    return home
