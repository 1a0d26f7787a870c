"""One case as a page of its own: image, masks, planes and the viewer, in one file that opens without a network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from medtransfer.cohort import Case, Cohort
from medtransfer.errors import DataError, RunError
from medtransfer.image import Image
from medtransfer.run import read_state, write

if TYPE_CHECKING:
    from medtransfer.report.words import Words

Labels = NDArray[np.uint8]
Language = Literal["en", "de", "fr", "es"]
LIMIT_MB = 48.0


@dataclass(frozen=True, eq=False)
class Shown:
    """What the page of a case shows.

    Parameters
    ----------
    case : str
        Pseudonym.
    image : Image
    masks : dict of {'reference', 'predicted'} to ndarray of uint8
        On the image's voxels.
    structures : tuple of str
        Names of labels 1, 2, ...
    facts : tuple of (str, str)
        A name and a text each, in plain words.
    """

    case: str
    image: Image
    masks: Mapping[str, Labels]
    structures: tuple[str, ...] = ()
    facts: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class _Held:
    """An image that is in memory, to be read as a case."""

    image: Image

    def read(self) -> Image:
        return self.image


def view_file(
    image: str | Path,
    masks: Sequence[str | Path] = (),
    *,
    reference: str | Path | None = None,
    structures: Sequence[str] = (),
    out: str | Path | None = None,
    limit_mb: float = LIMIT_MB,
    language: Language = "en",
) -> Path:
    """Write the page of an image file, or of a folder with one DICOM series, with masks over it.

    Parameters
    ----------
    image : path
    masks : sequence of path
        NIfTI, raster or DICOM SEG. Of one mask the labels are shown, of several each is a structure.
    reference : path or None
        A mask to set beside the others.
    structures : sequence of str
        Names of labels 1, 2, ..., or of the masks where there are several; else a DICOM SEG's own are taken, or
        those of ``labels.txt`` beside a mask. Names of files are not shown: they may be a patient's.
    out : path or None
        The page; None takes ``view-<pseudonym>.html`` in this folder.
    limit_mb : float
        Size of the volumes in the page, beyond which voxels are left out.
    language : {'en', 'de', 'fr', 'es'}

    Returns
    -------
    Path
        Of the page. It holds the image: it is readable by this user alone.

    Raises
    ------
    ReadError, DataError
        Where an image or a mask cannot be read, or a mask has no place on the image.
    """
    case = _case(Path(image))
    held = replace(case, image=_Held(case.read()))
    names: tuple[str, ...] = ()
    found: dict[str, Labels] = {}
    for kind, files in (("reference", [reference] if reference else []), ("predicted", list(masks))):
        if files:
            found[kind], called = _labels(held, [Path(f) for f in files])
            names = called if len(called) > len(names) else names
    shown = Shown(case.alias, held.read(), found, tuple(structures) or names)
    return write_view(shown, out or Path(f"view-{case.alias}.html"), limit_mb=limit_mb, language=language)


def view_case(
    folder: str | Path,
    case: str,
    *,
    out: str | Path | None = None,
    limit_mb: float = LIMIT_MB,
    language: Language = "en",
    progress: bool = True,
) -> Path:
    """Write the page of a case of a run, by default into ``views/`` of the run's folder.

    Parameters
    ----------
    folder : path
        A finished run.
    case : str
        Pseudonym of a case of its cohort, as in the report; or an image, which a segmentation then segments.
    out, limit_mb, language
        As in :func:`view_file`.

    Raises
    ------
    RunError
        Where the run knows no such case, or was not trained from a config.
    """
    from medtransfer.masks import segments
    from medtransfer.pipeline import load_cohort, stored_experiment

    folder = Path(folder)
    if Path(case).exists() and segments(folder):
        shown = _segmented_anew(folder, _case(Path(case)))
    else:
        experiment = stored_experiment(folder)
        cohort = load_cohort(experiment, store=folder / "private" / "scan.json", progress=progress)
        index = next((i for i, c in enumerate(cohort) if case in (c.alias, c.case_id)), None)
        if index is None:
            raise RunError("the run's cohort has no such case", where=folder.name,
                           fix="take a pseudonym from the report, such as case-0a1b2c")  # fmt: skip
        known = _of_masks if segments(folder) else _of_classes
        shown = known(folder, cohort, index)
    path = Path(out) if out else folder / "views" / f"{shown.case}.html"
    return write_view(shown, path, limit_mb=limit_mb, language=language)


def write_view(shown: Shown, path: str | Path, *, limit_mb: float = LIMIT_MB, language: Language = "en") -> Path:
    """Write the page of a case: one file, no request leaves it."""
    from medtransfer.report.write import rendered, words_of

    w = words_of(language)
    view = _content(shown, w, limit=int(limit_mb * 1e6))
    scripts = ("viewer.js",) if view["viewer"] else ()
    write(Path(path), rendered("view.html", scripts, w, view), mode=0o600)
    return Path(path)


def _content(shown: Shown, w: Words, *, limit: int) -> dict[str, Any]:
    from medtransfer import __version__
    from medtransfer.report.outlines import drawing, look
    from medtransfer.report.viewer import embedded
    from medtransfer.report.volumes import scene

    image = shown.image
    nothing = np.zeros(image.spatial_shape, np.uint8)
    reference, predicted = (shown.masks.get(k, nothing) for k in ("reference", "predicted"))
    still = _still(image)
    seen = look(shown.case, float("nan"), still, reference, predicted, limit=0)
    volumes = scene(shown.case, still, shown.masks, limit=limit, crop=False, bits=16)
    structures = _names(shown)
    facts = [(w.plain("view.size"), " × ".join(map(str, image.spatial_shape)))]
    if image.geometry.spacing_mm:
        facts.append((w.plain("view.spacing"), " × ".join(f"{s:.3g}" for s in image.geometry.spacing_mm)))
    if image.modality:
        facts.append((w.plain("view.modality"), image.modality))
    facts += [(w.plain(f"view.{k}") if f"view.{k}" in w else k, v) for k, v in shown.facts]
    viewer = embedded([volumes] if volumes else [], structures, w)
    return {
        "w": w,
        "case": shown.case,
        "facts": facts,
        "kinds": [k for k in ("reference", "predicted") if k in shown.masks],
        "rows": _rows(shown, structures),
        "planes": [(w.plain(f"plane.{v.plane}"), drawing(v, w, shown.case)) for v in seen.views],
        "viewer": viewer | {"open": True} if viewer else viewer,
        "version": __version__,
    }


def _still(image: Image) -> Image:
    """The first frame, with a place in space only where it has one."""
    extra = image.array.ndim - image.rgb - len(image.spatial_shape)
    if extra <= 0:
        return image
    array = image.array[..., 0] if image.kind == "volume" else image.array[0]
    return replace(image, array=array, padding=None)


def _names(shown: Shown) -> list[str]:
    most = max((int(m.max(initial=0)) for m in shown.masks.values()), default=0)
    return [*shown.structures, *(str(i) for i in range(len(shown.structures) + 1, most + 1))]


def _rows(shown: Shown, structures: Sequence[str]) -> list[dict[str, Any]]:
    """Volume of each structure in each mask, and their Dice where there are two."""
    spacing = shown.image.geometry.spacing_mm
    ml = float(np.prod(spacing)) / 1000 if spacing and len(shown.image.spatial_shape) == 3 else None
    rows = []
    for i, name in enumerate(structures, start=1):
        marked = {k: m == i for k, m in shown.masks.items()}
        sizes = {k: int(m.sum()) for k, m in marked.items()}
        dice = None
        total = sum(sizes.values())
        if len(marked) == 2 and total > 0:
            both = int((marked["reference"] & marked["predicted"]).sum())
            dice = 2 * both / total
        said = {k: f"{n * ml:.3g} ml" if ml else f"{n} px" for k, n in sizes.items()}
        rows.append({"name": name, "sizes": said, "dice": dice})
    return rows


def _case(path: Path) -> Case:
    return Case(str(path.resolve()), str(path.resolve()), path)


def _labels(case: Case, files: Sequence[Path]) -> tuple[Labels, tuple[str, ...]]:
    """Labels of a mask on a case's image, or of several masks, each a structure; and their names."""
    from medtransfer.segment.masks import read_pair

    found = [read_pair(replace(case, mask=f), 256, resample=True)[1] for f in files]
    if len(found) == 1:
        return found[0], _names_of(files[0])
    labels = np.zeros_like(found[0])
    for number, mask in enumerate(found, start=1):
        labels[mask > 0] = number
    return labels, ()


def _names_of(path: Path) -> tuple[str, ...]:
    """Names of a mask's labels: of a DICOM SEG its segments', else those in ``labels.txt`` beside it, if any."""
    from medtransfer.io.segments import is_segmentation

    if is_segmentation(path):
        import pydicom

        segments = pydicom.dcmread(path, stop_before_pixels=True).get("SegmentSequence") or []
        known = {int(s.SegmentNumber): str(s.get("SegmentLabel", "")) for s in segments}
    else:
        from medtransfer.out.names import read_names

        known = read_names(path.parent)
    return tuple(known.get(i) or str(i) for i in range(1, max(known, default=0) + 1))


def _of_masks(folder: Path, cohort: Cohort, index: int) -> Shown:
    from medtransfer.segment.evaluate import predict_masks
    from medtransfer.segment.masks import read_pair
    from medtransfer.segment.run import SegmentationRun

    run = SegmentationRun.open(folder, cohort)
    fold = next((f.test.fold for f in run.split.folds if index in f.test), None)
    kept = folder / "masks" if fold is not None else None  # what the run has written is used again
    _, image, labels = next(predict_masks(run, [index], fold=fold, out=kept))
    case = cohort.cases[index]
    masks = {"predicted": labels}
    if case.mask is not None:
        masks = {"reference": read_pair(case, len(run.structures) + 1)[1], **masks}
    parts = [p for f in run.split.folds for p in (("train", f.train), ("val", f.val))]
    told = "test" if fold is not None else next((name for name, part in parts if index in part), "")
    facts = (("run", folder.name), ("part", told))
    return Shown(case.alias, image, masks, run.structures, facts)


def _segmented_anew(folder: Path, case: Case) -> Shown:
    from medtransfer.export.opened import open_exported

    model = open_exported(folder)
    image = case.read()
    labels = model.segment(image, where=case.alias)
    return Shown(case.alias, image, {"predicted": labels}, model.structures, (("run", folder.name),))


def _of_classes(folder: Path, cohort: Cohort, index: int) -> Shown:
    """The image of a case of a run that answers with classes or numbers, and what it answered."""
    from medtransfer.predictions import Predictions

    read_state(folder)
    case = cohort.cases[index].pieces()[0]
    alias = cohort.cases[index].alias
    facts = [("run", folder.name)]
    if (folder / "predictions.csv").is_file():
        p = Predictions.from_csv(folder / "predictions.csv")
        for row in np.flatnonzero(p.case == alias):
            facts += [(f"p({c})", f"{v:.3f}") for c, v in zip(p.classes, p.probability[row], strict=True)]
    image = case.read()
    if image.kind == "image" and image.array.size == 0:
        raise DataError("the image is empty", where=alias)
    return Shown(alias, image, {}, (), tuple(facts))
