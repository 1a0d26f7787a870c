"""Red flags: what should make a reader doubt a good number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medtransfer.metrics.intervals import Estimate
from medtransfer.metrics.names import LABELS
from medtransfer.metrics.threshold import Threshold
from medtransfer.predictions import BY_CLASS, Predictions

IMAGE_FREE = (
    "metadata",
    "covariate",
    "header",
    "tag",
    "size",
    "border",
    "frame",
    "corner",
    "histogram",
    "background",
    "site",
    "scanner",
    "no image",
)
QUESTIONS = {  # controls that see the image: a word of their name, what is asked, of what
    "untrained": ("Did transfer help?", "pretraining"),
    "scratch": ("Did transfer help?", "pretraining"),
    "fine-tuned": ("Did fine-tuning help?", "fine-tuning"),
}
ENOUGH_EVENTS = 100  # external validation: Vergouwe 2005; Collins, Ogundimu & Altman 2016
FEWEST_EVENTS = 20


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Parameters
    ----------
    name : str
    status : {'ok', 'caution', 'serious', 'unknown'}
        ``unknown``: it could not be looked at.
    text : str
        What was found, in one sentence.
    """

    name: str
    status: str
    text: str


@dataclass(frozen=True)
class Control:
    """A model that should do worse: its own value, and the paired difference to the model.

    Parameters
    ----------
    name : str
    value : Estimate
        AUROC (macro AUROC for several classes) of the control.
    difference : Estimate
        Model minus control, by paired patient-cluster bootstrap.
    """

    name: str
    value: Estimate
    difference: Estimate

    @property
    def image_free(self) -> bool:
        """Whether its name says that it does not look at the anatomy: metadata, border, histogram ..."""
        return any(word in self.name.lower() for word in IMAGE_FREE)

    @property
    def beaten(self) -> bool:
        """Whether the whole interval of the difference lies above 0."""
        return self.difference.low is not None and self.difference.low > 0


def events_check(kinds: dict[str, int], patients: dict[str, int]) -> Check:
    """Whether there are enough cases of each kind (class name to count of cases, and of patients)."""
    fewest = min(patients.values())
    found = ", ".join(f"{k}: {count} cases of {patients[k]} patients" for k, count in kinds.items())
    if fewest < FEWEST_EVENTS:
        return Check(
            "Sample size",
            "serious",
            f"Too few to judge: {found}. Below {FEWEST_EVENTS} patients of a kind every number here is a guess.",
        )
    if fewest < ENOUGH_EVENTS:
        return Check(
            "Sample size",
            "caution",
            f"Few events: {found}. At least {ENOUGH_EVENTS} patients of each kind are advised.",
        )
    return Check("Sample size", "ok", f"{found}.")


def numbers_check(cases: dict[str, int], patients: dict[str, int]) -> Check:
    """Whether there are enough cases to judge predicted numbers: limits of agreement want 100 (Bland 2004)."""
    fewest = min(patients.values())
    found = ", ".join(f"{k}: {count} cases of {patients[k]} patients" for k, count in cases.items())
    if fewest < ENOUGH_EVENTS:
        status = "serious" if fewest < FEWEST_EVENTS else "caution"
        return Check("Sample size", status, f"Few patients: {found}. At least {ENOUGH_EVENTS} are advised.")
    return Check("Sample size", "ok", f"{found}.")


def discrimination_check(primary: Estimate, patients: int) -> Check:
    """Whether the ranking is better than chance, and not too good to be true."""
    if primary.value is None:
        return Check("Discrimination", "serious", f"The AUROC is not defined: {primary.note}.")
    if primary.low is not None and primary.low <= 0.5:
        return Check("Discrimination", "serious", f"AUROC {primary}: the interval reaches 0.5, which is chance.")
    if primary.value >= 0.995 and patients >= 50:
        return Check(
            "Discrimination", "caution", f"AUROC {primary} is nearly perfect. Look for a leak before you believe it."
        )
    return Check("Discrimination", "ok", f"AUROC {primary}: better than chance.")


def calibration_check(slope: Estimate, ratio: Estimate, recalibrated: bool) -> Check:
    """Whether risks can be taken at their word."""
    if slope.value is None or ratio.value is None:
        return Check("Calibration", "unknown", f"It could not be judged: {slope.note or ratio.note}.")
    what = "after recalibration " if recalibrated else ""
    said = f"{what}slope {slope}, observed/expected {ratio}"
    off = [e for e in (slope, ratio) if e.low is not None and e.high is not None and not e.low <= 1 <= e.high]
    far = [e for e in off if e.value is not None and not 0.8 <= e.value <= 1.25]
    if far:
        return Check("Calibration", "serious", f"The risks cannot be taken at their word: {said} (1 is perfect).")
    if off or slope.low is None or (slope.high or 0) - slope.low > 1:
        return Check("Calibration", "caution", f"Calibration is doubtful or uncertain: {said} (1 is perfect).")
    return Check("Calibration", "ok", f"{said[0].upper()}{said[1:]}: compatible with 1.")


def control_checks(controls: list[Control]) -> list[Check]:
    """Shortcuts (image-free controls) and baselines (all others)."""
    if not controls:
        return [Check("Shortcuts and baselines", "unknown", "No control model was run beside this one.")]
    found = []
    for c in controls:
        said = f"{c.name} reaches {c.value}; model minus control {c.difference}"
        if c.value.value is None:
            found.append(Check(f"Control: {c.name}", "unknown", f"Not defined: {c.value.note}."))
        elif c.image_free and not c.beaten:
            found.append(
                Check(
                    "Shortcut",
                    "serious",
                    f"{said}. What does not see the anatomy does as well: either the label leaks through "
                    "it, or grey values alone are the sign looked for. Find out which before trusting the model.",
                )
            )
        elif c.image_free and (c.value.low or 0) > 0.5:
            found.append(Check("Shortcut", "caution", f"{said}. The label can partly be told without the anatomy."))
        elif question := next((q for word, q in QUESTIONS.items() if word in c.name.lower()), None):
            found.append(_transfer_check(c, *question))
        elif not c.beaten:
            found.append(Check("Control not beaten", "caution", f"{said}. The interval includes no gain at all."))
        else:
            found.append(Check(f"Control: {c.name}", "ok", f"{said}."))
    return found


def _transfer_check(control: Control, asked: str, subject: str) -> Check:
    """What pretraining or fine-tuning was good for, in plain words."""
    said = f"{control.name} reaches {control.value}; gain {control.difference}."
    if control.beaten:
        return Check(asked, "ok", f"Yes: {subject} helped here. {said}")
    if control.difference.high is not None and control.difference.high < 0:
        return Check(asked, "caution", f"No: the model does worse with it. {said}")
    return Check(asked, "caution", f"Not shown: these cases cannot tell a gain by {subject} from none. {said}")


def shuffle_check(shuffled: object) -> list[Check]:
    """Whether a model of shuffled labels stays at chance, from the run's record; none where it was not asked."""
    if not isinstance(shuffled, dict) or shuffled.get("value") is None:
        return []
    e = Estimate(shuffled["value"], shuffled.get("low"), shuffled.get("high"))
    said = f"After labels were shuffled among all patients the AUROC is {e}"
    if e.low is None or e.high is None or e.low <= 0.5 <= e.high:
        return [Check("Shuffled labels", "ok", f"{said}: chance, as it must be.")]
    why = "and should include 0.5. One honest run in 20 shows this; a leak shows it again with another seed"
    return [Check("Shuffled labels", "caution", f"{said} {why}.")]


def leak_checks(audit: object) -> list[Check]:
    """What the audit of the split found, from the run's record."""
    if not isinstance(audit, dict):
        return [Check("Leakage", "unknown", "No audit of the split was recorded.")]
    findings = [f for f in audit.get("findings") or [] if isinstance(f, dict)]
    accepted = {str(name) for name in audit.get("accepted") or []}
    found = []
    for f in findings:
        severity = str(f.get("severity", "")).lower()
        status = "serious" if severity in {"error", "serious", "fatal", "critical", "high"} else "caution"
        if severity in {"info", "ok", "note", "none"}:
            continue
        note = " The author accepted it." if str(f.get("name")) in accepted else ""
        text = str(f.get("message", "")).strip().rstrip(".")
        found.append(Check(f"Audit: {str(f.get('name', 'finding')).replace('_', ' ')}", status, f"{text}.{note}"))
    return found or [Check("Leakage", "ok", "The audit of patients, duplicates and labels found nothing.")]


def calls_check(called: NDArray[np.bool_], rule: str) -> Check:
    """Whether the threshold came from validation and calls cases of both kinds."""
    if len(called) and (called.all() or not called.any()):
        return Check(
            "Operating point",
            "serious",
            f"Every case is called {'positive' if called.all() else 'negative'} at this threshold.",
        )
    if rule.startswith("default"):
        return Check("Operating point", "caution", "No threshold was chosen on validation data; 0.5 was used.")
    if rule == "fixed":
        return Check("Operating point", "ok", "The threshold was given, not fitted.")
    return Check("Operating point", "ok", f"The threshold was chosen on validation data alone ({rule}).")


def class_counts(test: Predictions) -> dict[str, dict[str, int]]:
    """Cases and patients of each class or label, or with a value of each target."""
    if test.task in BY_CLASS:
        members = {name: test.reference == k for k, name in enumerate(test.classes)}
    elif test.task == "multilabel":
        members = {name: test.reference[:, k] == 1 for k, name in enumerate(test.classes)}
    else:
        members = {name: ~np.isnan(test.reference[:, k]) for k, name in enumerate(test.classes)}
    return {
        name: {"cases": int(inside.sum()), "patients": len(np.unique(test.patient[inside]))}
        for name, inside in members.items()
    }


def agreement_check(primary: Estimate, what: str) -> Check:
    """Whether ordered classes or numbers are told better than by a model that always says the same."""
    if primary.value is None:
        return Check("Agreement", "serious", f"{what} is not defined: {primary.note}.")
    if primary.low is not None and primary.low <= 0:
        said = "the interval reaches 0, which one answer for all cases reaches too"
        return Check("Agreement", "serious", f"{what} {primary}: {said}.")
    return Check("Agreement", "ok", f"{what} {primary}: better than one answer for all cases.")


def all_checks(
    test: Predictions,
    estimates: dict[str, Estimate],
    recalibrated: dict[str, Estimate],
    primary: str,
    threshold: Threshold | None,
    controls: list[Control],
    record: dict[str, object],
    further: Sequence[Check] = (),
) -> list[Check]:
    """Every check, the most serious first; ``further`` are those made elsewhere."""
    counts = class_counts(test)
    found = leak_checks(record.get("audit"))
    found += control_checks(controls) + shuffle_check(record.get("shuffled_labels"))
    many = [{k: v[of] for k, v in counts.items()} for of in ("cases", "patients")]
    found.append(numbers_check(*many) if test.task == "regression" else events_check(*many))
    found += further
    if test.task in ("ordinal", "regression"):
        found.append(agreement_check(estimates[primary], LABELS[primary]))
    else:
        found.append(discrimination_check(estimates[primary], len(np.unique(test.patient))))
    if threshold is not None:
        now = recalibrated or estimates
        found.append(
            calibration_check(now["calibration_slope"], now["observed_expected"], recalibrated=bool(recalibrated))
        )
        found.append(calls_check(threshold.called(test), threshold.rule))
    order = {"serious": 0, "caution": 1, "unknown": 2, "ok": 3}
    return sorted(found, key=lambda check: order[check.status])
