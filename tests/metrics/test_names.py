"""Every estimate has a name for its reader, whatever the task."""

from __future__ import annotations

import numpy as np

from medtransfer.metrics import multilabel, ordinal, panel, regression, segmentation
from medtransfer.metrics.intervals import ClusterBootstrap
from medtransfer.metrics.masks import score_mask
from medtransfer.metrics.names import LABELS


def test_every_estimate_has_a_label() -> None:
    rng = np.random.default_rng(0)
    b = ClusterBootstrap.draw(np.arange(40) // 2, resamples=20)
    y, p = rng.integers(0, 3, 40), rng.dirichlet(np.ones(3), 40)
    two = np.zeros(40, dtype=np.int64)
    mask = rng.random((6, 6)) < 0.4
    scores = [{"a": score_mask(mask, rng.random((6, 6)) < 0.4, (1, 1), tolerance_mm=1)} for _ in range(40)]
    found = [
        panel.binary(y == 1, p[:, 1], p[:, 1] > 0.4, two, b)[0].estimates,
        *(part for part in panel.multiclass(y, p, b)[1]),
        panel.multiclass(y, p, b)[0].estimates,
        multilabel.multilabel(p > 0.4, p, b)[0].estimates,
        ordinal.ordinal(y, p, b)[0].estimates,
        *ordinal.ordinal(y, p, b)[1],
        regression.regression(p, p[::-1], b)[0].estimates,
        segmentation.segmentation(scores, b)[0].estimates,
    ]
    assert {name for row in found for name in row} <= set(LABELS)
    assert len(set(LABELS.values())) == len(LABELS)
