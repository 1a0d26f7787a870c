"""Cohorts made on the spot."""

import numpy as np


def blobs(n=60, side=40, seed=0, per_patient=2):
    """n images of noise; those of class 1 hold a bright square."""
    from medtransfer.cohort import Case, Cohort

    rng = np.random.default_rng(seed)
    cases = []
    for i in range(n):
        label = (i // per_patient) % 2
        image = rng.integers(0, 120, (side, side)).astype(np.uint8)
        if label:
            r, c = rng.integers(5, side - 20, 2)
            image[r : r + 14, c : c + 14] += 90
        cases.append(Case(f"c{i}", f"p{i // per_patient}", image, label=label, covariates={"age": str(40 + i % 30)}))
    return Cohort(tuple(cases), ("no", "yes"))
