"""DICOMweb: QIDO-RS and STOW-RS by dicomweb-client, WADO-RS streamed to the disk on the same session."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from medtransfer.errors import PacsError, PacsRefused, PacsUnavailable
from medtransfer.pacs.found import Instance, Level, Row
from medtransfer.pacs.multipart import boundary_of, only_part
from medtransfer.pacs.pace import Busy, Damaged, Missing, Pace
from medtransfer.pacs.server import PASSWORD, TOKEN, USER, Server, credentials

if TYPE_CHECKING:
    import requests

_ACCEPT = 'multipart/related; type="application/dicom"; transfer-syntax=*'
_PIECE, _PAGE = 1 << 16, 1000
SLOWEST_BYTES_PER_S = 1024  # an answer that drips more slowly than this is given up after the timeout
_IN_PASSING = {408, 425, 429, 500, 502, 503, 504}


class Web:
    """An archive that speaks DICOMweb.

    Parameters
    ----------
    server : Server
    pace : Pace
        How fast images may come, and whether to go on.
    """

    batch = 1

    def __init__(self, server: Server, pace: Pace) -> None:
        from dicomweb_client.web import DICOMwebClient

        self._server, self._pace = server, pace
        self._session = _session(server)
        self._url = server.address.rstrip("/")
        self._client = DICOMwebClient(self._url, self._session, timeout=server.timeout_s)
        self._client.set_http_retry_params(retry=False)  # retried by the pace, which also sees broken connections

    def find(self, level: Level, keys: Row) -> list[Row]:
        """QIDO-RS, page by page until nothing new comes."""
        filters = {k: v for k, v in keys.items() if k not in ("StudyInstanceUID", "SeriesInstanceUID")}
        study, series = keys.get("StudyInstanceUID"), keys.get("SeriesInstanceUID")
        own = {"STUDY": "StudyInstanceUID", "SERIES": "SeriesInstanceUID", "IMAGE": "SOPInstanceUID"}[level]
        if level == "STUDY" and study:
            filters["StudyInstanceUID"] = study
        if level == "SERIES" and series:
            filters["SeriesInstanceUID"] = series
        rows: dict[str, Row] = {}
        while True:
            at: dict[str, Any] = {"search_filters": filters, "limit": _PAGE, "offset": len(rows)}
            with _there(self._server), self._told():
                if level == "STUDY":
                    page = self._client.search_for_studies(**at)
                elif level == "SERIES":
                    page = self._client.search_for_series(study, **at)
                else:
                    page = self._client.search_for_instances(study, series, **at)
            before = len(rows)
            for item in page:
                row = _plain(item)
                rows.setdefault(row.get(own, ""), row)
            if len(page) < _PAGE or len(rows) == before:  # a server may ignore the offset
                return list(rows.values())

    def echo(self) -> None:
        """One study is asked for."""
        with _there(self._server), self._told():
            self._client.search_for_studies(limit=1)

    def retrieve(self, batch: Sequence[Instance], keep: Callable[[Instance, Iterable[bytes]], None]) -> None:
        """WADO-RS of each instance, in the transfer syntax it is stored in."""
        for one in batch:
            url = f"{self._url}/studies/{one.study}/series/{one.series}/instances/{one.uid}"
            with self._told():
                answer = self._session.get(
                    url, headers={"Accept": _ACCEPT}, stream=True, timeout=self._server.timeout_s
                )
            with answer:
                with self._told():
                    answer.raise_for_status()
                keep(one, self._content(answer))

    def store(self, path: Path, dataset: Any) -> None:
        """STOW-RS of one instance."""
        self._pace.take(path.stat().st_size)
        with self._told():
            answer = self._client.store_instances([dataset])
        for failed in answer.get("FailedSOPSequence") or ():
            raise PacsError(
                "the archive does not take the instance", where=path.name,
                got=f"failure reason {int(failed.get('FailureReason', 0)):#06x}",
            )  # fmt: skip

    def close(self) -> None:
        """Give the connections back."""
        self._session.close()

    def _content(self, answer: requests.Response) -> Iterator[bytes]:
        kind = answer.headers.get("Content-Type", "")
        boundary = boundary_of(kind)
        if boundary:
            yield from only_part(self._paced(answer), boundary)
        elif kind.split(";")[0].strip().lower() == "application/dicom":  # not by the standard, but it happens
            yield from self._paced(answer)
        else:
            raise Damaged("the archive sends something else than DICOM", got=kind.split(";")[0][:40] or "no type")

    def _paced(self, answer: requests.Response) -> Iterator[bytes]:
        """The body, no faster than is allowed, and given up where it only drips."""
        began, waited, count = time.monotonic(), 0.0, 0
        pieces = answer.iter_content(_PIECE)
        while True:
            with self._told():
                piece = next(pieces, b"")
            if not piece:
                return
            count += len(piece)
            spent = time.monotonic() - began - waited
            if spent > self._server.timeout_s and count < SLOWEST_BYTES_PER_S * spent:
                raise PacsUnavailable("the archive sends too slowly", where=self._server.name,
                                      got=f"{count:,} bytes in {spent:.0f} s")  # fmt: skip
            waited += self._pace.take(len(piece))
            yield piece

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Errors of the libraries below in this package's words: theirs quote addresses that hold identifiers."""
        from requests import exceptions

        name = self._server.name
        try:
            yield
        except exceptions.HTTPError as error:
            raise _by_status(name, error.response) from None
        except exceptions.SSLError as error:
            if "certificate" not in str(error).lower():
                raise PacsUnavailable("the encrypted connection broke", where=name) from None
            raise PacsRefused(
                "the certificate of the archive is not trusted", where=name, fix="give its authority as ca_bundle"
            ) from None
        except exceptions.TooManyRedirects:
            raise PacsRefused(
                "the archive sends the request to another address", where=name,
                fix="give that address if you trust it; redirects are not followed",
            ) from None  # fmt: skip
        except exceptions.Timeout:
            got = f"nothing for {self._server.timeout_s:g} s"
            raise PacsUnavailable("the archive does not answer", where=name, got=got) from None
        except exceptions.JSONDecodeError:
            raise PacsRefused(
                "this is not the address of a DICOMweb service", where=name, got="an answer that is not JSON",
                fix="it often ends in /dicom-web",
            ) from None  # fmt: skip
        except (exceptions.ConnectionError, exceptions.ChunkedEncodingError) as error:
            got = "a refused connection" if "refused" in str(error).lower() else "a connection that broke"
            raise PacsUnavailable("the archive cannot be reached", where=name, got=got) from None
        except exceptions.RequestException as error:
            raise PacsUnavailable("the archive cannot be asked", where=name, got=type(error).__name__) from None


@contextmanager
def _there(server: Server) -> Iterator[None]:
    """A search that the server does not know is a wrong address, not a missing instance."""
    try:
        yield
    except Missing as error:
        raise PacsRefused(
            "this is not the address of a DICOMweb service", where=server.name, got=error.got,
            fix="it often ends in /dicom-web",
        ) from None  # fmt: skip


def _by_status(name: str, answer: requests.Response | None) -> PacsError | PacsRefused:
    assert answer is not None  # what raise_for_status raises has one
    status = answer.status_code
    if status in (401, 403, 407):
        return PacsRefused(
            "the archive does not accept the credentials", where=name, got=f"status {status}",
            fix=f"set {TOKEN}, or {USER} and {PASSWORD}, or put them into the keyring as 'medtransfer {name}'",
        )  # fmt: skip
    if status in (404, 410):
        return Missing("the archive does not have it", where=name, got=f"status {status}")
    if status in _IN_PASSING:
        error = Busy("the archive is busy or failing", where=name, got=f"status {status}")
        wait = answer.headers.get("Retry-After", "")
        error.retry_after_s = float(wait) if wait.isdigit() else 0.0
        return error
    return PacsError("the archive refuses the request", where=name, got=f"status {status}")


def _session(server: Server) -> requests.Session:
    """A session that talks to this server only: no proxy of the environment, no redirect, no .netrc."""
    from requests import PreparedRequest, Session
    from requests.adapters import HTTPAdapter
    from requests.auth import HTTPBasicAuth

    session = Session()
    session.trust_env = False
    session.max_redirects = 0
    session.verify = True if server.ca_bundle is None else str(server.ca_bundle)
    adapter = HTTPAdapter(pool_connections=1, pool_maxsize=server.workers)
    session.mount("http://", adapter)
    session.mount("https://", adapter)
    found = credentials(server)

    def finish(request: PreparedRequest) -> PreparedRequest:
        """Credentials; and wildcards as they are, since not every archive undoes the escapes of a query."""
        request.url = re.sub("%(2A|3F|2C)", lambda m: unquote(m[0]), request.url or "")
        if found is not None and found.bearer:
            request.headers["Authorization"] = f"Bearer {found.secret}"
        elif found is not None:
            HTTPBasicAuth(found.user, found.secret)(request)
        return request

    session.auth = finish
    return session


def _plain(item: dict[str, Any]) -> Row:
    """A DICOM JSON answer as keyword to text, several values joined by backslashes."""
    from pydicom.datadict import keyword_for_tag

    row = {}
    for tag, element in item.items():
        keyword = keyword_for_tag(tag)
        values = element.get("Value") if isinstance(element, dict) else None
        if keyword and values:
            texts = [v.get("Alphabetic", "") if isinstance(v, dict) else str(v) for v in values]
            row[keyword] = "\\".join(texts)
    return row
