"""Ratios of training forms in one run, alternating: what is computed once, what is folded, what is fused.

    python tests/benchmarks/tuning.py [--arch resnet50] [--side 224] [--images 32] [--rounds 3]

Compute only: eager PyTorch in NCHW is the reference that everyone else's loop cannot beat.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from figures import figure
from torch import nn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from medtransfer import Augment, Prepare, Recipe, fit, load_model, split_by_patient
from medtransfer.boundary import dense, tail
from medtransfer.cohort import Case, Cohort
from medtransfer.training import optimizer_of
from medtransfer.tuned import choose, faster


def alternate(title: str, forms: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """CPU seconds of each form, medians over rounds, and medians of the ratio to the first form."""
    seconds: dict[str, list[float]] = {name: [] for name in forms}
    for turn in range(rounds + 1):
        for name, form in forms.items():
            started = time.process_time()
            form()
            if turn:  # the first round warms up
                seconds[name].append(time.process_time() - started)
    first = seconds[next(iter(forms))]
    print(title)
    ratios = {}
    for name, values in seconds.items():
        ratios[name] = statistics.median(a / b for a, b in zip(values, first, strict=True))
        print(f"  {name:<58} {statistics.median(values):8.3f} s   {ratios[name]:.3f}", flush=True)
    for name in list(forms)[1:]:
        figure(f"{title}: {name}, over {next(iter(forms))}", ratios[name], note="processor time")
    return ratios


def steps(arch: str, side: int, batch: int, rounds: int) -> None:
    """One step: full fine-tuning, and the last stage with the head."""
    base = load_model(f"random/{arch}", in_channels=1)
    x, y = torch.rand(batch, 1, side, side), torch.arange(batch) % 2
    last, recipe = list(base.stages)[-1], Recipe()

    def plain(stages: list[str]) -> Callable[[], object]:
        model = copy.deepcopy(base)
        model.train_only(stages, frozen_norms=False).train()  # as elsewhere: normalisation is not frozen
        model.requires_grad_(True) if len(stages) == len(base.stages) else None
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-4)

        def step() -> None:
            optimizer.zero_grad(set_to_none=True)
            F.cross_entropy(model(x), y).backward()
            optimizer.step()

        return step

    def ours(first: int) -> Callable[[], object]:
        model = copy.deepcopy(base).to(memory_format=torch.channels_last)
        choose(model, list(model.stages)[first:], "all", True)
        optimizer = optimizer_of(model, recipe)
        with torch.no_grad(), faster(model):
            pooled, kept = model.walk(dense(x), list(model.stages)[:first])

        def step() -> None:
            with faster(model):
                optimizer.zero_grad(set_to_none=True)
                F.cross_entropy(tail(model, first, pooled, dense(kept)), y).backward()
                nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], 1.0)
                optimizer.step()

        return step

    stages = list(base.stages)
    alternate(
        f"{arch}, {side} px, a step of {batch}: full fine-tuning",
        {"eager, NCHW, AdamW": plain(stages), "channels last, fused AdamW, frozen normalisation folded": ours(0)},
        rounds,
    )
    alternate(
        f"{arch}, {side} px, a step of {batch}: last stage and head",
        {"eager, trunk recomputed": plain([last]), "activations computed once": ours(len(stages) - 1)},
        rounds,
    )


def runs(arch: str, side: int, images: int, epochs: int) -> None:
    """Whole calls of fit, everything counted, against computing the trunk every epoch."""
    rng = np.random.default_rng(0)
    cases = [Case(f"{i}", f"{i}", rng.random((side, side), np.float32), label=i % 2) for i in range(images)]
    cohort = Cohort(tuple(cases), ("no", "yes"))
    split, prepare = split_by_patient(cohort, val=0.1, test=0.1), Prepare(size=side, scale=(0, 1))
    common = {"epochs": epochs, "freeze_epochs": 0, "patience": 99, "batch_size": 16}

    def call(**settings: object) -> Callable[[], object]:
        def form() -> None:
            with tempfile.TemporaryDirectory() as folder:
                model = load_model(f"random/{arch}")
                fit(model, cohort, split, prepare, Recipe(**common | settings), out=Path(folder) / "r", progress=False,
                    augment=Augment(), accelerator="cpu")  # fmt: skip

        return form

    last = list(load_model(f"random/{arch}").stages)[-1]
    alternate(
        f"{arch}, {side} px, {images} images, {epochs} epochs, whole runs",
        {
            "last stage, trunk every epoch": call(unfreeze_from=last, cache="off"),
            "last stage, activations once": call(unfreeze_from=last),
            "head, backbone every epoch": call(method="probe", cache="off"),
            "head, features once": call(method="probe"),
        },
        1,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--arch", default="resnet50")
    parser.add_argument("--side", type=int, default=224)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, default=0, help="whole runs too, on so many images")
    parser.add_argument("--epochs", type=int, default=10)
    asked = parser.parse_args()
    torch.set_flush_denormal(True)  # random weights reach subnormal numbers, real ones do not
    steps(asked.arch, asked.side, asked.batch, asked.rounds)
    if asked.images:
        runs(asked.arch, asked.side, asked.images, asked.epochs)


if __name__ == "__main__":
    main()
