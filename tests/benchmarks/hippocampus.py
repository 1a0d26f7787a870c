"""The hippocampus set: trained on its training part, measured once on its test part beside nnU-Net's Dice.

    python tests/benchmarks/hippocampus.py --out runs/hippocampus --threads 2            # the figure
    python tests/benchmarks/hippocampus.py --out runs/develop --develop                  # no test case is touched

Neighbouring numbers often are of one subject, so the validation part is a block of them. ``--develop`` holds out a
second block of the training part in the place of the test part.
"""

from __future__ import annotations

import argparse
import csv
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

import medtransfer as mt
from medtransfer.segment import Plan, evaluate_masks, fingerprint_of, load_segmenter, train_segmentation

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data" / "hippocampus"
STRUCTURES = ("anterior", "posterior")


def cohort_of(develop: bool, *, val: int = 12) -> mt.Cohort:
    """The cases with their parts: the last ``val`` training numbers validate; to develop, 15 before them test."""
    cohort = mt.Cohort.from_csv(SHARED / "cohort.csv", root=SHARED, mask="mask", part="split")
    train = [c for c in cohort.cases if c.part == "train"]
    train = [replace(c, part="train" if i < len(train) - val else "val") for i, c in enumerate(train)]
    if develop:
        return replace(cohort, cases=tuple(
            replace(c, part="test") if len(train) - val - 15 <= i < len(train) - val else c
            for i, c in enumerate(train)
        ))  # fmt: skip
    return replace(cohort, cases=(*train, *(c for c in cohort.cases if c.part == "test")))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--develop", action="store_true")
    parser.add_argument("--weights", default="random/unet")
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--epochs", type=int, default=220)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    cohort = cohort_of(options.develop)
    split = mt.Split.from_column(cohort)
    found = fingerprint_of(cohort, list(split.train), 3)
    plan = Plan.for_data(found, laterality=False)
    # left and right hippocampi are in the set under the same names, so x may be mirrored; front and back may not
    plan = plan.model_copy(update={"mirror": ("x",), "width": options.width, "batch_size": options.batch})
    plan = plan.model_copy(update={"steps_per_epoch": -(-len(split.train) // options.batch)})
    settings = {"width": options.width} | ({"strides": plan.steps} if options.weights == "random/unet" else {})
    model = load_segmenter(options.weights, classes=3, seed=options.seed, **settings)
    recipe = mt.Recipe(
        method="full", freeze_epochs=0, epochs=options.epochs, patience=options.epochs, lr=options.lr,
        backbone_lr_scale=1.0, layer_decay=1.0, schedule="poly", ema=0.998,
    )  # fmt: skip
    print(plan.to_yaml(), model, flush=True)
    began, cpu = time.monotonic(), time.process_time()
    run = train_segmentation(model, cohort, split, plan, recipe, out=options.out, structures=STRUCTURES,
                             seed=options.seed)  # fmt: skip
    print(f"training {(time.monotonic() - began) / 60:.1f} min, {(time.process_time() - cpu) / 60:.1f} min CPU")
    result = evaluate_masks(run, split.test, tolerance_mm=1.0)
    result.save(options.out)
    print(result.summary())
    if options.develop:
        return
    with open(SHARED / "cohort.csv", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == "test"]
    theirs = {row["case_id"]: float(row["nnunet3d_dice_label1"]) / 100 for row in rows}
    gap = np.array(
        [
            each["anterior"].dice - theirs[cohort.cases[i].case_id]
            for i, each in zip(split.test, result.scores, strict=True)
        ]
    )
    draws = np.random.default_rng(0).choice(gap, (2000, len(gap))).mean(1)
    low, high = np.percentile(draws, (2.5, 97.5))
    print(f"anterior, Dice minus nnU-Net's, {len(gap)} cases paired: {gap.mean():+.4f} ({low:+.4f} to {high:+.4f})")


if __name__ == "__main__":
    main()
