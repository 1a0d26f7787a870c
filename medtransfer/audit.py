"""The audit before training: patients, studies and pictures in two parts, copies, and labels that contradict."""

from __future__ import annotations

import difflib
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from html import escape
from itertools import chain, pairwise
from typing import Any, Literal

import numpy as np

from medtransfer._copies import Look, look, near_pairs
from medtransfer.cohort import Case, Cohort
from medtransfer.errors import CohortError, ConfigError, LeakageError, MedTransferError
from medtransfer.image import Image
from medtransfer.split import PARTS, Split

Severity = Literal["error", "warning", "note"]

FINDINGS: dict[str, Severity] = {
    "unreadable": "error",
    "patient_across_parts": "error",
    "study_across_parts": "error",
    "duplicate_across_parts": "error",
    "contradictory_copies": "error",
    "near_copy_across_parts": "warning",
    "contradictory_near_copies": "warning",
    "duplicate": "warning",
    "near_copy": "note",
    "contradictory_patient": "note",
    "patient_at_several_sites": "note",
}


@dataclass(frozen=True)
class AuditFinding:
    """Something found in a cohort or its split.

    Parameters
    ----------
    name : str
        One of ``FINDINGS``; the word that acknowledges it.
    severity : {'error', 'warning', 'note'}
        An error stops training unless it is acknowledged.
    message : str
        What was found, in words.
    count : int
        How many images (patients, studies) are concerned.
    cases : tuple of str
        Pseudonyms of the cases concerned.
    """

    name: str
    severity: Severity
    message: str
    count: int
    cases: tuple[str, ...] = field(default=(), repr=False)


@dataclass(frozen=True)
class Audit:
    """What :func:`audit` found.

    Parameters
    ----------
    findings : tuple of AuditFinding
        The gravest first.
    accepted : tuple of str
        Names of findings that the user has acknowledged.
    """

    findings: tuple[AuditFinding, ...]
    accepted: tuple[str, ...] = ()

    @property
    def errors(self) -> tuple[AuditFinding, ...]:
        """Errors that nobody has acknowledged."""
        return tuple(f for f in self.findings if f.severity == "error" and f.name not in self.accepted)

    def raise_for_errors(self) -> None:
        """Refuse to go on where an error was found that is not acknowledged.

        Raises
        ------
        LeakageError
            For a patient, study or picture in two parts.
        CohortError
            For contradictory copies or unreadable images.
        """
        if not self.errors:
            return
        leak = any("across" in f.name for f in self.errors)
        names = ", ".join(f.name for f in self.errors)
        raise (LeakageError if leak else CohortError)(
            "the audit stops here: " + "; ".join(f.message for f in self.errors),
            fix=f"mend the data or the split, or acknowledge it in the configuration: audit: {{accept: [{names}]}}",
        )

    def to_record(self) -> dict[str, Any]:
        """Plain JSON types, without the cases."""
        keys = ("name", "severity", "message", "count")
        listed = [{key: getattr(finding, key) for key in keys} for finding in self.findings]
        return {"findings": listed, "accepted": list(self.accepted)}

    def __str__(self) -> str:
        mark = dict.fromkeys(self.accepted, " (accepted)")
        lines = [f"{f.severity:8s}{f.name}{mark.get(f.name, '')}: {f.message}" for f in self.findings]
        return "\n".join(lines) or "nothing found"

    def _repr_html_(self) -> str:
        return f"<pre>{escape(str(self))}</pre>"


def audit(
    cohort: Cohort,
    split: Split | None = None,
    *,
    accept: Sequence[str] = (),
    read: Callable[[Case], Image] | None = None,
    progress: bool = True,
) -> Audit:
    """Look for leaks, copies and contradictions before training.

    Parameters
    ----------
    cohort : Cohort
    split : Split or None
        Without one only the cohort itself is looked at.
    accept : sequence of str
        Names of findings that are known and shall not stop anything.
    read : function or None
        Reads the image of a case; None calls ``Case.read``.
    progress : bool
        Show a bar with rate and time left (never when piped).

    Returns
    -------
    Audit

    Notes
    -----
    Copies are images whose decoded values are equal. Near copies differ by a window, lossy compression,
    size or flips: see the module ``_copies``.

    Examples
    --------
    >>> images = [np.random.default_rng(i // 2).normal(size=(16, 16)) for i in range(4)]
    >>> cases = tuple(Case(f"c{i}", f"p{i}", x, label=i % 2) for i, x in enumerate(images))
    >>> found = audit(Cohort(cases, ("no", "yes")))
    >>> [(f.name, f.count) for f in found.findings]
    [('contradictory_copies', 4), ('duplicate', 2)]
    """
    for name in accept:
        if name not in FINDINGS:
            near = difflib.get_close_matches(name, FINDINGS, n=1, cutoff=0.3)
            raise ConfigError(
                "there is no such audit finding", where="audit.accept", got=repr(name),
                fix=f"did you mean '{near[0]}'?" if near else f"one of {', '.join(FINDINGS)}",
            )  # fmt: skip
    if split is not None:
        split.check(cohort)
    found = _Findings(cohort, split)
    _identities(found)
    found = found.by_image()
    cohort = found.cohort
    looks, unreadable = _looks(cohort, read, progress)
    if unreadable:
        reasons = Counter(unreadable.values()).most_common(3)
        found.add(
            "unreadable", unreadable, len(unreadable),
            f"{len(unreadable)} images cannot be read: " + "; ".join(f"{n} {reason}" for reason, n in reasons)
            + f"; first {cohort.cases[min(unreadable)].alias}, number {min(unreadable) + 1} of the cohort",
        )  # fmt: skip
    _pictures(found, looks)
    order = list(FINDINGS)
    return Audit(tuple(sorted(found.found, key=lambda f: order.index(f.name))), tuple(dict.fromkeys(accept)))


class _Findings:
    """Collects findings, and knows where each case stands."""

    def __init__(self, cohort: Cohort, split: Split | None) -> None:
        self.cohort = cohort
        self.found: list[AuditFinding] = []
        # Where a case stands: its part in every fold, and the words for it.
        place: list[list[int]] = [[] for _ in range(len(cohort))]
        words = [""] * len(cohort)
        for fold in split.folds if split is not None else ():
            for rank, part in enumerate(fold.parts()):
                for i in part:
                    place[i].append(rank)
        for name, members in (split.parts() if split is not None else {}).items():
            for i in members:
                words[i] = name
        self.place, self.words = [tuple(p) for p in place], words

    def by_image(self) -> _Findings:
        """The same, looking at each image of cases that are bags."""
        if not self.cohort.bags:
            return self
        owner = [i for i, case in enumerate(self.cohort) for _ in case.pieces()]
        images = replace(self.cohort, cases=tuple(piece for case in self.cohort for piece in case.pieces()))
        wide = _Findings(images, None)
        wide.found = self.found
        wide.place, wide.words = [self.place[i] for i in owner], [self.words[i] for i in owner]
        return wide

    def add(self, name: str, cases: Iterable[int], count: int, message: str) -> None:
        aliases = tuple(self.cohort.aliases[i] for i in sorted(set(cases)))
        self.found.append(AuditFinding(name, FINDINGS[name], message, count, aliases))

    def across(self, members: Sequence[int]) -> bool:
        return len({self.place[i] for i in members}) > 1

    def where(self, pairs: Iterable[tuple[int, int]]) -> str:
        """``'8 in train and val, 1 in val and test'``."""
        rank = {word: k for k, word in enumerate(dict.fromkeys(PARTS + tuple(sorted(set(self.words)))))}
        ordered = [sorted((self.words[i] for i in p), key=lambda word: rank[word]) for p in pairs]
        number = Counter(" and ".join(dict.fromkeys(words)) for words in ordered)
        return ", ".join(f"{n} in {where}" for where, n in number.most_common(6))


def _groups(keys: Iterable[Hashable]) -> list[list[int]]:
    """Positions that share a key, where it is not empty and there are several."""
    groups: dict[Hashable, list[int]] = defaultdict(list)
    for i, key in enumerate(keys):
        if key:
            groups[key].append(i)
    return [g for g in groups.values() if len(g) > 1]


def _identities(found: _Findings) -> None:
    """What the ids say: patients and studies in two parts, labels and sites within a patient."""
    cohort = found.cohort
    patients = _groups(cohort.patients.tolist())
    studies = _groups(c.study or c.covariates.get("study", "") for c in cohort)
    for what, groups in (("patient", patients), ("study", studies)):
        leaks = [g for g in groups if found.across(g)]
        if leaks:
            where = found.where((g[0], next(i for i in g if found.place[i] != found.place[g[0]])) for g in leaks)
            many = {"patient": "patients", "study": "studies"}[what] if len(leaks) > 1 else what
            verb = "stand" if len(leaks) > 1 else "stands"
            message = f"{len(leaks)} {many} {verb} in two parts ({where})"
            found.add(f"{what}_across_parts", chain(*leaks), len(leaks), message)
    mixed = [g for g in patients if len({cohort[i].label for i in g} - {None}) > 1]
    if mixed:
        message = f"{len(mixed)} patients have images with different labels"
        found.add("contradictory_patient", chain(*mixed), len(mixed), message)
    sites = [g for g in patients if len({cohort[i].covariates.get("site", "") for i in g} - {""}) > 1]
    if sites:
        message = f"{len(sites)} patient ids occur at several sites; each counts as one patient, so that nothing leaks"
        found.add("patient_at_several_sites", chain(*sites), len(sites), message)


def _looks(
    cohort: Cohort, read: Callable[[Case], Image] | None, progress: bool
) -> tuple[dict[int, Look], dict[int, str]]:
    """Digest and thumbnail of every image that can be read, and why the others cannot."""
    from tqdm import tqdm

    def one(case: Case) -> Look | str:
        try:
            return look(case.read() if read is None else read(case))
        except MedTransferError as error:
            return error.what
        except (OSError, MemoryError, ValueError) as error:
            return type(error).__name__

    looks: dict[int, Look] = {}
    wrong: dict[int, str] = {}
    pool = ThreadPoolExecutor(2)
    try:
        results = pool.map(one, cohort)
        bar = tqdm(results, total=len(cohort), desc="audit", unit="case", disable=None if progress else True)
        for i, result in enumerate(bar):
            if isinstance(result, str):
                wrong[i] = result
            else:
                looks[i] = result
    finally:
        pool.shutdown(cancel_futures=True)  # so that Ctrl-C does not wait for the rest
    return looks, wrong


def _pictures(found: _Findings, looks: dict[int, Look]) -> None:
    """What the pixels say: copies and near copies, within and across parts, and their labels."""
    labels = [c.label for c in found.cohort]
    copies: dict[str, list[int]] = defaultdict(list)
    for i, seen in looks.items():
        copies[seen.digest].append(i)
    groups = [sorted(g, key=lambda i: (found.place[i], i)) for g in copies.values() if len(g) > 1]
    leaks = [(g[0], i) for g in groups for i in g if found.place[i] != found.place[g[0]]]
    inside = [(a, b) for g in groups for a, b in pairwise(g) if found.place[a] == found.place[b]]
    _report(found, "duplicate", "with the same pixels as another case", inside, leaks)
    against = [g for g in groups if len({labels[i] for i in g} - {None}) > 1]
    if against:
        number = sum(len(g) for g in against)
        message = f"{number} images with the same pixels have labels that contradict each other"
        found.add("contradictory_copies", chain(*against), number, message)
    pairs = [(i, j) for a, b in _near(looks, copies) for i in copies[a] for j in copies[b]]
    _report(
        found, "near_copy", "that look like a copy of another case (other window, compression, size or flipped)",
        [p for p in pairs if not found.across(p)], [p for p in pairs if found.across(p)],
    )  # fmt: skip
    unlike = [p for p in pairs if None not in (labels[p[0]], labels[p[1]]) and labels[p[0]] != labels[p[1]]]
    if unlike:
        number = len(set(chain(*unlike)))
        message = f"{number} images that look like copies of each other have labels that contradict each other"
        found.add("contradictory_near_copies", chain(*unlike), number, message)


def _report(
    found: _Findings, name: str, what: str, inside: Sequence[tuple[int, int]], leaks: Sequence[tuple[int, int]]
) -> None:
    for suffix, pairs in (("_across_parts", leaks), ("", inside)):
        later = {max(p, key=lambda i: (found.place[i], i)) for p in pairs}
        if not later:
            continue
        number = Counter(found.words[i] for i in later)
        where = found.where(pairs) if suffix else ", ".join(f"{n} in {part}" for part, n in number.items() if part)
        place = " in another part" if suffix else ""
        message = f"{len(later)} images {what}{place}" + (f" ({where})" if where else "")
        found.add(name + suffix, chain(*pairs), len(later), message)


def _near(looks: dict[int, Look], copies: dict[str, list[int]]) -> list[tuple[str, str]]:
    """Pairs of digests whose pictures look like copies; each digest stands for all its copies."""
    pairs: list[tuple[str, str]] = []
    for dims in (2, 3):
        digests = [d for d, members in copies.items() if looks[members[0]].thumbnail.ndim == dims]
        if len(digests) > 1:
            thumbnails = np.stack([looks[copies[d][0]].thumbnail for d in digests])
            pairs += [(digests[i], digests[j]) for i, j, _ in near_pairs(thumbnails)]
    return pairs
