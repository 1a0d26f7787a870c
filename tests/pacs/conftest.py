"""A real archive where one is installed, and a proxy before it that misbehaves on order."""

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for services, also where one file alone is run

from faulty import watched
from services.orthanc import Orthanc, missing


@pytest.fixture(autouse=True)
def _no_secrets_of_this_machine(monkeypatch):
    """No credentials from the environment or the user's keyring."""
    for name in [n for n in os.environ if n.startswith("MEDTRANSFER_PACS")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PYTHON_KEYRING_BACKEND", "keyring.backends.null.Keyring")


@pytest.fixture(scope="module")
def orthanc(tmp_path_factory):
    """An empty archive."""
    pytest.importorskip("dicomweb_client", reason="medtransfer[dicomweb] is not installed")
    pytest.importorskip("pynetdicom", reason="medtransfer[dicomweb] is not installed")
    if why := missing():
        pytest.skip(why)
    with Orthanc(tmp_path_factory.mktemp("orthanc")) as started:
        yield started


@pytest.fixture
def contacted():
    """Every address that this process connects to, the proxy's own connections aside."""
    with watched() as seen:
        yield seen
