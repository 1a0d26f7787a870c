"""How much faster a frozen backbone is in its fast CPU form than in eager evaluation, and how equal.

python tests/benchmarks/frozen.py [architecture ...]      (ResNet-50 by default; 224 pixels, batches of 8)
The two forms take turns in one process; times are processor times, the least of the rounds.
"""

import sys
import time

import torch
from figures import figure

from medtransfer.certify import fill
from medtransfer.fastform import features_of
from medtransfer.model import load_model


def measure(name: str, *, side: int = 224, batch: int = 8, rounds: int = 4) -> None:
    model = load_model(f"random/{name}").eval()
    fill(model)
    images = torch.rand(batch, 1, side, side)
    fast = features_of(model, images)
    if fast == model.features:
        print(f"{name:<24} eager is kept")
        return
    forms = (model.features, fast)
    seconds: list[list[float]] = [[], []]
    with torch.inference_mode():
        wanted, found = (form(images) for form in forms)
        for _ in range(rounds):
            for form, times in zip(forms, seconds, strict=True):
                start = time.process_time()
                form(images)
                times.append(time.process_time() - start)
    eager, fused = (min(t) / batch for t in seconds)
    error = float((found - wanted).abs().max() / wanted.abs().max())
    print(f"{name:<24} eager {eager * 1e3:7.1f} ms an image, fast {fused * 1e3:7.1f} ms: {eager / fused:4.2f} times "
          f"faster, largest difference {error:.1e} of the scale")  # fmt: skip
    figure(f"{name}, forward pass at {side} px: eager over the fast form", eager / fused, note="processor time")


if __name__ == "__main__":
    for wanted_name in sys.argv[1:] or ["resnet50"]:
        measure(wanted_name)
