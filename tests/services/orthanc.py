"""A real archive on loopback: Orthanc with its DICOMweb plugin, in a folder of its own, stopped at the end.

``python tests/services/orthanc.py`` starts one to look at by hand, until Ctrl-C.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path

TITLE = "ARCHIVE"
_PLUGINS = ("/usr/share/orthanc/plugins", "/usr/lib/orthanc", "/usr/local/share/orthanc/plugins")


def missing() -> str:
    """Why there can be no archive here, '' where there can."""
    if _program() is None:
        return "Orthanc is not installed (tests/services/install.sh)"
    return "" if _plugin() else "Orthanc's DICOMweb plugin is not installed (tests/services/install.sh)"


def _program() -> str | None:
    return shutil.which("Orthanc") or shutil.which("Orthanc", path="/usr/sbin:/usr/local/sbin:/opt/homebrew/bin")


def _plugin() -> Path | None:
    found = [p for folder in _PLUGINS for p in sorted(Path(folder).glob("libOrthancDicomWeb*"))]
    return found[0] if found else None


def free_port() -> int:
    """A port of loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Orthanc:
    """Orthanc on free ports of loopback.

    Parameters
    ----------
    folder : Path
        For its configuration, its database and its log.
    user, password : str
        Basic authentication, where a user is given.
    """

    def __init__(self, folder: Path, *, user: str = "", password: str = "") -> None:
        self.folder, self.http, self.dicom = folder, free_port(), free_port()
        self.log = folder / "log.txt"
        folder.mkdir(parents=True, exist_ok=True)
        settings = {
            "Name": "test", "StorageDirectory": str(folder / "store"), "IndexDirectory": str(folder / "store"),
            "Plugins": [str(_plugin())], "HttpPort": self.http, "DicomPort": self.dicom, "DicomAet": TITLE,
            "RemoteAccessAllowed": False, "AuthenticationEnabled": bool(user), "RegisteredUsers": {user: password},
            "DicomCheckCalledAet": True, "DicomAlwaysAllowEcho": True, "DicomAlwaysAllowStore": True,
            "DicomAlwaysAllowFind": True, "DicomAlwaysAllowGet": True, "HttpThreadsCount": 8,
            "ConcurrentJobs": 1, "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
        }  # fmt: skip
        if not user:
            del settings["RegisteredUsers"]
        (folder / "orthanc.json").write_text(json.dumps(settings))
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def web(self) -> str:
        """Address of its DICOMweb service."""
        return f"http://localhost:{self.http}/dicom-web"

    @property
    def dimse(self) -> str:
        """Its DIMSE address."""
        return f"dicom://{TITLE}@127.0.0.1:{self.dicom}"

    def start(self) -> None:
        """Start it, and wait until it answers."""
        program = _program()
        assert program is not None
        self.log.touch()
        begin = self.log.stat().st_size
        with open(self.log, "ab") as log:
            self._process = subprocess.Popen([program, str(self.folder / "orthanc.json")], stdout=log, stderr=log)
        for _ in range(600):
            if self._process.poll() is not None:
                break
            if b"Orthanc has started" in self.log.read_bytes()[begin:]:
                return
            time.sleep(0.1)
        self.stop()
        raise RuntimeError("Orthanc did not start:\n" + self.log.read_text(errors="replace")[-2000:])

    @property
    def runs(self) -> bool:
        """Whether it was started and has not ended."""
        return self._process is not None and self._process.poll() is None

    def kill(self) -> None:
        """End it at once, as a crash would."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def stop(self) -> None:
        """End it."""
        if self._process is not None and self.runs:
            self._process.terminate()
            try:
                self._process.wait(20)
            except subprocess.TimeoutExpired:
                self.kill()

    def __enter__(self) -> Orthanc:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch, Orthanc(Path(scratch)) as archive:
        print(f"{archive.web}\n{archive.dimse}\nCtrl-C stops it")
        with contextlib.suppress(KeyboardInterrupt):
            time.sleep(10**6)
