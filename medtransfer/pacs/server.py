"""Where an archive is, how gently it is asked, and the credentials, which are never written down here."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from medtransfer.errors import ConfigError

TOKEN, USER, PASSWORD = "MEDTRANSFER_PACS_TOKEN", "MEDTRANSFER_PACS_USER", "MEDTRANSFER_PACS_PASSWORD"
_TITLE = re.compile(r"^[\x21-\x5b\x5d-\x7e]{1,16}$")
_FORMS = "https://HOST:PORT/dicom-web or dicom://AETITLE@HOST:PORT"


@dataclass(frozen=True)
class Server:
    """An archive and how it is spoken to.

    Parameters
    ----------
    address : str
        ``https://HOST:PORT/PATH`` for DICOMweb, ``dicom://AETITLE@HOST:PORT`` for DIMSE. Credentials in it are refused.
    workers : int
        Requests, or associations, at a time.
    megabytes_per_s : float or None
        Most bytes of images and objects a second, all workers together, in millions; None for no limit.
    timeout_s : float
        Seconds without an answer after which an attempt is given up.
    attempts : int
        How often one request is tried, with growing pauses between.
    ca_bundle : path or None
        Certificates in PEM form by which an https server is verified; None takes the public ones.
    aet : str
        Our own application entity title, for DIMSE.

    Raises
    ------
    ConfigError
        For an address of another form, or values out of range.

    Examples
    --------
    >>> server = Server("dicom://ARCHIVE@localhost:4242")
    >>> server.protocol, server.host, server.port, server.called
    ('dimse', 'localhost', 4242, 'ARCHIVE')
    >>> Server("https://localhost/dicom-web").port
    443
    """

    address: str
    workers: int = 4
    megabytes_per_s: float | None = None
    timeout_s: float = 30
    attempts: int = 5
    ca_bundle: str | Path | None = None
    aet: str = "MEDTRANSFER"

    def __post_init__(self) -> None:
        try:
            parts = urlsplit(self.address)
            known = parts.scheme in ("http", "https", "dicom") and bool(parts.hostname) and parts.port != 0
        except ValueError:
            known = False
        if not known:
            raise ConfigError("this is no address of an archive", got=_shown(self.address), fix=_FORMS)
        if parts.password or (parts.username and parts.scheme != "dicom"):
            raise ConfigError(
                "an address holds no credentials", where=self.name, fix=f"set {TOKEN}, or {USER} and {PASSWORD}"
            )
        if parts.query or parts.fragment:
            raise ConfigError("an address has neither '?' nor '#'", where=self.name, fix="give the query apart")
        if parts.scheme == "dicom" and not (parts.port and _TITLE.match(self.called)):
            raise ConfigError("a DIMSE address names title and port", where=self.name, fix="dicom://AETITLE@HOST:PORT")
        if not _TITLE.match(self.aet):
            raise ConfigError("an application entity title has 1 to 16 characters", where="aet", got=self.aet)
        for key in ("workers", "timeout_s", "attempts"):
            if getattr(self, key) <= 0:
                raise ConfigError(f"{key} is above 0", where=self.name, got=getattr(self, key))
        if self.megabytes_per_s is not None and self.megabytes_per_s <= 0:
            raise ConfigError("megabytes_per_s is above 0", where=self.name, got=self.megabytes_per_s)
        if self.ca_bundle is not None and not Path(self.ca_bundle).is_file():
            raise ConfigError("there is no such file of certificates", where=Path(self.ca_bundle).name)

    @property
    def protocol(self) -> Literal["web", "dimse"]:
        """Which of the two is spoken."""
        return "dimse" if self.address.startswith("dicom:") else "web"

    @property
    def host(self) -> str:
        """Name or number of the machine."""
        return urlsplit(self.address).hostname or ""

    @property
    def port(self) -> int:
        """Port, by default that of the protocol."""
        parts = urlsplit(self.address)
        return parts.port or {"http": 80, "https": 443}.get(parts.scheme, 104)

    @property
    def called(self) -> str:
        """The archive's application entity title (DIMSE)."""
        return urlsplit(self.address).username or ""

    @property
    def name(self) -> str:
        """What messages call it."""
        return f"{self.host}:{self.port}"


def _shown(address: str) -> str:
    """An address as far as it can be quoted: without what stands before an @."""
    return repr(address.rpartition("@")[2][:80])


@dataclass(frozen=True, repr=False)
class Credentials:
    """A token, or a user with a password; neither is ever shown."""

    user: str
    secret: str

    def __repr__(self) -> str:
        return "Credentials(...)"

    @property
    def bearer(self) -> bool:
        """Whether it is a token."""
        return not self.user


def credentials(server: Server) -> Credentials | None:
    """Credentials for a server: from the environment, else from the keyring, else none.

    The keyring is asked, where the package ``keyring`` is installed, for the service ``medtransfer HOST:PORT``;
    an entry for the user ``token`` is a bearer token.

    Raises
    ------
    ConfigError
        Where the environment has a user without a password, or the reverse.
    """
    token, user, password = (os.environ.get(k, "") for k in (TOKEN, USER, PASSWORD))
    if token:
        return Credentials("", token)
    if bool(user) != bool(password):
        raise ConfigError(f"{USER} and {PASSWORD} belong together", where=server.name, fix="set both, or neither")
    return Credentials(user, password) if user else _from_keyring(f"medtransfer {server.name}")


def _from_keyring(service: str) -> Credentials | None:
    try:
        import keyring
        from keyring.errors import KeyringError
    except ImportError:
        return None
    try:
        if token := keyring.get_password(service, "token"):
            return Credentials("", token)
        found = keyring.get_credential(service, None)
    except KeyringError:  # no keyring on this machine, or it stays locked
        return None
    return Credentials(found.username, found.password) if found else None
