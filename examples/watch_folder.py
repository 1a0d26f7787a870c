"""A folder between the archive and research: a new study in, its prediction out, each study once.

python examples/watch_folder.py MODEL INBOX OUTBOX [--quiet 60] [--every 10] [--once]

MODEL is a run folder or an exported model. Every folder in INBOX is a study; nothing in it is changed. It waits until
none of its files has changed for ``--quiet`` seconds. Then OUTBOX gets one folder for it, named by a keyed hash of the
study's content: ``result.json``, and for DICOM a segmentation (SEG) or a structured report (SR) for each series that
the model fits. That folder appears whole or not at all: whatever is killed in between is done again from its start, and
what is there is not done again, also when the study is sent a second time under another name. A study that killed the
program three times is set aside with an error.

For research: nothing here sends results back to the archive, and nobody should read them as findings.
"""

import argparse
import fcntl
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from medtransfer.cache import file_digest, fingerprint
from medtransfer.cohort import Case
from medtransfer.dataset import Prepared
from medtransfer.errors import DataError, MedTransferError, require
from medtransfer.export.opened import Exported, open_exported
from medtransfer.io.record import SeriesRecord
from medtransfer.io.scan import scan
from medtransfer.pseudonym import pseudonym

ATTEMPTS = 3


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("inbox", type=Path)
    parser.add_argument("outbox", type=Path)
    parser.add_argument("--quiet", type=float, default=60, help="Seconds without a change before a study is read.")
    parser.add_argument("--every", type=float, default=10, help="Seconds between two looks.")
    parser.add_argument("--once", action="store_true", help="Look once.")
    told = parser.parse_args()
    told.outbox.mkdir(parents=True, exist_ok=True)
    with open(told.outbox / ".lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            sys.exit("another watcher writes here already")
        require("highdicom", "dicom-out")
        model = open_exported(told.model)
        names: dict[tuple[object, ...], str] = {}
        while True:
            for name in look(model, told.inbox, told.outbox, quiet_s=told.quiet, names=names):
                print(name, flush=True)
            if told.once:
                return
            time.sleep(told.every)


def look(
    model: Exported, inbox: Path, outbox: Path, *, quiet_s: float, names: dict[tuple[object, ...], str] | None = None
) -> Iterator[str]:
    """One pass: the names of the studies that were done now.

    ``names`` keeps what was read once between passes, so that old studies are not read again.
    """
    names = {} if names is None else names
    for study in sorted(p for p in inbox.iterdir() if p.is_dir() and not p.name.startswith(".")):
        try:
            state = changes(study)
            arriving = any(f.endswith((".part", ".tmp", ".filepart")) for f, _, _ in state)
            if not state or arriving or time.time() - max(at for _, _, at in state) < quiet_s:
                continue
            if state not in names:
                names[state] = pseudonym("study", fingerprint(*sorted(file_digest(Path(f)) for f, _, _ in state)))
            name = names[state]
            if (outbox / name).exists() or changes(study) != state:
                continue
        except FileNotFoundError:  # moved away while it was looked at: a later pass sees what is there
            continue
        done(model, study, outbox, name, len(state))
        yield name


def changes(study: Path) -> tuple[tuple[str, int, float], ...]:
    """Each file of a study with its size and when it, or its folder, was last changed; copies cannot set that time."""
    found = []
    for path in sorted(study.rglob("*")):
        if path.is_file():
            facts = path.stat()
            found.append((str(path), facts.st_size, max(facts.st_ctime, path.parent.stat().st_ctime)))
    return tuple(found)


def done(model: Exported, study: Path, outbox: Path, name: str, files: int) -> None:
    """Write the results of a study beside their place, then move them there in one step."""
    draft = outbox / f".draft-{name}"
    before = draft / "attempts"
    attempts = int(before.read_text() or 0) if before.is_file() else 0
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir()
    before.write_text(str(attempts + 1))
    found: dict[str, object] = {"schema": "medtransfer.watch/1", "study": name, "files": files,
                                "model": {"task": model.card.task, "names": list(model.card.names)}}  # fmt: skip
    if attempts >= ATTEMPTS:
        found["error"] = f"the program ended {attempts} times while it read this study"
    else:
        try:
            found["series"] = answers(model, study, draft)
        except (MedTransferError, OSError) as error:
            found["error"] = f"{type(error).__name__}: {error if isinstance(error, MedTransferError) else ''}"
    with open(draft / "result.json", "w") as file:
        json.dump(found, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    before.unlink()
    draft.rename(outbox / name)


def answers(model: Exported, study: Path, out: Path) -> list[dict[str, object]]:
    """What the model says of every series of a study that it fits."""
    card = model.card
    dims = card.planned().dims if card.task == "segmentation" else card.preparation().dims
    kind = "volume" if dims == 3 else "image"
    fitting = [r for r in scan(study, progress=False) if r.kind == kind and r.modality not in ("SEG", "SR")]
    if not fitting:
        raise DataError(f"no series of this study is a {kind}", where=out.name.removeprefix(".draft-"))
    if card.bag:
        return [{"images": len(fitting), **classes(model, [r for r in fitting if r.ok], None)}]
    rows = []
    for number, record in enumerate(fitting, start=1):
        row: dict[str, object] = {"series": record.series, "modality": record.modality, "shape": list(record.shape)}
        target = out / f"series-{number}"
        try:
            row |= masks(model, record, target) if card.task == "segmentation" else classes(model, [record], target)
        except MedTransferError as error:
            row["error"] = f"{type(error).__name__}: {error}"
        rows.append(row)
    return rows


def masks(model: Exported, record: SeriesRecord, target: Path) -> dict[str, object]:
    """The mask of a series as SEG with its volumes as SR; of a NIfTI file as NIfTI."""
    import numpy as np

    from medtransfer.out.nifti import write_mask
    from medtransfer.out.seg import write_seg
    from medtransfer.out.sr import write_sr

    image = record.read()
    labels = model.segment(image, where=record.series)
    counts = np.bincount(labels.ravel(), minlength=len(model.structures) + 1)[1:]
    row: dict[str, object] = {"voxels": dict(zip(model.structures, counts.tolist(), strict=True))}
    if record.spacing_mm is not None and labels.ndim == 3:
        ml = {n: float(c * np.prod(record.spacing_mm) / 1000) for n, c in zip(model.structures, counts, strict=True)}
        row["volumes_ml"] = {n: round(v, 3) for n, v in ml.items()}
        if record.modality:
            seg = write_seg(labels, record, target.with_suffix(".seg.dcm"), structures=model.structures)
            row["written"] = [seg.name, write_sr(record, target.with_suffix(".sr.dcm"), volumes_ml=ml, seg=seg).name]
        else:
            row["written"] = [write_mask(labels, image, target.with_suffix(".nii.gz")).name]
    return row


def classes(model: Exported, records: list[SeriesRecord], target: Path | None) -> dict[str, object]:
    """Probabilities and what they call, or values, for a series or for a bag of them; of a DICOM series also as SR."""
    from medtransfer.out.sr import write_sr

    image = tuple(records) if model.card.bag else records[0]
    prepared = Prepared([Case("series", "patient", image)], model.card.preparation(), progress=False)
    found = model.says(prepared, [0])[0].tolist()
    said, path = dict(zip(model.card.names, found, strict=True)), target and target.with_suffix(".sr.dcm")
    results = {"values": said} if model.card.task == "regression" else {
        "probabilities": said, "thresholds": model.card.thresholds}  # fmt: skip
    row: dict[str, object] = {**results}
    if model.card.task != "regression":
        row["called"] = model.card.row(found)[-1]
    if path and records[0].modality:
        row["written"] = [write_sr(records[0], path, **results).name]
    return row


if __name__ == "__main__":
    main()
