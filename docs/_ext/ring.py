"""A keyring in a file, for the build: that of the machine, if it has one, is left alone."""

from __future__ import annotations

import json
import os
from pathlib import Path

from keyring.backend import KeyringBackend


class Ring(KeyringBackend):
    """Passwords by service and user, in the file that ``RING`` names."""

    priority = 1

    def get_password(self, service: str, username: str) -> str | None:
        return self._kept().get(f"{service}\n{username}")

    def set_password(self, service: str, username: str, password: str) -> None:
        Path(os.environ["RING"]).write_text(json.dumps(self._kept() | {f"{service}\n{username}": password}))

    def _kept(self) -> dict[str, str]:
        file = Path(os.environ["RING"])
        return dict(json.loads(file.read_text())) if file.is_file() else {}
