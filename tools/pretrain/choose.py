"""Held-out synthetic tasks: what choices between pretrainings are made on, so that no real image decides anything.

Tasks from the generator with seeds it was not trained on, from processes it does not know (bundles of fibres,
jittered grids, smooth against rough outlines in fog), and the package's own phantom radiographs, with nodules or
with veils laid over them.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parent))

from scenes import NUMBERS, Draw, draw_scenes
from views import acquire

from medtransfer.compact import CompactNet
from medtransfer.weights import read_tensors

Task = tuple[Tensor, Tensor]


def fibres(n: int, side: int, seed: int) -> Task:
    """Short strokes whose directions scatter little or much."""
    g = torch.Generator().manual_seed(seed)
    label = (torch.rand(n, generator=g) < 0.5).long()
    main = torch.pi * torch.rand(n, 1, generator=g)
    wide = torch.where(label == 1, 0.55, 0.35)[:, None]
    angle = main + wide * torch.randn(n, 60, generator=g)
    start = torch.rand(n, 60, 2, generator=g) * side
    steps = torch.arange(12)
    rows = (start[..., :1] + torch.sin(angle)[..., None] * steps).long().clamp(0, side - 1)
    cols = (start[..., 1:] + torch.cos(angle)[..., None] * steps).long().clamp(0, side - 1)
    x = torch.zeros(n, side * side).scatter_add_(1, (rows * side + cols).flatten(1), torch.full((n, 720), 0.4))
    return acquire(0.2 + x.reshape(n, 1, side, side).clamp(0, 0.8), g)[0], label


def grids(n: int, side: int, seed: int) -> Task:
    """Discs on a grid that is jittered little or much."""
    g = torch.Generator().manual_seed(seed)
    label = (torch.rand(n, generator=g) < 0.5).long()
    amount = torch.where(label == 1, 0.3, 0.22)[:, None, None]
    nodes = torch.cartesian_prod(torch.arange(6.0), torch.arange(6.0))[None] + 0.5
    nodes = (nodes + amount * torch.randn(n, 36, 2, generator=g)) / 6 * side
    axis = torch.arange(side) + 0.5
    square = (axis[None, None, :, None] - nodes[..., 0, None, None]) ** 2
    square = square + (axis[None, None, None, :] - nodes[..., 1, None, None]) ** 2
    x = 0.3 + 0.4 * (square < (side / 18) ** 2).any(1, keepdim=True).float()
    return acquire(x, g)[0], label


def fog(n: int, side: int, seed: int) -> Task:
    """A pale body with a smooth or a wavy outline in coarse noise."""
    g = torch.Generator().manual_seed(seed)
    d = Draw(n, 2, side, g)
    label = (torch.rand(n, generator=g) < 0.5).long()
    angle, r = torch.atan2(d.grid[:, :1], d.grid[:, 1:]), d.grid.square().sum(1, keepdim=True).sqrt()
    phase = d.each(0, 6.3)
    waves = torch.sin((5 + torch.randint(5, (n, 1, 1, 1), generator=g)) * angle + phase)
    r0 = d.each(0.25, 0.5) * (1 + 0.15 * torch.sin(2 * angle + phase) + 0.07 * label.reshape(-1, 1, 1, 1) * waves)
    x = 0.4 + 0.2 * torch.sigmoid((r0 - r) / 0.04) + 0.08 * d.noise(d.each(1.5, 3))
    return acquire(x.clamp(0, 1), g)[0], label


def generated(n: int, dims: int, side: int, seed: int) -> dict[str, Task]:
    """Unseen scenes of the generator: is there a lesion, is it rough, are there many structures."""
    g = torch.Generator().manual_seed(seed)
    chunk = 8
    drawn = [draw_scenes(chunk, dims, side, g) for _ in range(n // chunk)]
    image = torch.cat([s.image for s in drawn]).clamp(0, 1)
    a = torch.cat([s.attributes for s in drawn])
    value = {name: a[:, i] for i, name in enumerate(NUMBERS)}
    ill = value["lesion"] > 0
    tasks = {"lesion": (image, ill.long()), "many": (image, (value["count"] > value["count"].median()).long())}
    tasks["rough lesion"] = (image[ill], (value["lesion_rough"][ill] > 0).long())
    return tasks


def phantom(side: int, folder: Path) -> Task:
    """Nodules on the drawn radiographs."""
    from medtransfer.phantom import draw_visits, radiograph

    file = folder / f"phantom_{side}.pt"
    if file.is_file():
        x, y = torch.load(file)
        return x, y
    visits = draw_visits(240, 7)
    pictures = [torch.from_numpy(radiograph(v, 7).astype(np.float32))[None, None] / 4095 for v in visits]
    x = torch.cat([F.interpolate(p, (side, side), mode="area") for p in pictures])
    y = torch.tensor([int(v.nodule) for v in visits])
    folder.mkdir(parents=True, exist_ok=True)
    torch.save((x, y), file)
    return x, y


def veils(side: int, folder: Path, count: int = 480) -> Task:
    """Drawn radiographs, every second with one to three soft, uneven veils anywhere on the chest, never a nodule."""
    from medtransfer._thorax import Pose, thickness_mm
    from medtransfer.phantom import SITES, _expose

    file = folder / f"veils_{side}.pt"
    if file.is_file():
        x, y = torch.load(file)
        return x, y
    pictures, site = [], SITES[0]
    y = torch.arange(count) % 2
    for i in range(count):
        rng = np.random.default_rng([9, i])
        chest, g = np.random.default_rng([9, i, 1]), torch.Generator().manual_seed(i)
        pose = Pose(site.shape, 1.4 + 0.5 * rng.random(), ap=rng.random() < 0.5)
        body = thickness_mm(
            pose, sex="FM"[i // 2 % 2], age=int(rng.integers(25, 85)), nodule=False, chest=chest, rng=rng
        )
        if y[i]:
            d = Draw(1, 2, max(site.shape), g)
            cloud = d.noise(torch.full((1, 1, 1, 1), 3.0), 0.0, low=4.0)
            for _ in range(1 + d.pick(3)):
                r, _ = d.radius(d.grid, d.each(0.15, 0.35), 0.2, 0.45)
                veil = d.each(4, 14) * torch.sigmoid((1 - r + 0.25 * cloud) / 0.25)
                body = body + veil[0, 0, : site.shape[0], : site.shape[1]].numpy()
        picture = torch.from_numpy(_expose(body, site, rng).astype(np.float32))[None, None] / 4095
        pictures.append(F.interpolate(picture, (side, side), mode="area"))
    x = torch.cat(pictures)
    folder.mkdir(parents=True, exist_ok=True)
    torch.save((x, y), file)
    return x, y


def pooled(network: CompactNet, x: Tensor, *, last: bool = False) -> Tensor:
    """Average and deviation of every block, or the last one's average."""
    parts = []
    with torch.inference_mode():
        for rows in x.split(64):
            flat = [s.flatten(2) for s in network.stages((rows - network.shift) / network.scale)[1:]]
            if last:
                parts.append(flat[-1].mean(2))
                continue
            parts.append(torch.cat([f for s in flat for f in (s.mean(2), s.std(2, correction=0))], 1))
    return torch.cat(parts)


def probe(x: Tensor, y: Tensor, n: int, draws: int = 6) -> float:
    """Mean AUROC of ridge regression with its penalty by leave-one-out, on the cases not drawn."""
    values = []
    for i in range(draws):
        order = torch.randperm(len(y), generator=torch.Generator().manual_seed(i))
        fit, rest = order[:n], order[n:]
        mean, std = x[fit].mean(0), x[fit].std(0).clamp_min(1e-6)
        a, b = ((x[fit] - mean) / std).double(), ((x[rest] - mean) / std).double()
        t = y[fit].double() - y[fit].double().mean()
        e, v = torch.linalg.eigh(a @ a.T)
        best = (torch.inf, torch.zeros(n, dtype=torch.double))
        for penalty in e.max() * torch.logspace(-5, 0, 11):
            inverse = (v / (e + penalty)) @ v.T
            alpha = inverse @ t
            loss = float((alpha / inverse.diagonal()).square().sum())
            best = min(best, (loss, alpha), key=lambda pair: pair[0])
        score = b @ (a.T @ best[1])
        up, down = score[y[rest] == 1], score[y[rest] == 0]
        values.append(float((up[:, None] > down[None]).double().mean()))
    return sum(values) / draws


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("weights", nargs="+", help="safetensors files, or random")
    parser.add_argument("--dims", type=int, default=2)
    parser.add_argument("--last", action="store_true", help="the last block's average alone")
    parser.add_argument("--bank", type=Path, default=Path("bank"), help="where the drawn radiographs are kept")
    a = parser.parse_args()
    torch.set_num_threads(1)
    if a.dims == 2:
        tasks = generated(800, 2, 64, 10_001)
        tasks |= {"fibres": fibres(800, 64, 1), "grids": grids(800, 64, 2), "fog": fog(800, 64, 3)}
        tasks |= {"phantom": phantom(96, a.bank), "veils": veils(64, a.bank)}
    else:
        tasks = generated(640, 3, 32, 10_001)
    print("weights", *tasks, "mean without veils", "mean", sep=" | ")
    for file in a.weights:
        torch.manual_seed(0)
        network = CompactNet(a.dims).eval()
        network.shift, network.scale = 0.5, 0.25
        if file != "random":
            tensors = {k: v.float() for k, v in read_tensors(Path(file)).items()}
            network.load_state_dict(network.state_dict() | tensors)
        scores = []
        for x, y in tasks.values():
            f = pooled(network, x, last=a.last)
            scores += [(probe(f, y, 100), probe(f, y, min(400, len(y) * 3 // 5)))]
        cells = [f"{low:.3f} {high:.3f}" for low, high in scores]
        old = f"{np.mean(scores[:7]):.4f}"  # without the veils
        print(file, *cells, old, f"{np.mean(scores):.4f}", sep=" | ", flush=True)


if __name__ == "__main__":
    main()
