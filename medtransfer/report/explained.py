"""The failure gallery with maps of evidence, whether these maps may be believed, and robustness, for the templates."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from medtransfer.metrics.checks import Check
from medtransfer.metrics.intervals import Estimate
from medtransfer.report import drawings, figures
from medtransfer.report.words import Words

if TYPE_CHECKING:
    from medtransfer.evaluate import Evaluation
    from medtransfer.run import Run

_MOST, _FINDS = 12, 3
_CHECKED = {2: 8, 3: 3}  # maps whose weights are drawn anew; volumes take long
_ROWS, _COLUMNS = ("upper", "middle", "lower"), ("left", "centre", "right")


@dataclass(frozen=True)
class Shown:
    """A case of the gallery: what it is, what it was called, and for which class evidence is shown."""

    case: str
    fold: int
    reference: str
    called: str
    probability: float
    target: int

    @property
    def wrong(self) -> bool:
        """Whether it was called wrongly."""
        return self.reference != self.called


def shown(result: Evaluation) -> list[Shown]:
    """The surest errors, then (of two classes) the surest cases rightly called positive, to compare with.

    Evidence is shown for the positive class of two, else for the class that was called. Of labels that occur
    together and of numbers only the errors are shown.
    """
    p = result.predictions
    two = p.task == "classification" and len(p.classes) == 2
    errors = result.most_confident_errors(6 if len(p.classes) < 4 else 3)[:_MOST]
    place = {name: k for k, name in enumerate(p.classes)}
    found = [
        Shown(m.case, m.fold, m.reference, m.called, m.probability, 1 if two else place.get(m.called, 0))
        for m in errors
    ]
    right = np.flatnonzero((result.called == 1) & (p.reference == 1)) if two else np.zeros(0, dtype=np.int64)
    for i in right[np.argsort(-p.probability[right, 1], kind="stable")][:_FINDS]:
        name = p.classes[1]
        found.append(Shown(str(p.case[i]), int(p.fold[i]), name, name, float(p.probability[i, 1]), 1))
    return found


def examine(run: Run, result: Evaluation, *, seed: int = 0) -> tuple[dict[str, object], Check]:
    """Check on some cases of the gallery that maps of evidence depend on what was learned.

    Returns
    -------
    record : dict
        For the run's record: method, levels of the cascading randomisation, cases, limit, passes, seconds.
    check : Check
        The same as a line among the red flags.
    """
    from medtransfer.explain import ALIKE, name_of, randomisation

    started = time.monotonic()
    found_in = [(s, *place) for s in shown(result) if (place := run.find(s.case)) is not None]
    fold = Counter(fold for _, _, fold in found_in).most_common(1)[0][0] if found_in else 0
    few = [(s, index) for s, index, where in found_in if where == fold][: _CHECKED[run.prepare.dims]]
    found = randomisation(
        run.model(fold),
        [run.prepared.one(index) for _, index in few],
        targets=[s.target for s, _ in few],
        average_of=run.usual(fold, 12 if run.prepare.dims == 2 else 4),
        draws=2 if run.prepare.dims == 2 else 1,
        seed=seed,
    )
    record = {"method": name_of(run.model(0)), **found.to_record(), "seconds": round(time.monotonic() - started, 1)}
    name = "Maps of evidence"
    if found.passes is None:
        return record, Check(name, "unknown", "No case shows evidence, so it was not tested what the maps depend on.")
    numbers = f"rank correlation {Estimate(found.levels[-1][1])}, mean of {found.cases} maps, limit {ALIKE}"
    if found.passes:
        return record, Check(name, "ok", f"They change when all weights are drawn anew ({numbers}).")
    text = f"They stay much the same when all weights are drawn anew ({numbers}): they do not show what was learned."
    return record, Check(name, "caution", text)


def content(result: Evaluation, w: Words) -> dict[str, Any]:
    """What the templates of the gallery, of the explanation and of robustness show."""
    explanation, robustness = (_facts(result.record.get(k)) for k in ("explanation", "robustness"))
    cards = [_card(result, s, w, mapped=bool(explanation)) for s in shown(result)]
    drawn: dict[str, Any] = {
        "errors": [c for c in cards if c["shown"].wrong],
        "finds": [c for c in cards if not c["shown"].wrong and c["overlay"]],
        "explanation": explanation,
        "robustness": robustness,
    }
    if explanation.get("levels"):
        drawn["cascade"] = Markup(_cascade(explanation, w))  # noqa: S704  drawn by us, texts escaped
    if robustness.get("rows"):
        drawn["losses"] = [
            row | {"value": Estimate(**row["value"]), "loss": Estimate(**row["loss"])} for row in robustness["rows"]
        ]
        drawn["unchanged"] = Estimate(**robustness["unchanged"])
        rows = [(f"{w.put(row['change'])}: {row['level']}", row["loss"]) for row in drawn["losses"]]
        lost = w.label(str(robustness["metric"]))
        drawn["robust"] = Markup(  # noqa: S704
            figures.forest("robust", w.plain("alt.robust"), rows, w.plain("robust.lost_of", measure=lost), w, zero=0)
        )
    return drawn


def _facts(value: object) -> dict[str, Any]:
    return {str(k): v for k, v in value.items()} if isinstance(value, dict) else {}


def _card(result: Evaluation, case: Shown, w: Words, *, mapped: bool) -> dict[str, Any]:
    source = result.predictions.source
    heat = source.heatmap(case.case, case.target) if source is not None and mapped else None
    at = None if heat is None or heat.ndim == 2 else int(heat.max(axis=(1, 2)).argmax())
    image = None if source is None else source.picture(case.case) if at is None else source.picture(case.case, at)
    card: dict[str, Any] = {"shown": case, "image": None, "overlay": None, "where": "", "slice": None}
    if image is None:
        return card
    card["image"] = drawings.png(image)
    if heat is not None:
        plane = heat if at is None else heat[at]
        card["overlay"] = drawings.png(overlay(image, plane))
        card["where"] = where(plane)
        card["slice"] = None if at is None else w.plain("explain.slice", n=at + 1, all=len(heat))
    return card


def overlay(image: NDArray[np.uint8], heat: NDArray[np.float32]) -> NDArray[np.uint8]:
    """A picture ``[rows, cols]`` or ``[rows, cols, 3]`` with a map in [0, 1] laid over it in colour.

    Where the map is 0 the picture is as it was; where it is 1 the colour covers three quarters.

    Examples
    --------
    >>> overlay(np.full((2, 2), 90, np.uint8), np.zeros((2, 2), np.float32))[0, 0].tolist()
    [90, 90, 90]
    """
    import matplotlib

    grey = image[..., None].repeat(3, axis=2) if image.ndim == 2 else image
    share = 0.75 * heat[..., None]
    colour = 255 * matplotlib.colormaps["inferno"](0.25 + 0.75 * heat)[..., :3]
    return np.asarray((grey * (1 - share) + colour * share).round().clip(0, 255), np.uint8)


def where(heat: NDArray[np.float32]) -> str:
    """In which third of the picture a map is strongest, in words.

    Examples
    --------
    >>> where(np.eye(3, dtype=np.float32)[:1].repeat(9, axis=0).repeat(3, axis=1))
    'upper left'
    """
    if not heat.any():
        return "nowhere"
    row, column = np.unravel_index(int(heat.argmax()), heat.shape)
    words = (_ROWS[3 * int(row) // heat.shape[0]], _COLUMNS[3 * int(column) // heat.shape[1]])
    return "centre" if words == ("middle", "centre") else " ".join(words)


def _cascade(explanation: dict[str, Any], w: Words) -> str:
    names = [str(name) for name, _ in explanation["levels"]]
    values = [1.0, *(float(v) for _, v in explanation["levels"])]

    def plot(ax: Any) -> None:
        ax.axhline(
            explanation["limit"],
            color=figures.MUTED,
            linestyle=(0, (4, 3)),
            linewidth=1,
            label=w.plain("explain.limit"),
        )
        ax.axhline(0, color=figures.LINE, linewidth=1)
        ax.plot(range(len(values)), values, "o-", color=figures.MODEL, label=w.plain("explain.correlation"))
        ax.set_xticks(
            range(len(values)), [w.plain("explain.trained"), *(f"… {n}" if i else n for i, n in enumerate(names))]
        )
        ax.set(
            ylabel=w.plain("explain.agreement"),
            xlabel=w.plain("explain.anew"),
            ylim=(-0.5, 1.05),
        )
        ax.legend(loc="upper right")

    return figures.draw("cascade", w.plain("alt.cascade"), plot, width=8.0, height=3.2)
