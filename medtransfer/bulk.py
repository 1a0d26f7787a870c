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
from typing import TYPE_CHECKING, Any

from medtransfer.cache import fingerprint
from medtransfer.claims import LEASE_S, create, divide
from medtransfer.cohort import Case, images_of
from medtransfer.cost import LOOKED_AT, Cost, Stage, evenly, preparing, speaking
from medtransfer.errors import ConfigError, MedTransferError, RunError
from medtransfer.masks import Form, predict_into, segments
from medtransfer.pseudonym import pseudonym
from medtransfer.run import load_checkpoint, make_folder, read_state, write

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
        A finished run.
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
        Where the run is not complete, or the folder holds other work.
    ConfigError
        Where there is no study, a study is named twice or does not exist.
    """
    from tqdm import tqdm

    run, folder = Path(run), Path(folder)
    state = read_state(run)
    if state["status"] != "complete":
        raise RunError("the run is not complete", where=run.name, fix="run the training command again: it goes on")
    size, paths, aliases = _begin(folder, state, [Path(s) for s in studies], form, portion)
    work = _masks(run, folder / "masks", form) if segments(run) else _Classes(run, workers)
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
    write(table, _csv([["row", "case", *_head(state), "problem"], *rows]))
    return Shared(table, len(rows), sum(bool(row[-1]) for row in rows), len(own))


def cost_of_predicting(run: str | Path, studies: Sequence[str | Path], *, workers: int = 2) -> Cost:
    """Time of predicting studies with a finished run by one process, from a few of them.

    Raises
    ------
    ConfigError
        Where there is no study.
    DataError
        Where none of those looked at can be read.
    """
    from medtransfer.prepare import Prepare

    run = Path(run)
    asked, paths = read_state(run)["asked"], [Path(p) for p in studies]
    if not paths:
        raise ConfigError("there is no study to predict", fix="name images, or --list FILE")
    looked_at = [paths[i] for i in evenly(range(len(paths)), LOOKED_AT)]
    if segments(run):
        return Cost((Stage("read, segment, write", len(paths), _timed_masks(run, looked_at[:3])),), len(looked_at[:3]))
    cases = [Case(str(p), str(p), images_of(p) if asked.get("bag") else p) for p in looked_at]
    stages, arrays = preparing(cases, Prepare(**asked["prepare"]), len(paths), workers, reads=1)
    models = [load_checkpoint(f).eval() for f in sorted(run.glob("fold-*/model.safetensors"))]
    return Cost((*stages, Stage("predict", len(paths), speaking(models, arrays))), len(arrays))


def _timed_masks(run: Path, paths: Sequence[Path]) -> tuple[float, ...]:
    seconds = []
    with TemporaryDirectory() as out:
        for path in paths:
            began = time.perf_counter()
            list(predict_into(run, [str(path)], out))
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
    folder: Path, state: dict[str, Any], studies: Sequence[Path], form: str, portion: int
) -> tuple[int, list[Path], list[str]]:
    """Studies together, paths and pseudonyms: of the work that stands in the folder, or that is begun here."""
    stands = (folder / "work.json").is_file()
    if not studies and not stands:
        raise ConfigError("there is no study to predict", where=folder.name, fix="name images, or --list FILE")
    paths = [p.resolve() for p in studies]
    asked = {"run": state["identity"], "form": form, "key": pseudonym("case", "whose key this is")}
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


def _head(state: dict[str, Any]) -> list[str]:
    asked = state["asked"]
    if asked.get("task") == "segmentation":
        return ["mask", *(f"ml:{n}" for n in asked["structures"])]
    return [f"p:{c}" for c in asked["classes"]]


def _csv(rows: Rows) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def _problem(error: MedTransferError | OSError) -> str:
    """What is wrong, without the names of files, which may be patients'."""
    return error.what if isinstance(error, MedTransferError) else error.strerror or type(error).__name__


class _Classes:
    """Probabilities, or predicted values, of a run's folds averaged; the models are read when first asked."""

    def __init__(self, run: Path, workers: int) -> None:
        from medtransfer.prepare import Prepare

        self.asked = read_state(run)["asked"]
        self.prepare, self.workers = Prepare(**self.asked["prepare"]), workers
        self.files, self.models = sorted(run.glob("fold-*/model.safetensors")), list[Any]()

    def __call__(self, paths: Sequence[Path]) -> Rows:
        import numpy as np

        from medtransfer.dataset import Prepared
        from medtransfer.predict import speak

        self.models = self.models or [load_checkpoint(f).eval() for f in self.files]
        several = bool(self.asked.get("bag"))
        cases = [Case(str(p), str(p), images_of(p) if several else p) for p in paths]
        prepared = Prepared(cases, self.prepare, progress=False)
        channels = self.models[0].description.in_channels

        def one(index: int) -> NDArray[np.float32] | str:
            try:
                array = prepared.one(index)
            except (MedTransferError, OSError) as error:
                return _problem(error)
            if len(array) != channels:
                return f"the image has {len(array)} channels where the model takes {channels}"
            return array

        with ThreadPoolExecutor(max(1, self.workers)) as pool:
            arrays = list(pool.map(one, range(len(cases))))
        good = [a for a in arrays if not isinstance(a, str)]
        said = iter(np.mean([speak(m, np.stack(good)) for m in self.models], axis=0) if good else ())
        blank = [""] * len(self.asked["classes"])
        return [[*blank, a] if isinstance(a, str) else [*(f"{p:.6f}" for p in next(said)), ""] for a in arrays]


def _masks(run: Path, out: Path, form: Form) -> Work:
    """Masks in files, and the volumes of their structures."""
    names = read_state(run)["asked"]["structures"]

    def work(paths: Sequence[Path]) -> Rows:
        rows: Rows = []
        while left := [str(p) for p in paths[len(rows) :]]:
            try:
                for made in predict_into(run, left, out, form=form):
                    volumes = [f"{made.volumes_ml[n]:.3f}" if made.volumes_ml else "" for n in names]
                    rows.append([made.path.name if made.path else "", *volumes, ""])
            except (MedTransferError, OSError) as error:
                rows.append(["", *([""] * len(names)), _problem(error)])
        return rows

    return work
