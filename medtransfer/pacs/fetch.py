"""From an archive to a private folder: found, fetched by several workers, resumed, and counted to the last instance."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medtransfer.errors import ConfigError, PacsError, PacsRefused, PacsUnavailable, require
from medtransfer.pacs.found import Found, Instance, Query, check_query
from medtransfer.pacs.found import find as find_in
from medtransfer.pacs.pace import Damaged, Missing, Pace, hushed
from medtransfer.pacs.server import Server
from medtransfer.pacs.shelf import Shelf
from medtransfer.pseudonym import cache_folder, pseudonym
from medtransfer.table import read_table

if TYPE_CHECKING:
    from medtransfer.io.scan import Scan
    from medtransfer.pacs.dimse import Dimse
    from medtransfer.pacs.web import Web

_IDS = ("PatientID", "StudyInstanceUID", "SeriesInstanceUID")


@dataclass(frozen=True)
class Fetched:
    """What a fetch did.

    Parameters
    ----------
    found : Found
        What the archive has.
    folder : Path
        Where the instances lie.
    here : int
        How many lay there whole before.
    fetched, bytes : int
        How many came, and their bytes.
    failed : mapping of str to int
        How many did not, by reason; the same call tries them again.
    """

    found: Found
    folder: Path
    here: int
    fetched: int
    bytes: int
    failed: dict[str, int]

    def check(self) -> Fetched:
        """Refuse a fetch that is not complete.

        Raises
        ------
        PacsError
            Where an instance did not arrive.
        """
        if missing := sum(self.failed.values()):
            raise PacsError(
                f"{missing} of {len(self.found)} instances did not arrive whole", where=self.found.server,
                got="; ".join(f"{n} {reason}" for reason, n in self.failed.items()),
                fix="the rest is kept; the same call tries these again, and can be told to leave them out",
            )  # fmt: skip
        return self

    def __str__(self) -> str:
        lost = "".join(f", {n} {reason}" for reason, n in self.failed.items())
        return (f"{len(self.found):,} instances found, {self.here:,} were here, {self.fetched:,} fetched "
                f"({self.bytes / 1e6:,.1f} MB){lost}")  # fmt: skip


@contextmanager
def opened(server: Server) -> Iterator[tuple[Web | Dimse, Pace]]:
    """The archive of an address, and the pace that all its workers share."""
    from medtransfer.pacs.dimse import Dimse

    pace = Pace(None if server.megabytes_per_s is None else 1e6 * server.megabytes_per_s)
    archive: Web | Dimse
    if server.protocol == "dimse":
        archive = Dimse(server, pace)
    else:
        require("dicomweb_client", "dicomweb")
        from medtransfer.pacs.web import Web

        archive = Web(server, pace)
    with hushed():
        try:
            yield archive, pace
        finally:
            archive.close()


def echo(server: Server) -> None:
    """Ask whether the archive is there and takes the credentials (C-ECHO, or a search for one study).

    Raises
    ------
    PacsUnavailable, PacsRefused
        Where it is not, or does not.
    """
    with opened(server) as (archive, pace):
        pace.patiently(archive.echo, attempts=server.attempts)


def find(server: Server, query: Query, *, only: tuple[str, Collection[str]] | None = None) -> Found:
    """What an archive has that fits a query; nothing is fetched.

    Parameters
    ----------
    query : mapping of str to str or sequence of str
        DICOM keywords and what they shall match: ``{"Modality": "CT", "StudyDate": "20240101-20240131"}``. Several
        values of a key mean any of them.
    only : (str, collection of str) or None
        PatientID, StudyInstanceUID or SeriesInstanceUID, and the values of it that are wanted.

    Raises
    ------
    PacsError
        Where the archive cannot be asked, or answers wrongly.
    """
    with opened(server) as (archive, pace):
        return find_in(archive, server, pace, query, only=only)


def asked(
    query: Query, ids: str | Path | None, *, on: str, column: str | None = None, sheet: str | int = 0
) -> tuple[Query, tuple[str, list[str]] | None]:
    """The query, and what of its results is wanted, where a table names it; without a query each id is asked for.

    Parameters
    ----------
    ids : path or None
        A table with a column of ids.
    on : str
        Which id it is: a key of a query, such as PatientID or AccessionNumber.
    """
    if ids is None:
        check_query(query)
        return query, None
    table = read_table(ids, sheet=sheet)
    key = column or table.find(on) or on
    table.require({"column": key})
    wanted = sorted({row[key] for row in table.rows if row[key]})
    if on in _IDS:
        return query or {on: wanted}, (on, wanted)
    return {**query, on: wanted}, None


def here(found: Found, folder: str | Path) -> int:
    """How many of the instances lie whole in a folder."""
    return sum(Shelf(folder).have(one) is not None for one in found) if Path(folder).is_dir() else 0


def fetch(server: Server, found: Found, folder: str | Path, *, progress: bool = True) -> Fetched:
    """Bring what was found into a folder; what lies there whole is not fetched again.

    Parameters
    ----------
    found : Found
        From :func:`find`.
    folder : path
        Private; names in it are pseudonyms.
    progress : bool
        Show a bar where there is a terminal.

    Raises
    ------
    PacsUnavailable
        Where the archive stops answering; the same call goes on from there.
    PacsRefused
        Where it does not accept the credentials.
    PacsError
        Where the folder cannot be written.
    """
    from tqdm import tqdm

    shelf = Shelf(folder)
    missing = [one for one in found if shelf.have(one) is None]
    failed: Counter[str] = Counter()
    arrived: dict[Instance, int] = {}
    with (
        opened(server) as (archive, pace),
        tqdm(total=len(found), initial=len(found) - len(missing), unit="instance", desc="fetch",
             disable=None if progress else True) as bar,
    ):  # fmt: skip

        def keep(one: Instance, content: Iterable[bytes]) -> None:
            arrived[one] = shelf.keep(one, content)
            bar.update()

        def bring(batch: Sequence[Instance]) -> None:
            def once() -> None:
                if left := [one for one in batch if one not in arrived]:
                    archive.retrieve(left, keep)

            try:
                pace.patiently(once, attempts=server.attempts)
            except (Damaged, Missing) as error:
                failed[error.what] += sum(one not in arrived for one in batch)
            except PacsUnavailable as error:
                pace.patiently(archive.echo, attempts=2)  # one instance that the archive fails on does not end the rest
                failed[f"{error.what}, {error.got}"] += sum(one not in arrived for one in batch)

        try:
            _all(bring, list(_batches(missing, archive.batch)), server.workers, pace)
        except (PacsError, PacsRefused) as error:
            raise _with_count(error, len(found) - len(missing) + len(arrived), len(found)) from None
    return Fetched(found, Path(folder), len(found) - len(missing), len(arrived), sum(arrived.values()), dict(failed))


def fetch_scan(
    server: Server,
    query: Query | None,
    *,
    labels: str | Path,
    on: str,
    column: str | None = None,
    sheet: str | int = 0,
    folder: str | Path | None = None,
    incomplete: bool = False,
    progress: bool = True,
) -> Scan:
    """The series of an archive that a table of labels names, fetched and scanned.

    Parameters
    ----------
    query : mapping or None
        As for :func:`find`; None asks for every id of the table by itself.
    labels, on, column, sheet
        As in :meth:`medtransfer.Cohort.from_dicom`: only what has a row is fetched.
    folder : path or None
        Where to; None for a folder in the cache of this user, by archive and query.
    incomplete : bool
        Go on without instances that the archive names and does not give, or gives damaged.

    Raises
    ------
    PacsError
        Where nothing is found, or not everything arrives.
    """
    from medtransfer.io.scan import Scan, scan

    if on not in _IDS:
        raise ConfigError("what comes from an archive is joined by an id", where="on", got=on, fix=", ".join(_IDS))
    query, only = asked(query or {}, labels, on=on, column=column, sheet=sheet)
    found = find(server, query, only=only)
    if not len(found):
        got = ", ".join([f"{found.studies} studies", *(f"{n} {reason}" for reason, n in found.left_out.items())])
        raise PacsError("the archive has nothing that fits", where=server.name, got=got, fix="widen the query")
    name = pseudonym("query", f"{server.address}\0{sorted((k, str(v)) for k, v in query.items())}")
    target = Path(folder) if folder is not None else cache_folder() / "pacs" / name
    done = fetch(server, found, target, progress=progress)
    if not incomplete:
        done.check()
    uids = sorted({(one.study, one.series) for one in found})
    place = {pseudonym("series", series): i for i, (_, series) in enumerate(uids)}  # file names follow the private key
    there = scan(target, progress=progress).where(lambda record: record.series in place)
    return Scan(sorted(there, key=lambda record: place[record.series]), there.skipped, there.findings)


def _batches(instances: Sequence[Instance], most: int) -> Iterator[list[Instance]]:
    """Instances of one series together, at most so many."""
    batch: list[Instance] = []
    for one in instances:
        if batch and (len(batch) == most or one.series != batch[0].series or one.study != batch[0].study):
            yield batch
            batch = []
        batch.append(one)
    if batch:
        yield batch


def _all(bring: Any, batches: Sequence[list[Instance]], workers: int, pace: Pace) -> None:
    """Bring all batches; the first error, or Ctrl-C, stops the others."""
    with ThreadPoolExecutor(workers) as pool:
        left: set[Future[None]] = {pool.submit(bring, batch) for batch in batches}
        try:
            while left:
                done, left = wait(left, return_when=FIRST_COMPLETED)
                for future in done:
                    future.result()
        except BaseException:
            pace.stop()
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def _with_count(error: PacsError | PacsRefused, here: int, total: int) -> PacsError | PacsRefused:
    """The same error, saying what is safe."""
    kept = f"{here} of {total} instances are here and stay; the same call goes on from there"
    return type(error)(error.what, where=error.where, got=error.got, fix=f"{error.fix}; {kept}" if error.fix else kept)
