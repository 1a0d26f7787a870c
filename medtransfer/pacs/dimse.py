"""DIMSE: C-ECHO, C-FIND, C-GET and C-STORE by pynetdicom.

C-GET brings instances back on the association that asked for them, so that no port is opened here and nobody has to
enter this machine in the archive's list of destinations, as C-MOVE needs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from medtransfer.errors import PacsError, PacsRefused, PacsUnavailable, require
from medtransfer.pacs.found import Instance, Level, Row
from medtransfer.pacs.pace import Damaged, Missing, Pace
from medtransfer.pacs.server import Server

_RETURNED: dict[Level, tuple[str, ...]] = {
    "STUDY": ("PatientID", "StudyInstanceUID"),
    "SERIES": ("Modality", "SeriesInstanceUID"),
    "IMAGE": ("SOPInstanceUID", "SOPClassUID", "Rows", "Columns", "BitsAllocated", "NumberOfFrames"),
}
_PLAIN = ("1.2.840.10008.1.2.1", "1.2.840.10008.1.2")
_COMPRESSED = ("1.2.840.10008.1.2.5", *(f"1.2.840.10008.1.2.4.{n}" for n in (50, 51, 57, 70, 80, 81, 90, 91)))
_PENDING = (0xFF00, 0xFF01)
_MOST_CONTEXTS = 128  # PS3.8, section 9.3.2.2: odd numbers of one byte


class Dimse:
    """An archive that speaks DIMSE.

    Parameters
    ----------
    server : Server
    pace : Pace
        How fast images may come, and whether to go on.
    """

    batch = 50

    def __init__(self, server: Server, pace: Pace) -> None:
        require("pynetdicom", "dicomweb")
        self._server, self._pace = server, pace

    def echo(self) -> None:
        """C-ECHO."""
        from pynetdicom.sop_class import Verification

        with self._associated([(Verification, _PLAIN)]) as association:
            self._status(association.send_c_echo(), "C-ECHO")

    def find(self, level: Level, keys: Row) -> list[Row]:
        """C-FIND in the study root model."""
        from pydicom.dataset import Dataset
        from pynetdicom.sop_class import StudyRootQueryRetrieveInformationModelFind

        model = StudyRootQueryRetrieveInformationModelFind
        asked = Dataset()
        asked.QueryRetrieveLevel = level
        if not all(v.isascii() for v in keys.values()):
            asked.SpecificCharacterSet = "ISO_IR 192"
        for keyword in _RETURNED[level]:
            setattr(asked, keyword, None)
        for keyword, value in keys.items():
            setattr(asked, keyword, value)
        rows: list[Row] = []
        with self._associated([(model, _PLAIN)]) as association:
            for status, found in association.send_c_find(asked, model):
                if self._status(status, "C-FIND") and found is not None:
                    rows.append({e.keyword: _text(e.value) for e in found if e.keyword and _text(e.value)})
        return rows

    def retrieve(self, batch: Sequence[Instance], keep: Callable[[Instance, Iterable[bytes]], None]) -> None:
        """C-GET of instances of one series.

        Raises
        ------
        Damaged, Missing
            Where an instance that came was damaged, or one did not come; the others are kept.
        """
        from pydicom.dataset import Dataset
        from pynetdicom import evt
        from pynetdicom.sop_class import StudyRootQueryRetrieveInformationModelGet

        model = StudyRootQueryRetrieveInformationModelGet
        wanted = {one.uid: one for one in batch}
        troubles: list[PacsError] = []

        def take(event: Any) -> int:
            one = wanted.get(str(event.request.AffectedSOPInstanceUID))
            if one is None:
                return 0x0000  # not asked for: let it pass, and keep nothing
            content = event.encoded_dataset()
            try:
                self._pace.take(len(content))
                keep(one, [content])
            except PacsError as error:
                troubles.append(error)
                return 0xA700 if not isinstance(error, Damaged) else 0xC000
            wanted.pop(one.uid)
            return 0x0000

        asked = Dataset()
        asked.QueryRetrieveLevel = "IMAGE"
        asked.StudyInstanceUID, asked.SeriesInstanceUID = batch[0].study, batch[0].series
        asked.SOPInstanceUID = [one.uid for one in batch]
        classes = sorted({one.sop_class for one in batch if one.sop_class})
        contexts = [(model, _PLAIN), *((name, s) for name in classes for s in (_PLAIN, *((c,) for c in _COMPRESSED)))]
        with self._associated(contexts, taking=classes, handlers=[(evt.EVT_C_STORE, take)]) as association:
            for status, _ in association.send_c_get(asked, model):
                if not troubles or isinstance(troubles[0], Damaged):
                    self._status(status, "C-GET", partly=True)
                    self._pace.check()
        if fatal := [t for t in troubles if not isinstance(t, Damaged)]:
            raise fatal[0]
        if wanted and not troubles:
            raise Missing("the archive did not send it by C-GET", where=self._server.name)
        if troubles:
            raise troubles[0]

    def store(self, path: Path, dataset: Any) -> None:
        """C-STORE of one instance, in the transfer syntax of its file."""
        self._pace.take(path.stat().st_size)
        meta = dataset.file_meta
        syntax = (str(meta.TransferSyntaxUID),)
        contexts = [(str(dataset.SOPClassUID), syntax if syntax[0] not in _PLAIN else _PLAIN)]
        with self._associated(contexts) as association:
            try:
                status = association.send_c_store(dataset)
            except (ValueError, AttributeError) as error:
                got = type(error).__name__
                raise PacsError("the archive does not take this kind of object", where=path.name, got=got) from None
            self._status(status, "C-STORE")

    def close(self) -> None:
        """Nothing stays open between calls."""

    @contextmanager
    def _associated(
        self, contexts: Sequence[tuple[str, Sequence[str]]], *, taking: Sequence[str] = (), handlers: Sequence[Any] = ()
    ) -> Iterator[Any]:
        """An association for these pairs of abstract and transfer syntaxes, released at the end."""
        from pynetdicom import AE, build_context, build_role

        entity = AE(ae_title=self._server.aet)
        entity.connection_timeout = entity.acse_timeout = self._server.timeout_s
        entity.dimse_timeout = entity.network_timeout = self._server.timeout_s
        proposed = [build_context(name, list(syntaxes)) for name, syntaxes in contexts[:_MOST_CONTEXTS]]
        roles: list[Any] = [build_role(name, scp_role=True) for name in taking]
        name = self._server.name
        association = entity.associate(
            self._server.host, self._server.port, proposed, self._server.called, ext_neg=roles,
            evt_handlers=list(handlers),
        )  # fmt: skip
        if association.is_rejected:
            raise PacsRefused("the archive rejects the association", where=name,
                              got=f"titles {self._server.aet} and {self._server.called}",
                              fix="enter our title in the archive, or correct its own")  # fmt: skip
        if not association.is_established:
            if association.rejected_contexts:
                raise PacsError("the archive does not offer this service", where=name)
            raise PacsUnavailable("the archive cannot be reached", where=name, got="no association")
        try:
            yield association
        except BaseException:
            association.abort()
            raise
        if association.is_established:
            association.release()

    def _status(self, status: Any, what: str, *, partly: bool = False) -> bool:
        """Whether more is to come; failures are raised."""
        name = self._server.name
        if "Status" not in status:
            raise PacsUnavailable("the archive does not answer", where=name, got=f"{what} without an end")
        code = int(status.Status)
        if code in _PENDING:
            return True
        if code == 0 or (partly and (code == 0xB000 or code >> 12 == 0xC)):
            return False
        got = f"{what} status {code:#06x}"
        if code >> 8 == 0xA7:
            raise PacsUnavailable("the archive is out of resources", where=name, got=got)
        raise PacsError("the archive refuses the request", where=name, got=got)


def _text(value: object) -> str:
    """A value as text, several joined by backslashes."""
    if isinstance(value, str) or not isinstance(value, Iterable):
        return "" if value is None else str(value)
    return "\\".join(str(v) for v in value)
