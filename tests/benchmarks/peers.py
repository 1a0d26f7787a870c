"""A frozen ResNet-50 with a new head, ten epochs: medtransfer, what others offer, and the limit.

    python tests/benchmarks/peers.py --side 64 224 --others path/to/python

Others recompute the backbone every epoch; each runs in a process of its own, all in turn, several rounds. They are
timed over few epochs of few images, which is scaled to all (the time of an epoch does not change). Counted are the
whole call of ``fit``, images in memory, and of others the epochs alone. The limit is one forward pass over all images
in the fastest CPU form that is at hand, and ten epochs of a head on what it gave. ``--others`` is the Python in
which they are installed. Random weights.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from elsewhere import PACKAGES, Clock, images_of
from figures import child, figure, machine, result


def cohort_of(n: int, side: int, val: int = 0) -> Any:
    """The images that others get too, as a cohort; some more to validate on."""
    from medtransfer import Case, Cohort

    images, labels = images_of(n + val, side)
    parts = ["train"] * n + ["val"] * val
    rows = zip(images, labels, parts, strict=True)
    cases = [Case(f"{i}", f"{i}", x, label=int(y), part=part) for i, (x, y, part) in enumerate(rows)]
    return Cohort(tuple(cases), ("no", "yes"))


def whole(n: int, side: int, epochs: int, batch: int, clock: Clock, **settings: Any) -> list[float]:
    """One call of fit, and the seconds that it logged for each epoch."""
    import lightning_fabric  # noqa: F401  loading packages is not timed, neither here nor elsewhere
    import sklearn.linear_model
    import sklearn.model_selection  # noqa: F401
    import torchvision  # noqa: F401

    from medtransfer import Augment, Prepare, Recipe, fit, load_model, split_by_patient

    val = 0 if settings.get("method") == "logistic" else 2
    cohort, model = cohort_of(n, side, val), load_model("random/resnet50")
    split = split_by_patient(cohort, official=True)
    augment = Augment(flip_left_right=True, rotate_deg=10) if settings.get("method") == "full" else None
    recipe = Recipe(epochs=epochs, patience=epochs, batch_size=batch, **settings)
    with tempfile.TemporaryDirectory() as folder:
        clock.start()
        fit(model, cohort, split, Prepare(size=side, scale=(0, 255)), recipe, out=Path(folder) / "run",
            augment=augment, accelerator="cpu", progress=False)  # fmt: skip
        clock.stop()
        entries = [json.loads(line) for line in (Path(folder) / "run" / "log.jsonl").read_text().splitlines()]
    return [entry["seconds"] for entry in entries if "seconds" in entry]


def limit(n: int, side: int, epochs: int, batch: int, clock: Clock) -> str:
    """One forward pass in the fastest of these forms, and a head trained on what it gave; the name of the form."""
    import torch
    from torch.nn import functional as F

    from medtransfer import load_model
    from medtransfer.fastform import fast_form

    model = load_model("random/resnet50").eval()
    last = copy.deepcopy(model).to(memory_format=torch.channels_last)
    images = torch.from_numpy(images_of(n, side)[0])[:, None].float() / 255
    labels = torch.arange(n) % 2

    def dense(x: torch.Tensor) -> torch.Tensor:
        return last.features(x.contiguous(memory_format=torch.channels_last))

    forms: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {"eager": model.features, "channels last": dense}
    if (fused := fast_form(model)) is not None:
        forms["fused"] = fused
    with torch.inference_mode():
        seconds: dict[str, list[float]] = {name: [] for name in forms}
        for _ in range(3):
            for name, form in forms.items():
                began = time.perf_counter()
                form(images[:batch])
                seconds[name].append(time.perf_counter() - began)
        best = min(forms, key=lambda name: min(seconds[name][1:]))
        clock.start()
        features = torch.cat([forms[best](images[i : i + batch]) for i in range(0, n, batch)])
    features = features.clone()
    head = torch.nn.Linear(features.shape[1], 2)
    optimizer = torch.optim.AdamW(head.parameters(), 1e-3, fused=True)
    for _ in range(epochs):
        order = torch.randperm(n)
        for i in range(0, n, batch):
            k = order[i : i + batch]
            optimizer.zero_grad()
            F.cross_entropy(head(features[k]), labels[k]).backward()
            optimizer.step()
    clock.stop()
    return best


def one(asked: argparse.Namespace) -> None:
    """The child's part."""
    import torch

    torch.set_flush_denormal(True)
    clock, form = Clock(), ""
    n, side, batch = asked.images, asked.side[0], asked.batch
    if asked.child == "limit":
        form = limit(n, side, asked.epochs, batch, clock)
    else:
        whole(n, side, asked.epochs, batch, clock, method=asked.child)
    result(wall=clock.wall, cpu=clock.cpu, form=form)


def compare(side: int, asked: argparse.Namespace) -> None:
    """All of them in turn, several rounds."""
    few = min(asked.images, asked.few)
    per_child = f"--images {few} --epochs {asked.timed} --side {side} --batch {asked.batch}".split()
    ours = f"--images {asked.images} --epochs {asked.epochs} --side {side} --batch {asked.batch}".split()
    scale = asked.epochs * asked.images / few
    found: dict[str, list[float]] = {}
    missing: dict[str, str] = {}
    for turn in range(asked.rounds):
        for name in ("limit", "onnxruntime", "probe", "logistic", *PACKAGES):
            if name in ("limit", "probe", "logistic"):
                said = child(["peers.py", "--child", name, *ours])
            elif name in PACKAGES:
                said = child(["elsewhere.py", name, "frozen", *per_child], python=asked.others)
            else:
                said = child(["elsewhere.py", name, "forward", *per_child], python=asked.others)
            if isinstance(said, str):
                missing[name] = said
                continue
            times = said[asked.clock]
            part = {"limit": 1.0, "probe": 1.0, "logistic": 1.0, "onnxruntime": asked.images / few}.get(name, scale)
            seconds = statistics.median(times[1:] or times) * part  # the first epoch warms up, where there are more
            found.setdefault(name, []).append(seconds)
            print(f"  {side:3d} px, round {turn}: {name:<12} {seconds:9.2f} s {said.get('form', '')}", flush=True)
    for name, why in missing.items():
        print(f"  {name}: {why}")
    middle = {name: statistics.median(values) for name, values in found.items()}
    # where ONNX Runtime's forward pass beats every form of PyTorch, it and the head would be the limit
    floor = [min(a, b) for a, b in zip(found["limit"], found.get("onnxruntime", found["limit"]), strict=False)]
    title = f"Frozen ResNet-50, {asked.images} images of {side} px, {asked.epochs} epochs"
    note = f"{asked.clock} seconds, median of {asked.rounds}"
    for name in ("probe", "logistic"):
        if name in found:
            ratio = statistics.median(a / b for a, b in zip(found[name], floor, strict=False))
            figure(f"{title}: {name} over the limit", ratio, most=1.2, note=f"{note}, {middle[name]:.1f} s")
    others = {name: middle[name] for name in PACKAGES if name in middle}
    for name, seconds in others.items():
        figure(f"{title}: {name} over probe", seconds / middle["probe"], note=f"{note}, {seconds:.0f} s, from "
               f"{asked.timed} epochs of {few}")  # fmt: skip
    if others:
        fastest = min(others, key=lambda name: others[name])
        for name in ("probe", "logistic"):
            figure(f"{title}: fastest other ({fastest}) over {name}", others[fastest] / middle[name], least=12,
                   note=note + "".join(f"; {k} {v}" for k, v in missing.items()))  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--side", type=int, nargs="+", default=[64, 224])
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--few", type=int, default=128, help="images of others' epochs, scaled to all")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument(
        "--timed", type=int, default=2, help="epochs of others; the first is not counted if there are more"
    )
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--others", default=sys.executable, help="the Python in which other packages are installed")
    parser.add_argument("--child", choices=("limit", "probe", "logistic"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.child:
        one(asked)
        return
    print(machine(), flush=True)
    for side in asked.side:
        compare(side, asked)


if __name__ == "__main__":
    main()
