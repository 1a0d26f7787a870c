"""Segmentation of a test set: scores of masks become estimates, structure by structure and over all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from medtransfer.errors import MetricError
from medtransfer.metrics.intervals import ClusterBootstrap, Estimate, Scale, interval, proportion, with_note
from medtransfer.metrics.masks import MaskScore
from medtransfer.metrics.panel import WHY, Panel, Statistic, mean_of_defined, measure
from medtransfer.metrics.regression import agreement

Floats = NDArray[np.float64]
MEANS = ("dice", "iou", "nsd", "hd95", "assd")


def segmentation(
    scores: Sequence[Mapping[str, MaskScore]], resamples: ClusterBootstrap
) -> tuple[Panel, list[dict[str, Estimate]]]:
    """Estimates of all structures together, and one row of them a structure.

    ``dice``, ``iou``, ``nsd``, ``hd95`` and ``assd`` are means over cases, those left out in which neither mask has
    the structure; ``pooled_dice`` takes the voxels of all cases as one image. ``volume_bias`` is the mean of
    predicted minus reference volume, with Bland and Altman's limits of agreement; ``volume_bias_relative`` its share
    of the reference volume. ``lesion_sensitivity`` and ``lesions_false`` (a case) count connected parts. ``missed``
    is the share of cases with the structure in which the model sees none, ``invented`` that of cases without it in
    which it sees one.

    Parameters
    ----------
    scores : sequence of dict of str to MaskScore
        The structures of each case, from :func:`~medtransfer.metrics.masks.score_masks`.
    resamples : ClusterBootstrap
        Of the cases.

    Returns
    -------
    Panel
        The estimates of the structure or, with several, the means over structures of what is a mean over cases.
    list of dict of str to Estimate
        A row a structure.

    Examples
    --------
    >>> from medtransfer.metrics.masks import score_masks
    >>> truth, said = np.array([[1, 1, 2, 2]]), np.array([[1, 1, 1, 2]])
    >>> case = score_masks(truth, said, (1, 1), structures={"head": 1, "tail": 2}, tolerance_mm=1)
    >>> found, rows = segmentation([case] * 4, ClusterBootstrap.draw(range(4), resamples=20))
    >>> round(found.estimates["dice"].value, 3), rows[0]["volume_bias"].value, rows[1]["missed"].value
    (0.733, 1.0, 0.0)
    """
    structures = list(scores[0]) if len(scores) else []
    if not structures or any(list(case) != structures for case in scores):
        raise MetricError("every case needs a score of the same structures", got=f"{len(scores)} cases")
    patient, panel, rows = resamples.patient, Panel(), []
    for name in structures:
        each = [case[name] for case in scores]
        found = measure(_means(each), resamples, units=len(np.unique(patient)))
        present, said = np.array([s.present for s in each]), np.array([s.predicted for s in each])
        row = found.estimates
        row["missed"] = proportion(~said[present], patient[present], why="no case has the structure")
        row["invented"] = proportion(said[~present], patient[~present], why="every case has the structure")
        penalised, absent = int((present != said).sum()), int((~present & ~said).sum())
        notes = [
            f"image diagonal for {_cases(penalised)} with one empty mask" if penalised else "",
            f"{_cases(absent)} without the structure left out" if absent else "",
        ]
        for kind, words in (("dice", notes[1:]), ("hd95", notes), ("assd", notes)):
            row[kind] = with_note(row[kind], "; ".join(filter(None, words))) if row[kind] else row[kind]
        rows.append(row)
        panel.draws |= {f"structure:{name}:{kind}": value for kind, value in found.draws.items()}
    if len(structures) == 1:
        return Panel(rows[0], draws=found.draws), rows
    for kind in MEANS:
        values = [np.array([np.nan if row[kind].value is None else row[kind].value]) for row in rows]
        draws = mean_of_defined([panel.draws[f"structure:{name}:{kind}"] for name in structures])
        scale: Scale | None = "log odds" if kind in ("dice", "iou", "nsd") else None
        units = len(np.unique(patient))
        e = interval(
            float(mean_of_defined(values)[0]), draws, why=WHY["dice"], scale=scale, units=units, patients=units
        )
        panel.estimates[kind] = with_note(e, f"mean over {len(structures)} structures")
        panel.draws[kind] = draws
    return panel, rows


def segmentation_difference(
    first: Sequence[Mapping[str, MaskScore]], second: Sequence[Mapping[str, MaskScore]], resamples: ClusterBootstrap
) -> dict[str, dict[str, Estimate]]:
    """Paired differences first − second of the means over cases, by structure; cases in the same order.

    Examples
    --------
    >>> from medtransfer.metrics.masks import score_mask
    >>> a, b = np.eye(4, dtype=bool), np.ones((4, 4), bool)
    >>> cases = [{"x": score_mask(b, m, (1, 1), tolerance_mm=1)} for m in (a, b)]
    >>> gap = segmentation_difference(cases[:1] * 3, cases[1:] * 3, ClusterBootstrap.draw(range(3), resamples=20))
    >>> round(gap["x"]["dice"].value, 3)
    -0.6
    """
    if len(first) != len(second) or any(list(a) != list(b) for a, b in zip(first, second, strict=True)):
        raise MetricError("a paired comparison needs the same cases and structures")
    return {
        name: measure(_gap([case[name] for case in first], [case[name] for case in second]), resamples).estimates
        for name in (first[0] if len(first) else ())
    }


def _gap(first: list[MaskScore], second: list[MaskScore]) -> Statistic:
    left, right = _columns(first, MEANS), _columns(second, MEANS)
    there = np.isfinite(left) & np.isfinite(right)
    gap = np.where(there, left - right, 0)

    def statistic(w: Floats) -> dict[str, Floats]:
        return {name: _ratio(w @ gap[:, i], w @ there[:, i]) for i, name in enumerate(MEANS)}

    return statistic


def _means(scores: list[MaskScore]) -> Statistic:
    values = _columns(scores, MEANS)
    there = np.isfinite(values)
    values = np.where(there, values, 0)
    sizes = _columns(scores, ("volume_reference", "volume_predicted", "volume_shared"))
    counts = _columns(scores, ("lesions", "lesions_found", "lesions_false"))
    volumes = agreement(sizes[:, 0], sizes[:, 1])

    def statistic(w: Floats) -> dict[str, Floats]:
        found = {name: _ratio(w @ values[:, i], w @ there[:, i]) for i, name in enumerate(MEANS)}
        (truth, said, both), (lesions, hit, false) = (w @ sizes).T, (w @ counts).T
        agreed = volumes(w)
        return found | {
            "pooled_dice": _ratio(2 * both, truth + said),
            "volume_bias": agreed["bias"],
            "volume_loa_lower": agreed["loa_lower"],
            "volume_loa_upper": agreed["loa_upper"],
            "volume_bias_relative": _ratio(said - truth, truth),
            "lesion_sensitivity": _ratio(hit, lesions),
            "lesions_false": _ratio(false, w.sum(axis=1)),
        }

    return statistic


def _columns(scores: list[MaskScore], names: Sequence[str]) -> Floats:
    return np.array([[getattr(s, name) for name in names] for s in scores], dtype=np.float64).reshape(-1, len(names))


def _cases(n: int) -> str:
    return f"{n} case{'' if n == 1 else 's'}"


def _ratio(top: Floats, bottom: Floats) -> Floats:
    return np.asarray(np.divide(top, bottom, out=np.full(np.shape(top), np.nan), where=bottom > 0))
