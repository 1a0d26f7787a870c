"""Sliding windows over a volume against the pure compute of the windows, and against MONAI's defaults.

    python tests/benchmarks/sliding.py [--size 192] [--net unet|segresnet] [--rounds 3]

One process, alternating in pairs; CPU time of the process, so that neighbours on the machine count little. ``pure`` is
the network alone on the same number of windows at the best batch; ``pages kept`` is that with memory used again
(:func:`medtransfer.memory.reusing_pages`), which is the faster of both and what the ratio is taken to.
"""

from __future__ import annotations

import argparse
import itertools
import time
from contextlib import nullcontext

import numpy as np
import torch
from figures import figure
from monai.inferers import SlidingWindowInferer
from monai.networks.nets import SegResNet, UNet

from medtransfer.memory import reusing_pages
from medtransfer.segment.slide import slide, starts


def best(net: torch.nn.Module, window: tuple[int, ...]) -> int:
    """The batch that takes the least time a window."""
    times = {}
    for n in (2, 4, 8):
        views = torch.randn(n, 1, *window)
        seconds = []
        for _ in range(3):
            began = time.perf_counter()
            net(views)
            seconds.append((time.perf_counter() - began) / n)
        times[n] = min(seconds)
    return min(times, key=lambda n: times[n])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--size", type=int, default=192)
    parser.add_argument("--window", type=int, default=64)
    parser.add_argument("--net", choices=("unet", "segresnet"), default="unet")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    torch.manual_seed(0)
    if options.net == "unet":
        net = UNet(3, 1, 2, (16, 32, 64, 128), (2, 2, 2), num_res_units=1).eval()
    else:
        net = SegResNet(init_filters=8, in_channels=1, out_channels=2).eval()
    size, window, overlap = options.size, (options.window,) * 3, 0.25
    image = torch.randn(1, size, size, size)
    count = len(starts(size, options.window, overlap)) ** 3
    with torch.inference_mode():
        batch = best(net, window)

        def pure() -> None:
            for first in range(0, count, batch):
                net(views[: min(batch, count - first)])

        def ours() -> torch.Tensor:
            return torch.cat([a for _, _, a in slide(net, image, window, overlap=overlap, batch=batch)], 1)

        def monai(mode: str = "constant", batch: int = 1) -> torch.Tensor:
            return SlidingWindowInferer(window, batch, overlap, mode=mode)(image[None], net)[0]

        views = torch.randn(batch, 1, *window)
        plain = {"pure": pure, "MONAI, defaults": monai}
        kept = {"pure, pages kept": pure, "medtransfer": ours}  # as in a process that answers for several images
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in plain | kept}
        for jobs, context in ((plain, nullcontext()), (kept, reusing_pages())):
            with context:
                for _, (name, job) in itertools.product(range(options.rounds + 1), jobs.items()):
                    cpu, wall = time.process_time(), time.perf_counter()
                    job()
                    times[name].append((time.process_time() - cpu, time.perf_counter() - wall))
        found = {name: np.median(np.array(t[1:]), axis=0) for name, t in times.items()}
        same = float((ours() - monai("gaussian", batch)).abs().max())
    threads = torch.get_num_threads()
    print(f"{options.net}, {size}^3, {count} windows of {options.window}^3, batch {batch}, {threads} threads")
    for name, (cpu, wall) in found.items():
        print(f"{name:16s} {cpu:8.2f} s CPU {wall:8.2f} s wall")
    ours_, pure_, monai_ = found["medtransfer"], found["pure, pages kept"], found["MONAI, defaults"]
    print(f"to pure compute {ours_[0] / pure_[0]:.3f} CPU, {ours_[1] / pure_[1]:.3f} wall (at most 1.1)")
    print(f"MONAI's defaults to it {monai_[0] / ours_[0]:.2f} CPU, {monai_[1] / ours_[1]:.2f} wall (at least 2)")
    title = f"Sliding windows, {options.net}, {size}^3"
    figure(f"{title}: medtransfer over pure compute", ours_[0] / pure_[0], most=1.1, note="processor time")
    figure(f"{title}: MONAI's defaults over medtransfer", monai_[0] / ours_[0], least=2, note="processor time")
    print(f"largest difference from MONAI's Gaussian at the same windows {same:.2e} (at most 1e-5)")


if __name__ == "__main__":
    main()
