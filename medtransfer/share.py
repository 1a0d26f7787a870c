"""A run as an archive for others: what predicts and what was found, and nothing that names a patient or a machine.

::

    card.md              what this is, how good it was, how to use it
    share.json           format, versions, what was left out
    SHA256SUMS           a line for each other file, as ``sha256sum -c`` reads it
    run.json, fold-*/    the models and all that prediction needs
    report.html ...      numbers and the report, drawn anew without pictures of patients

Only files that are known to be needed go in. Before anything is written, every text is searched for the ids, file
names and folders that the run's private part remembers; one hit and nothing is written.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Any

import medtransfer
from medtransfer.errors import ConfigError, DataError, RunError
from medtransfer.run import read_state, write

FORMAT = "medtransfer.share/1"
SUMS, FACTS = "SHA256SUMS", "share.json"
TOP = "medtransfer-run"
WANTED = ("run.json", "split.json", "metrics.json", "predictions.csv", "threshold.json", "model_card.md",
          "model_card.xml", "plan.yaml", "segmentation.csv", "segmentation.json", "fold-*/model.safetensors",
          "fold-*/history.json", "fold-*/finish.json", "fold-*/precision.json")  # fmt: skip
PICTURES = ("report.html", "masks/*.nii.gz")
_MOST_BYTES = 2**36


def share(
    run: str | Path, out: str | Path, *, pictures: bool = False, leave_out: Sequence[str] = (), note: str = ""
) -> Path:
    """Write an archive of a finished run that others can predict with.

    Parameters
    ----------
    run : path
        Folder of a finished run.
    out : path
        The ``.zip`` to make; it must not exist.
    pictures : bool
        Also put in the run's own report, which shows images of patients, and the masks it predicted. Otherwise
        the report is drawn anew, without pictures.
    leave_out : sequence of str
        Patterns of files that shall not go in, such as ``'predictions.csv'``.
    note : str
        What the card says beside its facts, e.g. terms of use.

    Returns
    -------
    Path
        The archive.

    Raises
    ------
    RunError
        Where the run is not complete.
    ConfigError
        Where the archive exists already.
    DataError
        Where an id, a file name or a folder of the patients' data stands in a file that would go in.
    """
    folder, target = Path(run), Path(out)
    state = read_state(folder)
    if state.get("status") != "complete":
        raise RunError("the run is not complete", where=folder.name, fix="run the training command again: it goes on")
    if target.exists():
        raise ConfigError("the file exists already", where=target.name, fix="name another file")
    files = _gathered(folder, pictures)
    files = {name: raw for name, raw in files.items() if not any(fnmatch(name, p) for p in leave_out)}
    facts = {"format": FORMAT, "medtransfer": medtransfer.__version__, "pictures": pictures, "files": len(files) + 2,
             "left_out": sorted({p.relative_to(folder).parts[0] for p in folder.rglob("*") if p.is_file()}
                                - {name.split("/")[0] for name in files})}  # fmt: skip
    files[FACTS] = _json(facts)
    files["card.md"] = _card(state, files, note).encode()
    _refuse_identifiers(files, secrets_of(folder))
    files[SUMS] = "".join(f"{_sha(raw)}  {name}\n" for name, raw in sorted(files.items())).encode()
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, raw in sorted(files.items()):
            entry = zipfile.ZipInfo(f"{TOP}/{name}")  # the same run gives the same bytes: no time, no owner
            entry.external_attr = 0o644 << 16
            plain = name.endswith((".safetensors", ".gz"))
            entry.compress_type = zipfile.ZIP_STORED if plain else zipfile.ZIP_DEFLATED
            archive.writestr(entry, raw)
    write(target, packed.getvalue())
    return target


def check(shared: str | Path) -> dict[str, Any]:
    """Whether an archive, or the folder it was unpacked to, still is what was packed.

    Returns
    -------
    dict
        What ``share.json`` says, and ``sha256`` of all sums.

    Raises
    ------
    DataError
        Where a file is missing, new or changed, or it is no such archive.
    """
    path = Path(shared)
    files = dict(_unpacked(path) if path.is_dir() else _zipped(path))
    sums = files.pop(SUMS, None)
    if sums is None or FACTS not in files:
        raise DataError("this is no archive of a run", where=path.name, fix="give what `medtransfer share` made")
    wanted = {line[66:]: line[:64] for line in sums.decode("utf-8", "replace").splitlines()}
    for what, names in (
        ("are missing", wanted.keys() - files.keys()),
        ("are not of it", files.keys() - wanted.keys()),
        ("have changed", {n for n in wanted.keys() & files.keys() if wanted[n] != _sha(files[n])}),
    ):
        if names:
            listed = ", ".join(sorted(names)[:5])
            raise DataError(f"{len(names)} files of the archive {what}", where=path.name, got=listed,
                            fix="ask for the archive again")  # fmt: skip
    facts: dict[str, Any] = json.loads(files[FACTS])
    return facts | {"sha256": _sha(sums)}


def is_shared(folder: str | Path) -> bool:
    """Whether a folder is an unpacked archive of a run."""
    return (Path(folder) / FACTS).is_file()


def redraw(folder: str | Path) -> str:
    """The report of a run as a page without pictures, from the numbers that the run has written down.

    Raises
    ------
    RunError
        Where the run was not evaluated.
    """
    folder = Path(folder)
    file = folder / "record.json"
    record: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return _page(folder, record)


def write_redrawn(folder: str | Path) -> Path:
    """Write the report of an unpacked archive again."""
    path = Path(folder) / "report.html"
    write(path, redraw(folder))
    return path


def _page(folder: Path, record: Mapping[str, Any]) -> str:
    from medtransfer.report.write import page, words_of

    words = words_of("en")
    if read_state(folder)["asked"].get("task") == "segmentation":
        from medtransfer.contour import read_segmented
        from medtransfer.report.masks import view
        from medtransfer.report.write import render

        return render(words, view(read_segmented(folder), [], record, words, bootstrap=2000, seed=0))
    from dataclasses import replace

    from medtransfer.evaluate import evaluate
    from medtransfer.rivals import read_runs

    runs, points = read_runs([folder])
    asked = json.loads((folder / "metrics.json").read_text(encoding="utf-8")).get("bootstrap") or {}
    (name, predictions), resamples = next(iter(runs.items())), int(asked.get("resamples", 2000))
    found = evaluate(predictions, threshold=points.get(name), bootstrap=resamples, seed=int(asked.get("seed", 0)))
    return page(replace(found, record=dict(record)), words)


def _gathered(folder: Path, pictures: bool) -> dict[str, bytes]:
    """Files that go in, by name: those that are wanted, and record, config and report without what is private."""
    patterns = WANTED + (PICTURES if pictures else ())
    paths = {p.relative_to(folder).as_posix(): p for pattern in patterns for p in folder.glob(pattern)}
    files = {name: path.read_bytes() for name, path in paths.items()}
    state = json.loads(files["run.json"])
    record: dict[str, Any] = {}
    if (folder / "record.json").is_file():
        record = json.loads((folder / "record.json").read_text(encoding="utf-8"))
    if (folder / "config.yaml").is_file():
        files["config.yaml"] = _config((folder / "config.yaml").read_text(encoding="utf-8")).encode()
        record["config"] = files["config.yaml"].decode()
    record["command"] = ""
    files["record.json"] = _json(record)
    evaluated = "segmentation.json" if state["asked"].get("task") == "segmentation" else "predictions.csv"
    if not pictures and evaluated in files:
        files["report.html"] = _page(folder, record).encode()
    return files


def _config(text: str) -> str:
    """A config whose cohort says no more than where it came from: columns may be named after people, too."""
    from ruamel.yaml import YAML

    values = YAML(typ="safe", pure=True).load(io.StringIO(text))
    cohort = values.get("cohort") or {}
    values["cohort"] = {key: "(private)" for key in ("csv", "dicom", "medmnist") if key in cohort}
    yaml, written = YAML(typ="safe", pure=True), io.StringIO()
    yaml.default_flow_style = False
    yaml.dump(values, written)
    return written.getvalue()


def _card(state: Mapping[str, Any], files: Mapping[str, bytes], note: str) -> str:
    asked = state["asked"]
    task = asked.get("task") or "classification"
    names = asked.get("structures") or asked.get("classes") or ()
    lines = [f"# A medtransfer run: {task} of {', '.join(map(str, names))}", ""]
    if "segmentation.json" in files:
        whole = json.loads(files["segmentation.json"])
        lines += [f"- Dice of {name}: {_said(row.get('dice'))}" for name, row in whole["structures"].items()]
    elif "metrics.json" in files:
        found = json.loads(files["metrics.json"])
        measure = str(found.get("primary", "auroc"))
        lines += [f"- {measure}: {_said((found.get('estimates') or {}).get(measure))}"]
    models = [name for name in files if name.endswith("model.safetensors")]
    lines += [
        f"- {len(models)} model(s), medtransfer {medtransfer.__version__}",
        "- on held-out patients of the cohort that it was trained on; elsewhere it may do worse",
        "",
        "For research. It is no medical device and must not decide about a patient.",
        "Models can hold traces of the images that they learned from: pass them on under the terms of those data.",
        "",
        "    medtransfer share --check ARCHIVE.zip      # nothing has changed",
        f"    medtransfer predict {TOP} IMAGE ...  # in the folder it was unpacked to",
        f"    medtransfer report {TOP}             # the report, drawn from the stored numbers",
        "",
    ]
    return "\n".join([*lines, *([note, ""] if note else [])])


def _said(estimate: object) -> str:
    if not isinstance(estimate, Mapping) or estimate.get("value") is None:
        return "not defined"
    low, high = estimate.get("low"), estimate.get("high")
    ends = f" (95 % interval {low:.3f} to {high:.3f})" if low is not None and high is not None else ""
    return f"{estimate['value']:.3f}{ends}"


def secrets_of(folder: Path) -> tuple[str, ...]:
    """Texts that no shared file may hold: ids and file names of the cohort, and the folders of this machine."""
    found = {str(Path.home()), str(folder.resolve()), str(Path.cwd())}
    file = folder / "private" / "ids.csv"
    if file.is_file():
        with open(file, encoding="utf-8", newline="") as rows:
            for row in csv.DictReader(rows):
                found |= {row["case_id"], row["patient_id"]}
                for path in map(Path, filter(None, row["files"].split(";"))):
                    found |= {path.name, *(str(p) for p in path.resolve().parents if len(p.parts) > 3)}
    return tuple(sorted(text for text in found if _telling(text)))


def _telling(text: str) -> bool:
    """Whether a text is long enough to be looked for: short numbers stand in every table."""
    if re.fullmatch(r"(case|patient|study|series)-[0-9a-f]{12}", text):
        return False  # a pseudonym
    return len(text) >= (6 if text.isdecimal() else 4)


def _refuse_identifiers(files: Mapping[str, bytes], secrets: Sequence[str]) -> None:
    if not secrets:
        return
    pattern = re.compile("|".join(rf"(?<![\w.]){re.escape(s.lower())}(?!\w)" for s in secrets))
    for name, raw in sorted(files.items()):
        text = name + "\n" + _text(name, raw)
        hits = set(pattern.findall(text.lower()))
        if hits:
            raise DataError(
                "an id, a file name or a folder of the patients' data stands in a file of the run; nothing was written",
                where=name, got=f"{len(hits)} of {len(secrets)}", fix="--leave-out FILE, or change what wrote it",
            )  # fmt: skip


def _text(name: str, raw: bytes) -> str:
    """What of a file is text: of tensors their header, of compressed files what is in them."""
    if name.endswith(".safetensors"):
        raw = raw[8 : 8 + int.from_bytes(raw[:8], "little")]
    elif name.endswith(".gz"):
        import gzip

        raw = gzip.decompress(raw)[:544]  # the header of a NIfTI file
    text = raw.decode("utf-8", "replace")
    return text + "\n" + text.encode("utf-8", "replace").decode("unicode_escape", "replace") if "\\u" in text else text


def _zipped(path: Path) -> Iterator[tuple[str, bytes]]:
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            if sum(e.file_size for e in entries) > _MOST_BYTES:
                raise DataError("the archive unpacks to far too much", where=path.name)
            for entry in entries:
                parts = PurePosixPath(entry.filename.replace("\\", "/")).parts
                if parts[0] != TOP or ".." in parts:
                    raise DataError("this is no archive of a run", where=path.name, got="files outside of its folder")
                if not entry.is_dir():
                    yield "/".join(parts[1:]), archive.read(entry)
    except (zipfile.BadZipFile, OSError, EOFError) as error:
        raise DataError("the archive cannot be read", where=path.name, got=type(error).__name__) from None


def _unpacked(path: Path) -> Iterator[tuple[str, bytes]]:
    for file in sorted(path.rglob("*")):
        if file.is_file() and "private" not in file.relative_to(path).parts:
            yield file.relative_to(path).as_posix(), file.read_bytes()


def _json(value: object) -> bytes:
    return (json.dumps(value, indent=1, sort_keys=True) + "\n").encode()


def _sha(raw: bytes) -> str:
    return hashlib.sha256(raw).hexdigest()
