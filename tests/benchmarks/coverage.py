"""Coverage: how often does a nominal 95 % interval hold the true value, with several images a patient?

Patients are drawn, each with one to four images that are alike; the interval is made as in an evaluation, by patients,
and beside it with the same images taken as if each came from a patient of its own. Prints a Markdown table.

    nice -n 15 python tests/benchmarks/coverage.py --simulations 1000 --resamples 500
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
from figures import figure

from medtransfer.metrics import classification as c
from medtransfer.metrics.intervals import ClusterBootstrap, Estimate, boundary_auroc, interval, proportion
from medtransfer.metrics.ordinal import weighted_kappa
from medtransfer.metrics.panel import measure
from medtransfer.metrics.regression import agreement

ALIKE = 0.7  # share of the spread between patients in the sum of that between and within them (as variances: .49 / .98)


def noise(patient: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return ALIKE * rng.normal(size=patient.max() + 1)[patient] + ALIKE * rng.normal(size=len(patient))


def two_classes(patient: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    ill = rng.random(patient.max() + 1) < 0.3
    return ill[patient], 1.8 * ill[patient] + noise(patient, rng)


def numbers(patient: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    truth = rng.normal(size=patient.max() + 1)[patient]
    return truth, 0.9 * truth + 0.1 + 0.6 * noise(patient, rng)


def estimate_auroc(patient: np.ndarray, unit: np.ndarray, rng: np.random.Generator, resamples: int) -> Estimate:
    y, s = two_classes(patient, rng)
    yes, no = len(np.unique(unit[y])), len(np.unique(unit[~y]))
    if min(yes, no) < 2:
        return Estimate(None)
    draws = ClusterBootstrap.draw(unit, resamples=resamples, seed=int(rng.integers(2**31)))
    value = float(c.auroc(y, s))
    if value in (0.0, 1.0):
        return Estimate(value, *boundary_auroc(value, yes, no))
    each = draws.apply(lambda w: {"a": c.auroc(y, s, w)}).get("a", np.zeros(0))
    return interval(value, each, scale="log odds", units=min(yes, no))


def estimate_sensitivity(patient: np.ndarray, unit: np.ndarray, rng: np.random.Generator, resamples: int) -> Estimate:
    y, s = two_classes(patient, rng)
    return proportion(s[y] >= 0.9, unit[y])


def estimate_number(name: str) -> Callable[[np.ndarray, np.ndarray, np.random.Generator, int], Estimate]:
    def made(patient: np.ndarray, unit: np.ndarray, rng: np.random.Generator, resamples: int) -> Estimate:
        y, p = numbers(patient, rng)
        statistic, names = agreement(y, p), {name, "bias", "loa_lower", "loa_upper"}
        resampled = ClusterBootstrap.draw(unit, resamples=resamples, seed=int(rng.integers(2**31)))
        return measure(lambda w: {k: v for k, v in statistic(w).items() if k in names}, resampled).estimates[name]

    return made


def estimate_kappa(patient: np.ndarray, unit: np.ndarray, rng: np.random.Generator, resamples: int) -> Estimate:
    y, p = (np.digitize(v, [-0.7, 0.0, 0.7]) for v in numbers(patient, rng))
    draws = ClusterBootstrap.draw(unit, resamples=resamples, seed=int(rng.integers(2**31))).apply(
        lambda w: {"k": weighted_kappa(c.confusion(y, p, 4, w), 2)}
    )
    return interval(
        float(weighted_kappa(c.confusion(y, p, 4), 2)), draws.get("k", np.zeros(0)), patients=len(np.unique(unit))
    )


STATISTICS = {
    "AUROC": estimate_auroc,
    "Sensitivity": estimate_sensitivity,
    "Mean absolute error": estimate_number("mae"),
    "Bias": estimate_number("bias"),
    "Upper limit of agreement": estimate_number("loa_upper"),
    "Concordance (Lin)": estimate_number("ccc"),
    "Weighted kappa, quadratic": estimate_kappa,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--simulations", type=int, default=1000)
    parser.add_argument("--resamples", type=int, default=500)
    options = parser.parse_args()
    print(f"{options.simulations} simulations, {options.resamples} resamples each\n")
    print("| Statistic | Truth | Patients | By patients | By images, as if independent |")
    print("|---|---:|---:|---:|---:|", flush=True)
    start = time.process_time()
    for name, estimate in STATISTICS.items():
        many = np.arange(2_000_000)
        truth = estimate(many, many, np.random.default_rng(0), 0).value
        assert truth is not None
        for patients in (50, 100, 200):
            held: dict[str, list[bool]] = {"patient": [], "image": []}
            for seed in range(options.simulations):
                images = np.random.default_rng([seed, 1]).integers(1, 5, patients)
                patient = np.repeat(np.arange(patients), images)
                for kind, unit in (("patient", patient), ("image", np.arange(len(patient)))):
                    e = estimate(patient, unit, np.random.default_rng([seed, 2]), options.resamples)
                    if e.low is not None and e.high is not None:
                        held[kind].append(e.low <= truth <= e.high)
            shares = [f"{100 * np.mean(held[kind]):.1f} %" for kind in ("patient", "image")]
            print(f"| {name} | {truth:.3f} | {patients} | {shares[0]} | {shares[1]} |", flush=True)
            figure(f"Coverage of 95 % intervals, {name}, {patients} patients", float(np.mean(held["patient"])),
                   note=f"{options.simulations} simulations; by images {shares[1]}")  # fmt: skip
    print(f"\n{time.process_time() - start:.0f} s of one core")


if __name__ == "__main__":
    main()
