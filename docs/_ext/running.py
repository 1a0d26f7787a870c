"""What runs beside a page while its blocks do: an archive, and something that takes jobs as SLURM does."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from here import Absent

EXT = Path(__file__).parent
USER, PASSWORD = "research", "not-a-secret"
sys.path.append(str(EXT.parents[1] / "tests" / "services"))


@contextmanager
def archive(place: Path) -> Iterator[None]:
    """An Orthanc on loopback that wants a password, with the CT series of ``abdomen/`` in it.

    ``$ARCHIVE`` and ``$ARCHIVE_DIMSE`` are its addresses.
    """
    from blocks import absent
    from orthanc import Orthanc, missing

    if why := absent(["dicomweb_client", "pynetdicom", "keyring"]) or missing():
        raise Absent(why)
    (place / "password").write_text(f"{PASSWORD}\n", encoding="utf-8")
    with Orthanc(place / ".archive", user=USER, password=PASSWORD) as started:
        os.environ |= {"ARCHIVE": started.web, "ARCHIVE_DIMSE": started.dimse, "RING": str(place / ".home" / "ring"),
                       "PYTHON_KEYRING_BACKEND": "ring.Ring"}  # fmt: skip
        for file in sorted(place.glob("abdomen/*/ct/*")):
            _store(started.http, file)
        yield


def _store(port: int, file: Path) -> None:
    """Put a file into the archive by Orthanc's own interface."""
    import base64
    import http.client

    line = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    user = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
    line.request("POST", "/instances", file.read_bytes(), {"Authorization": f"Basic {user}"})
    answer = line.getresponse()
    if answer.status != 200:
        raise RuntimeError(f"the archive answered {answer.status}")
    line.close()


@contextmanager
def queue(place: Path) -> Iterator[None]:
    """``sbatch``, ``srun`` and ``scontrol`` that do at once, on this machine, what SLURM would do later on others."""
    for name in ("sbatch", "srun", "scontrol"):
        tool = place / ".home" / name
        words = shlex.join([sys.executable, str(EXT / "slurm.py"), name])
        tool.write_text(f'#!/bin/sh\nexec {words} "$@"\n', encoding="utf-8")
        tool.chmod(0o755)
    yield


SERVICES = {f.__name__: f for f in (archive, queue)}
