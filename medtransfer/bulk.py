"""Bulk prediction: studies divided among processes, on one machine or many, each in the result exactly once.

::

    work.json            what is asked: the run, how many studies, how they are divided
    private/studies.csv  number, pseudonym and path of each study; readable by this user alone
    claims/              who is at work on what (see medtransfer.claims)
    parts/00017.csv      rows of one portion of the studies, written whole by whoever computed them
    predictions.csv      all rows in the order given, once every part is there

Which studies are computed together stands in ``work.json``: the numbers are the same for any number of processes.
A part has one name and one content, so that a portion computed twice, after a process was taken for gone, counts once.
"""

from __future__ import annotations

import csv
import io
import json
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from medtransfer.cache import fingerprint
from medtransfer.claims import LEASE_S, create, divide
from medtransfer.cohort import Case, images_of
from medtransfer.cost import LOOKED_AT, Cost, Stage, answering, evenly, preparing
from medtransfer.errors import ConfigError, MedTransferError, RunError
from medtransfer.export.opened import Exported, open_exported
from medtransfer.masks import Form, predict_into
from medtransfer.pseudonym import pseudonym
from medtransfer.reported import version_of
from medtransfer.run import make_folder, read_state, write

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

PORTION = 16  # studies computed together
Rows = list[list[str]]
Work = Callable[[Sequence[Path]], Rows]


@dataclass(frozen=True)
class Shared:
    """What a bulk prediction ended in.

    Parameters
    ----------
    table : Path
        ``predictions.csv``.
    studies, problems : int
        Rows, and how many of them say in the column ``problem`` why there is no prediction.
    own : int
        Studies that this process computed.
    """

    table: Path
    studies: int
    problems: int
    own: int

    def __str__(self) -> str:
        lacking = f", {self.problems:,} of them with a problem and no prediction" if self.problems else ""
        return f"{self.studies:,} studies{lacking} in {self.table}; {self.own:,} computed by this process"


def predict_shared(
    run: str | Path,
    studies: Sequence[str | Path],
    folder: str | Path,
    *,
    form: Form = "nifti",
    portion: int = PORTION,
    lease_s: float = LEASE_S,
    workers: int = 2,
    progress: bool = True,
) -> Shared:
    """Predict studies together with every other process that is given the same folder; ends when all are predicted.

    A process that ends before, or is killed, leaves what it had finished; what it had begun is taken over by the
    others, or by the next call.

    Parameters
    ----------
    run : path
        A finished run, or what :func:`medtransfer.export.export` wrote.
    studies : sequence of path
        Files, or folders of one series (of a run on bags: of one case). Empty takes those the folder knows.
    folder : path
        Of the work and its result, on a file system that all processes see.
    form : {'nifti', 'seg'}
        How a segmentation's masks are written, into ``masks`` of the folder.
    portion : int
        Studies computed together; the first call decides.
    lease_s : float
        After so many seconds without a sign of its holder a portion is taken over; at once on the same machine.
    workers : int
        Threads that read and prepare.

    Raises
    ------
    RunError
        Where the run is not complete, the file is no model, or the folder holds other work.
    ConfigError
        Where there is no study, a study is named twice or does not exist.
    """
    from tqdm import tqdm

    folder, model = Path(folder), open_exported(run)
    size, paths, aliases = _begin(folder, _identity(Path(run), model), [Path(s) for s in studies], form, portion)
    masks = model.card.task == "segmentation"
    work = _masks(model, folder / "masks", form) if masks else _classes(model, workers)
    head = ["mask", *(f"ml:{n}" for n in model.structures)] if masks else model.card.columns
    own: list[int] = []

    def compute(number: int) -> str:
        mine = range(number * size, min(len(paths), (number + 1) * size))
        rows = work([paths[i] for i in mine])
        own.extend(mine)
        return _csv([[str(i + 1), aliases[i], *row] for i, row in zip(mine, rows, strict=True)])

    with tqdm(total=len(paths), desc="predict", unit="study", disable=None if progress else True) as bar:

        def tell(done: int) -> None:
            bar.update(min(len(paths), done * size) - bar.n)

        parts = divide(folder, -(-len(paths) // size), compute, lease_s=lease_s, tell=tell)
    rows = _whole(parts, len(paths))
    table = folder / "predictions.csv"
    write(table, _csv([["row", "case", *head, "problem"], *rows]))
    return Shared(table, len(rows), sum(bool(row[-1]) for row in rows), len(own))


def cost_of_predicting(run: str | Path, studies: Sequence[str | Path], *, workers: int = 2) -> Cost:
    """Time of predicting studies with a run or an exported model by one process, from a few of them.

    Raises
    ------
    ConfigError
        Where there is no study.
    DataError
        Where none of those looked at can be read.
    """
    model, paths = open_exported(run), [Path(p) for p in studies]
    if not paths:
        raise ConfigError("there is no study to predict", fix="name images, or --list FILE")
    looked_at = [paths[i] for i in evenly(range(len(paths)), LOOKED_AT)]
    if model.card.task == "segmentation":
        seconds = _timed_masks(model, looked_at[:3])
        return Cost((Stage("read, segment, write", len(paths), seconds),), len(seconds))
    cases = _cases(model, looked_at)
    stages, arrays = preparing(cases, model.card.preparation(), len(paths), workers, reads=1)
    return Cost((*stages, Stage("predict", len(paths), answering(model.answer, arrays))), len(arrays))


def _timed_masks(model: Exported, paths: Sequence[Path]) -> tuple[float, ...]:
    seconds = []
    with TemporaryDirectory() as out:
        for path in paths:
            began = time.perf_counter()
            list(predict_into(model, [str(path)], out))
            seconds.append(time.perf_counter() - began)
    return tuple(seconds)


def read_list(path: str | Path) -> list[Path]:
    """Studies of a text file, a path a line, started from the file's own folder; lines with ``#`` are notes.

    Raises
    ------
    ConfigError
        Where the file cannot be read.
    """
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError("the list of studies cannot be read", where=path.name, got=type(error).__name__,
                          fix="a UTF-8 text file with a path a line") from error  # fmt: skip
    return [path.parent / line.strip() for line in lines if line.strip() and not line.startswith("#")]


def _begin(
    folder: Path, identity: str, studies: Sequence[Path], form: str, portion: int
) -> tuple[int, list[Path], list[str]]:
    """Studies together, paths and pseudonyms: of the work that stands in the folder, or that is begun here."""
    stands = (folder / "work.json").is_file()
    if not studies and not stands:
        raise ConfigError("there is no study to predict", where=folder.name, fix="name images, or --list FILE")
    paths = [p.resolve() for p in studies]
    asked = {"run": identity, "form": form, "key": pseudonym("case", "whose key this is")}
    if studies:
        _check(paths)
        asked["studies"] = fingerprint(*map(str, paths))
    if not stands:
        make_folder(folder)
        rows = [[str(i), Case(str(p), str(p), p).alias, str(p)] for i, p in enumerate(paths, start=1)]
        create(folder / "private" / "studies.csv", _csv([["row", "case", "study"], *rows]), mode=0o600)
        create(folder / "work.json", json.dumps({"format": 1, "portion": portion, "asked": asked}, indent=1) + "\n")
    try:
        known = json.loads((folder / "work.json").read_text(encoding="utf-8"))
        size, told = int(known["portion"]), dict(known["asked"])
        with open(folder / "private" / "studies.csv", encoding="utf-8", newline="") as file:
            listed = list(csv.reader(file))[1:]
        found = [Path(row[2]) for row in listed]
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise RunError("the folder of the shared work is damaged", where=folder.name, fix="take another folder"
                       ) from error  # fmt: skip
    if told["key"] != asked["key"]:
        raise RunError("this machine has another private key than the one that began the work", where=folder.name,
                       fix="set MEDTRANSFER_HOME to the same folder on all machines")  # fmt: skip
    different = sorted(k for k in asked if told.get(k) != asked[k])
    if different or told["studies"] != fingerprint(*map(str, found)):
        raise RunError("the folder holds other work", where=folder.name, got=f"other {', '.join(different)}",
                       fix="take another folder")  # fmt: skip
    return size, found, [row[1] for row in listed]


def _check(paths: Sequence[Path]) -> None:
    first: dict[Path, int] = {}
    twice = [(first[p], i) for i, p in enumerate(paths, start=1) if first.setdefault(p, i) != i]
    if twice:
        raise ConfigError("a study is named twice", where=f"studies {twice[0][0]} and {twice[0][1]}",
                          got=f"{len(twice)} such", fix="name each once")  # fmt: skip
    absent = [i for i, p in enumerate(paths, start=1) if not p.exists()]
    if absent:
        raise ConfigError("a study does not exist", where=f"study {absent[0]} of {len(paths)}",
                          got=f"{len(absent)} such", fix="correct the paths; a list starts from its own folder"
                          )  # fmt: skip


def _whole(parts: Sequence[Path], studies: int) -> Rows:
    """The rows of all parts, proven to be each study once."""
    rows: Rows = []
    for part in parts:
        with open(part, encoding="utf-8", newline="") as file:
            rows += list(csv.reader(file))
    if [row[0] for row in rows] != [str(i) for i in range(1, studies + 1)]:
        raise RunError("the parts do not hold each study once", where=parts[0].parent.parent.name,
                       got=f"{len(rows)} rows for {studies} studies", fix="remove the damaged part and call again"
                       )  # fmt: skip
    return rows


def _identity(path: Path, model: Exported) -> str:
    """What tells a model from all others: of a run what was asked, of what was exported its tensors and its card."""
    if (path / "run.json").is_file():
        return str(read_state(path)["identity"])
    return fingerprint(version_of(path), model.card.to_json())


def _csv(rows: Rows) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def _problem(error: MedTransferError | OSError) -> str:
    """What is wrong, without the names of files, which may be patients'."""
    return error.what if isinstance(error, MedTransferError) else error.strerror or type(error).__name__


def _cases(model: Exported, paths: Sequence[Path]) -> list[Case]:
    return [Case(str(p), str(p), images_of(p) if model.card.bag else p) for p in paths]


def _classes(model: Exported, workers: int) -> Work:
    """Probabilities and what they call, or predicted values."""

    from medtransfer.dataset import Prepared

    card = model.card

    def work(paths: Sequence[Path]) -> Rows:
        prepared = Prepared(_cases(model, paths), card.preparation(), progress=False)

        def one(index: int) -> NDArray[np.float32] | str:
            try:
                array = prepared.one(index)
            except (MedTransferError, OSError) as error:
                return _problem(error)
            if len(array) != card.shape[0]:
                return f"the image has {len(array)} channels where the model takes {card.shape[0]}"
            return array

        with ThreadPoolExecutor(max(1, workers)) as pool:
            arrays = list(pool.map(one, range(len(paths))))
        good = [a for a in arrays if not isinstance(a, str)]
        said = iter(model.answers(good))
        blank = [""] * len(card.columns)
        return [[*blank, a] if isinstance(a, str) else [*card.row(next(said)), ""] for a in arrays]

    return work


def _masks(model: Exported, out: Path, form: Form) -> Work:
    """Masks in files, and the volumes of their structures."""
    names = model.structures

    def work(paths: Sequence[Path]) -> Rows:
        rows: Rows = []
        while left := [str(p) for p in paths[len(rows) :]]:
            try:
                for made in predict_into(model, left, out, form=form):
                    volumes = [f"{made.volumes_ml[n]:.3f}" if made.volumes_ml else "" for n in names]
                    rows.append([made.path.name if made.path else "", *volumes, ""])
            except (MedTransferError, OSError) as error:
                rows.append(["", *([""] * len(names)), _problem(error)])
        return rows

    return work
