"""Planted shortcuts and shuffled labels: how often the audits say what is true.

    python tests/benchmarks/audits.py --cohorts 20 --shuffles 5

Shortcut: noise images whose only sign of the label is a marker in a corner; an honest cohort has a bright square
somewhere inside, of which corners know nothing. Shuffled labels: the interval should include .5 in 95 of 100.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
from figures import figure

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from medtransfer import Case, Cohort, Prepare, Recipe, Run, fit, load_model, split_by_patient  # noqa: E402
from medtransfer.judge import judge  # noqa: E402
from medtransfer.probes import shuffled_auroc, start_features  # noqa: E402


def cohort(seed: int, *, marker: bool, n: int = 160, side: int = 32) -> Cohort:
    """Noise of patients with two images each, class 1 with a marker in a corner or a square inside."""
    rng = np.random.default_rng(seed)
    cases = []
    for i in range(n):
        label, image = i // 2 % 2, rng.integers(0, 200, (side, side)).astype(np.uint8)
        if label and marker:
            image[1:4, side - 4 : side - 1] = 255
        elif label:
            row, col = rng.integers(6, side - 14, 2)
            image[row : row + 8, col : col + 8] = 230
        cases.append(Case(f"c{i}", f"p{i // 2}", image, label=label))
    return Cohort(tuple(cases), ("no", "yes"))


def trained(data: Cohort, folder: Path, seed: int, folds: int | None) -> Run:
    """A logistic regression on an untrained network: quick, and good enough to see both signs."""
    split = split_by_patient(data, val=0.2, test=0.3, seed=seed, folds=folds)
    model = load_model("random/resnet18", until="stem", pool="mean_std")
    return fit(model, data, split, Prepare(size=32, scale="range"), Recipe(method="logistic"), out=folder, seed=seed,
               progress=False)  # fmt: skip


def flags(run: Run) -> list[str]:
    """What the corner probe of a run is called in its checks."""
    found = judge(run, controls=("corners",), bootstrap=500, shuffled_labels=False, learning_curve=False)
    return [c.status for c in found.checks if c.name == "Shortcut"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cohorts", type=int, default=20)
    parser.add_argument("--shuffles", type=int, default=5)
    asked = parser.parse_args()
    planted, honest = [], []
    included = {None: [], 4: []}
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(asked.cohorts):
            at = Path(folder) / str(seed)
            planted.append(flags(trained(cohort(seed, marker=True), at / "marker", seed, None)))
            plain = cohort(seed, marker=False)
            for folds, hits in included.items():
                run = trained(plain, at / f"honest-{folds}", seed, folds)
                if folds is None:
                    honest.append(flags(run))
                for again in range(asked.shuffles):
                    e = shuffled_auroc(run, start_features(run), bootstrap=500, seed=1000 * seed + again)
                    hits.append((e.low <= 0.5 <= e.high, e.value))
            print(f"{seed + 1} of {asked.cohorts}", end="\r", file=sys.stderr, flush=True)
    for name, found in (("marker", planted), ("no marker", honest)):
        counts = {s: sum(s in f for f in found) for s in ("serious", "caution")}
        print(f"{name}: flagged serious in {counts['serious']}, caution in {counts['caution']} of {len(found)}")
        wrong = counts["serious"] / len(found)
        note = f"{len(found)} cohorts"
        figure(f"Planted shortcut, {name}: share flagged serious", wrong, note=note)
    for folds, hits in included.items():
        share, mean = sum(h for h, _ in hits), np.mean([v for _, v in hits])
        print(f"shuffled, {folds or 'no'} folds: .5 inside in {share} of {len(hits)}, mean AUROC {mean:.3f}")


if __name__ == "__main__":
    main()
