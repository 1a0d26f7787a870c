"""Fine-tuning ResNet-50: medtransfer beside the usual way, whole epochs and whole runs.

    python tests/benchmarks/tuning_peers.py --side 224 --images 64 --others path/to/python

Last stage and head, ten epochs: the whole call of ``fit``, activations at the frozen boundary computed once, against
PyTorch's tutorial, which computes the trunk in every epoch. Everything: an epoch as ``fit`` logs it (data, flips and
rotation, validation, checkpoint) against others' epochs and against eager compute alone on a batch in memory. All in
turn, each in a process of its own, several rounds. Few images, because ratios do not depend on their number. Random
weights.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from elsewhere import PACKAGES, Clock
from figures import child, figure, machine, result
from peers import whole


def one(asked: argparse.Namespace) -> None:
    """The child's part."""
    import torch

    torch.set_flush_denormal(True)
    clock, chosen = Clock(), {"stage": {"method": "finetune", "unfreeze_from": "layer4"}, "full": {"method": "full"}}
    epochs = whole(asked.images, asked.side, asked.epochs, asked.batch, clock, freeze_epochs=0, **chosen[asked.child])
    result(wall=clock.wall if asked.child == "stage" else epochs, cpu=clock.cpu)


def stage(asked: argparse.Namespace) -> None:
    """The last stage and the head."""
    same = f"--side {asked.side} --images {asked.images} --batch {asked.batch}".split()
    ratios, ours, theirs = [], [], []
    for turn in range(asked.rounds):
        mine = child(["tuning_peers.py", "--child", "stage", *same, "--epochs", asked.epochs])
        usual = child(["elsewhere.py", "pytorch", "stage", *same, "--epochs", asked.timed], python=asked.others)
        if isinstance(mine, str) or isinstance(usual, str):
            print(f"  last stage: {mine} / {usual}")
            return
        ours.append(mine[asked.clock][0])
        theirs.append(statistics.median(usual[asked.clock][1:] or usual[asked.clock]) * asked.epochs)
        ratios.append(theirs[-1] / ours[-1])
        print(f"  last stage, round {turn}: ours {ours[-1]:.1f} s, trunk recomputed {theirs[-1]:.1f} s", flush=True)
    figure(
        f"Last stage of ResNet-50, {asked.images} images of {asked.side} px, {asked.epochs} epochs: trunk recomputed "
        "over whole fit", statistics.median(ratios), least=2.5,
        note=f"{asked.clock} seconds, median of {asked.rounds}; the usual way timed for {asked.timed} epochs",
    )  # fmt: skip


def full(asked: argparse.Namespace) -> None:
    """Everything learns."""
    same = f"--side {asked.side} --images {asked.images} --batch {asked.batch} --epochs {asked.timed}".split()
    found: dict[str, list[float]] = {}
    missing: dict[str, str] = {}
    for turn in range(asked.rounds):
        for name in ("ours", "eager", *PACKAGES):
            if name == "ours":
                said = child(["tuning_peers.py", "--child", "full", *same])
            else:
                said = child(["elsewhere.py", name, "step" if name == "eager" else "full", *same],
                             python=sys.executable if name == "eager" else asked.others)  # fmt: skip
            if isinstance(said, str):
                missing[name] = said
                continue
            found.setdefault(name, []).append(min(said["wall"]))
            print(f"  everything, round {turn}: {name:<12} {found[name][-1]:8.1f} s an epoch", flush=True)
    for name, why in missing.items():
        print(f"  {name}: {why}")
    if not {"ours", "eager"} <= found.keys():
        return
    title = f"Full fine-tuning of ResNet-50, {asked.images} images of {asked.side} px, an epoch"
    note = f"wall seconds, quickest of {asked.timed} epochs, median of {asked.rounds}"
    against = statistics.median(a / b for a, b in zip(found["ours"], found["eager"], strict=False))
    figure(f"{title}: medtransfer over eager NCHW compute", against, most=0.85, note=note)
    others = {k: statistics.median(found[k]) for k in PACKAGES if k in found}
    for name, seconds in others.items():
        figure(f"{title}: {name} over medtransfer", seconds / statistics.median(found["ours"]), note=note)
    if others:
        fastest = min(others, key=lambda name: others[name])
        figure(f"{title}: medtransfer over the fastest other ({fastest})",
               statistics.median(found["ours"]) / others[fastest], most=1.0,
               note=note + "".join(f"; {k} {v}" for k, v in missing.items()))  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--side", type=int, default=224)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--timed", type=int, default=2, help="epochs timed of full fine-tuning and of the usual way")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--parts", nargs="+", choices=("stage", "full"), default=("stage", "full"))
    parser.add_argument("--others", default=sys.executable, help="the Python in which other packages are installed")
    parser.add_argument("--child", choices=("stage", "full"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.child:
        one(asked)
        return
    print(machine(), flush=True)
    for part in asked.parts:
        {"stage": stage, "full": full}[part](asked)


if __name__ == "__main__":
    main()
