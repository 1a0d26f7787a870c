"""Segmentation in 2D and 3D: a plan from the data, a decoder on any staged encoder, training, windows, evaluation.

::

    found = fingerprint_of(cohort, split.train, classes=3)
    plan = Plan.for_data(found, laterality=False)
    model = load_segmenter("random/unet", classes=3, width=plan.width, strides=plan.steps)
    run = train_segmentation(model, cohort, split, plan, Recipe.for_size(found.n, dims=3, task="segmentation"),
                             out="runs/seg", structures=("head", "tail"))
    result = evaluate_masks(run, split.test, tolerance_mm=1)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

_HOME = {
    "Fingerprint": "fingerprint",
    "Plan": "plan",
    "SegmentationRun": "run",
    "Segmented": "evaluate",
    "evaluate_masks": "evaluate",
    "fingerprint_of": "fingerprint",
    "load_segmenter": "network",
    "predict_masks": "evaluate",
    "train_segmentation": "train",
}

__all__ = sorted(_HOME)

if TYPE_CHECKING:
    from medtransfer.segment.evaluate import Segmented as Segmented
    from medtransfer.segment.evaluate import evaluate_masks as evaluate_masks
    from medtransfer.segment.evaluate import predict_masks as predict_masks
    from medtransfer.segment.fingerprint import Fingerprint as Fingerprint
    from medtransfer.segment.fingerprint import fingerprint_of as fingerprint_of
    from medtransfer.segment.network import load_segmenter as load_segmenter
    from medtransfer.segment.plan import Plan as Plan
    from medtransfer.segment.run import SegmentationRun as SegmentationRun
    from medtransfer.segment.train import train_segmentation as train_segmentation


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"medtransfer.segment.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
