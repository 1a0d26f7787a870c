"""Does a learning curve from half of the data tell what all of them reach? PneumoniaMNIST beside the repository.

    python tests/benchmarks/enough.py --full 0 800 200 --seeds 20

For each seed as many training cases as ``--full`` says (0: all) are drawn, and half of these are what is in hand: the
curve is fitted to nested parts of that half alone. What it predicts for all is set beside the AUROC that all reach,
both on the official validation part. The test part is not read. Features are computed once.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np
from figures import figure

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from medtransfer import Cohort, Prepare, load_model
from medtransfer.dataset import Prepared
from medtransfer.enough import curve_of
from medtransfer.features import fit_logistic, frozen_features
from medtransfer.metrics.classification import auroc
from medtransfer.metrics.growth import at, fits

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data"
WEIGHTS = SHARED / "imagenet_mobilenet_v2" / "mobilenet_v2_keras_imagenet_torchvision.safetensors"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--full", type=int, nargs="+", default=[0, 800, 200])
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--side", type=int, default=64)
    parser.add_argument("--features", type=Path, help="A .npy file that keeps the features for the next call.")
    asked = parser.parse_args()
    cohort = Cohort.from_medmnist(SHARED / "medmnist" / "pneumoniamnist_rebuilt.npz")
    parts = np.array([case.part for case in cohort])
    train, val = np.flatnonzero(parts == "train"), np.flatnonzero(parts == "val")
    if asked.features and asked.features.is_file():
        features = np.load(asked.features)
    else:
        model = load_model(str(WEIGHTS), arch="mobilenet_v2", mean=(0.5,) * 3, std=(0.5,) * 3)
        features = np.zeros((len(cohort), model.width), np.float32)
        wanted = np.concatenate([train, val])
        prepared = Prepared(cohort.cases, Prepare(size=asked.side, scale="range"), progress=False)
        features[wanted] = frozen_features(model, prepared, wanted, progress=False)
        if asked.features:
            np.save(asked.features, features)
    y, patients = cohort.labels, cohort.patients
    for full in asked.full:
        errors, inside, started = [], 0, time.monotonic()
        for seed in range(asked.seeds):
            drawn = np.random.default_rng(seed).permutation(train)[: full or len(train)]
            half = np.sort(drawn[: len(drawn) // 2])
            curve = curve_of(features, y, patients, [(half, val)], classes=2, bootstrap=200, seed=seed)
            fitted, again = fits(curve, len(curve.cases), seed)
            predicted, low, high = float(at(fitted, len(drawn))), *np.nanquantile(at(again, len(drawn)), [0.025, 0.975])
            whole = fit_logistic(features[drawn], y[drawn], patients[drawn], 2, seed=seed)  # as a run does it
            found = float(auroc(y[val] == 1, whole.probability(features[val])[:, 1]))
            errors.append(predicted - found)
            inside += low <= found <= high
        errors = np.array(errors)
        n = full or len(train)
        close = float((abs(errors) <= 0.02).mean())
        figure(f"Learning curve, {n} cases foretold from {n // 2}: share within .02 AUROC", close,
               note=f"{asked.seeds} seeds")  # fmt: skip
        print(
            f"{n} cases from {n // 2}: within .02 in {(abs(errors) <= 0.02).sum()} of "
            f"{asked.seeds}, inside the band in {inside}; mean error {errors.mean():+.4f}, largest "
            f"{abs(errors).max():.4f}; {(time.monotonic() - started) / asked.seeds:.1f} s a seed",
            flush=True,
        )


if __name__ == "__main__":
    main()
