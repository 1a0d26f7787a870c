"""What an archive says it has: studies, series and instances that a query fits, told by pseudonym only."""

from __future__ import annotations

import difflib
import itertools
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from medtransfer.errors import ConfigError, PacsError
from medtransfer.pacs.pace import Pace
from medtransfer.pacs.server import Server
from medtransfer.pseudonym import patient_key, pseudonym

Level = Literal["STUDY", "SERIES", "IMAGE"]
Query = Mapping[str, str | Sequence[str]]
Row = Mapping[str, str]

_SERIES = ("Modality", "SeriesInstanceUID", "SeriesNumber", "SeriesDescription", "BodyPartExamined", "ProtocolName",
           "PerformedProcedureStepStartDate", "StationName", "Manufacturer")  # fmt: skip
_IMAGE = ("SOPInstanceUID", "SOPClassUID", "InstanceNumber")
_STUDY = ("StudyInstanceUID", "PatientID", "PatientName", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime",
          "StudyID", "AccessionNumber", "StudyDescription", "ModalitiesInStudy", "ReferringPhysicianName",
          "InstitutionName", "IssuerOfPatientID", "OtherPatientIDs")  # fmt: skip
_KEYS: dict[Level, tuple[str, ...]] = {"STUDY": _STUDY, "SERIES": _SERIES, "IMAGE": _IMAGE}
_LEVELS = {key: level for level, keys in _KEYS.items() for key in keys}
_CHECKED = ("PatientID", "StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID", "Modality")
_UID = re.compile(r"^[0-9][0-9.]{0,63}$")


@dataclass(frozen=True, repr=False)
class Instance:
    """One instance of an archive; its identifiers stay in memory.

    Parameters
    ----------
    patient_id, study, series, uid : str
        PatientID, and the UIDs of study, series and instance.
    modality, sop_class : str
    bytes : int or None
        About how large its pixels are uncompressed; None where the archive does not say.
    """

    patient_id: str
    study: str
    series: str
    uid: str
    modality: str = ""
    sop_class: str = ""
    bytes: int | None = None

    def __repr__(self) -> str:
        return f"Instance({pseudonym('series', self.series)}, {pseudonym('instance', self.uid)})"


@dataclass(frozen=True)
class Found:
    """Instances that fit a query.

    Parameters
    ----------
    server : str
        Name of the archive.
    instances : tuple of Instance
    studies : int
        How many studies fit the query.
    left_out : mapping of str to int
        Studies or series that fit but were not asked for, by reason.
    """

    server: str
    instances: tuple[Instance, ...] = field(repr=False)
    studies: int = 0
    left_out: Mapping[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.instances)

    def __iter__(self) -> Iterator[Instance]:
        return iter(self.instances)

    @property
    def bytes(self) -> int | None:
        """About how many bytes, uncompressed; None where the archive does not say it of every instance."""
        known = [i.bytes for i in self.instances if i.bytes is not None]
        return sum(known) if len(known) == len(self.instances) else None

    def rows(self) -> list[dict[str, Any]]:
        """A mapping a series: pseudonyms, modality, instances and bytes (None: not known)."""
        rows = []
        for _, group in itertools.groupby(self.instances, key=lambda i: (i.study, i.series)):
            members = tuple(group)
            one = members[0]
            rows.append({
                "patient": pseudonym("patient", one.patient_id), "study": pseudonym("study", one.study),
                "series": pseudonym("series", one.series), "modality": one.modality, "instances": len(members),
                "bytes": Found("", members).bytes,
            })  # fmt: skip
        return rows


class Archive(Protocol):
    """What both protocols can do."""

    def find(self, level: Level, keys: Row) -> list[Row]:
        """Attributes of what fits ``keys`` at a level; UIDs of the levels above are among the keys."""
        ...

    def echo(self) -> None:
        """Return if the archive answers; raise :class:`PacsError` otherwise."""
        ...


def check_query(query: Query) -> dict[Level, list[dict[str, str]]]:
    """The keys of a query by level, one mapping for each combination of listed values.

    Raises
    ------
    ConfigError
        For a key that cannot be asked for, an empty value, or no key at all.

    Examples
    --------
    >>> check_query({"PatientID": ["1", "2"], "Modality": "CT"})["STUDY"]
    [{'PatientID': '1'}, {'PatientID': '2'}]
    """
    if not query:
        raise ConfigError("the query asks for everything the archive has", fix="give a key, such as StudyDate")
    for key, value in query.items():
        if key not in _LEVELS:
            near = difflib.get_close_matches(key, _LEVELS, n=1, cutoff=0.5)
            raise ConfigError(
                f"'{key}' is no key of a query", fix=f"did you mean '{near[0]}'?" if near else ", ".join(_LEVELS)
            )
        if not value or not all(_values(value)):
            raise ConfigError("a query key has no value", where=key, fix="leave the key out, or give it one")
    by_level: dict[Level, list[dict[str, str]]] = {}
    for level in ("STUDY", "SERIES", "IMAGE"):
        keys = [k for k in query if _LEVELS[k] == level]
        combined = itertools.product(*(_values(query[k]) for k in keys))
        by_level[level] = [dict(zip(keys, values, strict=True)) for values in combined]
    return by_level


def find(archive: Archive, server: Server, pace: Pace, query: Query, *, only: tuple[str, Collection[str]] | None = None
         ) -> Found:  # fmt: skip
    """What fits a query, down to instances; level by level, which every archive can answer.

    Parameters
    ----------
    only : (str, collection of str) or None
        PatientID, StudyInstanceUID or SeriesInstanceUID, and the values of it that are wanted.

    Raises
    ------
    PacsError
        Where the archive answers with what was not asked for.
    """
    asked = check_query(query)
    wanted = None if only is None else {_plain(only[0], v) for v in only[1]}

    def ask(level: Level, above: Row) -> list[Row]:
        rows: dict[str, Row] = {}
        for keys in asked[level]:
            uids = {k: v for k, v in above.items() if k in ("StudyInstanceUID", "SeriesInstanceUID")}
            found = pace.patiently(lambda keys=keys, uids=uids: archive.find(level, {**keys, **uids}),  # type: ignore[misc]
                                   attempts=server.attempts)  # fmt: skip
            for row in found:
                _check_answer(row, {**keys, **uids}, level, server)
                rows.setdefault(row[_OWN[level]], {**above, **row})
        return list(rows.values())

    left_out: dict[str, int] = {}

    def choose(rows: list[Row]) -> list[Row]:
        if only is None or not rows or only[0] not in rows[0] or wanted is None:
            return rows
        kept = [r for r in rows if _plain(only[0], r.get(only[0], "")) in wanted]
        left_out[f"without a row for {only[0]}"] = left_out.get(f"without a row for {only[0]}", 0) + (
            len(rows) - len(kept)
        )
        return kept

    def below(study: Row) -> list[Instance]:
        made = []
        for series in choose(ask("SERIES", study)):
            rows = ask("IMAGE", series)
            made += [_instance(row) for row in sorted(rows, key=lambda r: r["SOPInstanceUID"])]
        return made

    studies = ask("STUDY", {})
    chosen = choose(studies)
    with ThreadPoolExecutor(server.workers) as pool:
        futures = [pool.submit(below, study) for study in chosen]
        try:
            instances = [i for future in futures for i in future.result()]
        except BaseException:
            pace.stop()
            pool.shutdown(cancel_futures=True)
            raise
    return Found(server.name, tuple(instances), len(studies), {k: n for k, n in left_out.items() if n})


_OWN: dict[Level, str] = {"STUDY": "StudyInstanceUID", "SERIES": "SeriesInstanceUID", "IMAGE": "SOPInstanceUID"}


def _check_answer(row: Row, keys: Row, level: Level, server: Server) -> None:
    """Refuse an answer that ignores a key: the wrong patients must not be fetched."""
    if not _UID.match(row.get(_OWN[level], "")):
        raise PacsError("the archive answers without a valid UID", where=server.name, got=f"level {level}")
    for key in _CHECKED:
        if key in keys and not set("*?\\") & set(keys[key]) and row.get(key):
            if _plain(key, row[key]) == _plain(key, keys[key]):
                continue
            raise PacsError(
                f"the archive answers with another {key} than it was asked for", where=server.name,
                fix="it does not support this key; ask by StudyInstanceUID",
            )  # fmt: skip


def _instance(row: Row) -> Instance:
    return Instance(
        row.get("PatientID", ""), row["StudyInstanceUID"], row["SeriesInstanceUID"], row["SOPInstanceUID"],
        row.get("Modality", ""), row.get("SOPClassUID", ""), _size(row),
    )  # fmt: skip


def _size(row: Row) -> int | None:
    """Rows x Columns x BitsAllocated / 8 x NumberOfFrames."""
    try:
        rows, columns, bits = (int(row[k]) for k in ("Rows", "Columns", "BitsAllocated"))
        return rows * columns * bits // 8 * int(row.get("NumberOfFrames") or 1)
    except (KeyError, ValueError):
        return None


def _plain(key: str, value: str) -> str:
    return patient_key(value) if key == "PatientID" else value.strip()


def _values(value: str | Sequence[str]) -> list[str]:
    return [value] if isinstance(value, str) else [str(v) for v in value]
