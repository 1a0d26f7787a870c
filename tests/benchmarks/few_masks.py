"""Few training cases: pretrained against random start, the same network, the same cases, paired over draws.

    python tests/benchmarks/few_masks.py --n 10 25 --draws 3 --out runs/few

Cases are drawn from the training part of the hippocampus set; 8 others of it validate; the test part (or, with
``--develop``, a block of the training part) is read once a run and decides nothing.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from hippocampus import STRUCTURES, cohort_of

import medtransfer as mt
from medtransfer.segment import Plan, evaluate_masks, fingerprint_of, load_segmenter, train_segmentation

STARTS = {"pretrained": "embedded/compact3d", "random": "random/compact3d", "unet": "random/unet"}


def recipe_of(start: str, epochs: int) -> mt.Recipe:
    """Pretrained: the decoder first, then all of it, the encoder slower; else everything from the first step."""
    common = {"epochs": epochs, "patience": epochs, "lr": 2e-3, "schedule": "poly", "ema": 0.99, "layer_decay": 1.0}
    if start == "pretrained":
        return mt.Recipe(method="full", freeze_epochs=epochs // 8, backbone_lr_scale=0.3, frozen_norms=True, **common)
    return mt.Recipe(method="full", freeze_epochs=0, backbone_lr_scale=1.0, frozen_norms=False, **common)


def once(start: str, n: int, draw: int, options: argparse.Namespace) -> dict[str, object]:
    """Train on a draw of n cases; mean Dice of each structure."""
    cohort = cohort_of(options.develop, val=8)
    train = [i for i, c in enumerate(cohort.cases) if c.part == "train"]
    chosen = set(np.random.default_rng(draw).choice(train, n, replace=False).tolist())
    cases = tuple(c for i, c in enumerate(cohort.cases) if c.part != "train" or i in chosen)
    cohort = replace(cohort, cases=cases)
    split = mt.Split.from_column(cohort)
    plan = Plan.for_data(fingerprint_of(cohort, list(split.train), 3), laterality=False)
    plan = plan.model_copy(update={"mirror": ("x",), "steps_per_epoch": 25})
    if options.patch:
        sizes = {"patch": tuple(options.patch), "batch_size": options.batch, "strides": plan.strides}
        plan = plan.model_copy(update=sizes)
    epochs = options.samples // (plan.batch_size * plan.steps_per_epoch)
    strides = {"strides": plan.steps} if start == "unet" else {}
    model = load_segmenter(STARTS[start], classes=3, width=plan.width, seed=draw, **strides)
    out = options.out / f"{start}-{n}-{draw}"
    began = time.process_time()
    run = train_segmentation(model, cohort, split, plan, recipe_of(start, epochs), out=out, structures=STRUCTURES,
                             seed=draw, progress=False)  # fmt: skip
    result = evaluate_masks(run, split.test, bootstrap=200)
    found = {name: row["dice"].value for name, row in zip(result.structures, result.rows, strict=True)}
    return {"start": start, "n": n, "draw": draw, "cpu_s": round(time.process_time() - began), **found}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--n", type=int, nargs="+", default=[10, 25])
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--starts", nargs="+", default=list(STARTS), choices=list(STARTS))
    parser.add_argument("--samples", type=int, default=2400, help="patches that every network sees")
    parser.add_argument("--patch", type=int, nargs=3, help="instead of the plan's, (x, y, z)")
    parser.add_argument("--batch", type=int, default=2, help="with --patch")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--develop", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = []
    for n in options.n:
        for draw in range(options.draws):
            for start in options.starts:
                rows.append(once(start, n, draw, options))
                print(json.dumps(rows[-1]), flush=True)
    print("| cases | structure | " + " | ".join(options.starts) + " | pretrained − random, paired |")
    for n in options.n:
        for name in STRUCTURES:
            each = {s: np.array([r[name] for r in rows if r["n"] == n and r["start"] == s]) for s in options.starts}
            means = " | ".join(f"{v.mean():.3f}" for v in each.values())
            gap = each["pretrained"] - each["random"] if {"pretrained", "random"} <= each.keys() else np.zeros(1)
            signs = " ".join(f"{g:+.3f}" for g in gap)
            print(f"| {n} | {name} | {means} | {gap.mean():+.3f} ({signs}) |")


if __name__ == "__main__":
    main()
