"""Pretrain the embedded backbones on scenes drawn by code.

``python tools/pretrain/train.py --dims 2 --minutes 40 --out folder`` draws the scenes once (into ``--bank``), trains,
and writes ``compact2d.safetensors`` with its record every few minutes. The same seed, scenes and ``--steps`` give the
same weights on the same machine; ``--minutes`` only chooses the steps from the speed of the first ones.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import json
import sys
import time
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parent))

from scenes import ATTRIBUTES, scene_bank
from views import NUMBERS, cut, two_views

from medtransfer.compact import WIDTHS, CompactNet
from medtransfer.weights import read_tensors

MEAN, STD = 0.5, 0.25
SETTINGS = {2: {"scenes": 32768, "bank_side": 80, "side": 48, "chunk": 16, "batch": 64},
            3: {"scenes": 4096, "bank_side": 40, "side": 32, "chunk": 8, "batch": 32}}  # fmt: skip


class Learner(nn.Module):
    """The network with what is thrown away afterwards: projections for contrast, maps and parameters."""

    def __init__(self, dims: int, numbers: int = len(ATTRIBUTES) + len(NUMBERS)) -> None:
        super().__init__()
        conv = nn.Conv2d if dims == 2 else nn.Conv3d
        widths, self.dims = WIDTHS[dims], dims
        self.net = CompactNet(dims)
        self.project = nn.Sequential(nn.Linear(widths[-1], 256), nn.BatchNorm1d(256), nn.ReLU(), nn.Linear(256, 128))
        self.lateral = nn.ModuleList(conv(w, 32, 1) for w in widths[2:])
        self.paint = nn.Sequential(nn.ReLU(), conv(32, 32, 3, 1, 1), nn.ReLU(), conv(32, 4, 1))
        self.guess = nn.ModuleList(nn.Sequential(nn.BatchNorm1d(2 * w), nn.Linear(2 * w, numbers)) for w in widths[1:])

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        stages = self.net.stages((x - MEAN) / STD)[1:]
        flat = [s.flatten(2) for s in stages]
        guesses = [
            head(torch.cat([f.mean(2), (f.var(2, correction=0) + 1e-5).sqrt()], 1))
            for head, f in zip(self.guess, flat, strict=True)
        ]
        up: Tensor = self.lateral[-1](stages[-1])
        for lateral, stage in zip(reversed(self.lateral[:-1]), reversed(stages[1:-1]), strict=True):
            mode = "bilinear" if self.dims == 2 else "trilinear"
            up = F.interpolate(up, stage.shape[2:], mode=mode) + lateral(stage)
        return self.project(flat[-1].mean(2)), self.paint(up), guesses


def contrast(z: Tensor, temperature: float = 0.2) -> Tensor:
    """Each view should be most like the other view of its scene (NT-Xent of SimCLR)."""
    z = F.normalize(z.float(), dim=1)
    n = len(z) // 2
    alike = (z @ z.T / temperature).fill_diagonal_(-1e4)
    return F.cross_entropy(alike, torch.cat([torch.arange(n, 2 * n), torch.arange(n)]))


def edges(clean: Tensor) -> Tensor:
    """How steep the clean picture is, [0, 1]."""
    total = torch.zeros_like(clean)
    for axis in range(2, clean.ndim):
        step = (clean.roll(-1, axis) - clean.roll(1, axis)) / 2
        total = total + step.square()
    return (4 * total.sqrt()).clamp(0, 1)


def losses(learner: Learner, pictures: Tensor, targets: Tensor, numbers: Tensor) -> dict[str, Tensor]:
    with torch.autocast("cpu", torch.bfloat16):
        z, painted, guesses = learner(pictures)
    clean, lesion, texture = targets[:, :1], targets[:, 1:2], targets[:, 2:]
    wanted = torch.cat([clean, texture, lesion, edges(clean)], 1)
    pool = F.avg_pool2d if learner.dims == 2 else F.avg_pool3d
    wanted, painted = pool(wanted, 4), painted.float()
    maps = F.smooth_l1_loss(painted[:, :2], wanted[:, :2], beta=0.1) * 2
    maps = maps + F.binary_cross_entropy_with_logits(painted[:, 2:], wanted[:, 2:])
    parameters = sum(F.mse_loss(g.float(), numbers) for g in guesses) / len(guesses)
    return {"contrast": contrast(z), "maps": maps, "parameters": parameters}


def seen(pictures: Tensor, clean: Tensor) -> Tensor:
    """Numbers of the picture as it is seen ``[n, 4]``: mean, deviation, where its middle lies, steepness."""
    flat = pictures.flatten(1)
    grey = torch.stack([flat.mean(1), flat.std(1), flat.median(1).values, edges(clean).flatten(1).mean(1)], 1)
    return (grey - torch.tensor([0.45, 0.2, 0.45, 0.15])) / torch.tensor([0.15, 0.08, 0.2, 0.1])


def bank(folder: Path, dims: int, seed: int, count: int, projections: float = 0.0) -> tuple[Tensor, Tensor]:
    """The scenes of that seed, drawn once."""
    s = SETTINGS[dims]
    file = folder / f"scenes{dims}d_{seed}_{count}{f'_{projections:g}' if projections else ''}.pt"
    if not file.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        maps, attributes = scene_bank(count, dims, s["bank_side"], seed, s["chunk"], projections)
        if dims == 3:  # turning volumes is slow: each is cut twice, once for ever
            generator, halves = torch.Generator().manual_seed(seed + 3), []
            for rows in maps.split(32):
                views = cut(torch.cat([rows, rows]).float() / 255, s["side"], generator)[0]
                halves.append((views * 255).round().to(torch.uint8).reshape(2, len(rows), *views.shape[1:]))
            maps = torch.cat(halves, 1).transpose(0, 1).contiguous()
        torch.save((maps, attributes), file)
    maps, attributes = torch.load(file, mmap=True)
    return maps, attributes


def save(network: nn.Module, dims: int, out: Path, facts: dict[str, object]) -> None:
    """Weights as float16 safetensors and their record."""
    from safetensors.torch import save_file

    out.mkdir(parents=True, exist_ok=True)
    file = out / f"compact{dims}d.safetensors"
    tensors = {k: v.half() for k, v in network.state_dict().items() if not k.endswith("num_batches_tracked")}
    save_file(tensors, file)
    record = {
        "name": f"embedded/compact{dims}d",
        "arch": f"compact{dims}d",
        "mean": [MEAN],
        "std": [STD],
        "file": file.name,
        "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
        "licence": "Apache-2.0",
        "origin": f"trained by tools/pretrain/train.py on scenes drawn by code alone, no foreign data; {facts}",
    }
    table = out / "record.json"
    records = json.loads(table.read_text(encoding="utf-8")) if table.is_file() else {}
    table.write_text(json.dumps(records | {record["name"]: record}, indent=2) + "\n", encoding="utf-8")


def settle(network: nn.Module, maps: Tensor, dims: int, generator: torch.Generator) -> None:
    """Statistics of batch normalisation anew, for weights that are an average over steps."""
    norms = [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain average over all batches
    network.train()
    s = SETTINGS[dims]
    with torch.no_grad():
        for _ in range(20):
            rows = torch.randint(len(maps), (s["batch"],), generator=generator)
            network((two_views(maps[rows], s["side"], generator)[0] - MEAN) / STD)
    network.eval()


def train(
    dims: int, out: Path, *, steps: int | None, minutes: float, seed: int, count: int, folder: Path, lr: float,
    weights: tuple[float, float, float], start_from: Path | None = None, projections: float = 0.0, alike: float = 0.0,
) -> None:  # fmt: skip
    """Train for ``steps``, or for as many as about ``minutes`` allow."""
    maps, attributes = bank(folder, dims, seed, count, projections)
    attributes = (attributes - attributes.mean(0)) / attributes.std(0).clamp_min(1e-3)
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed + 1)
    s = SETTINGS[dims]
    learner = Learner(dims, attributes.shape[1] + len(NUMBERS) + (4 if alike else 0))
    if start_from is not None:
        old = {k: v.float() for k, v in read_tensors(start_from).items()}
        learner.net.load_state_dict(learner.net.state_dict() | old)
    averaged = copy.deepcopy(learner.net)
    parts = [[p for p in learner.parameters() if (p.ndim > 1) == kernel] for kernel in (True, False)]
    groups = [{"params": parts[0], "weight_decay": 0.02}, {"params": parts[1], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=lr)
    layout = torch.channels_last if dims == 2 else torch.channels_last_3d
    learner = learner.to(memory_format=layout)
    offset = torch.tensor([-0.35, 0.2, 0.15, 0.2, 0.0])
    spread = torch.tensor([0.22, 0.25, 0.25, 0.3, 0.35])
    total, start, saved, running = steps or 10**9, time.time(), time.time(), {}
    step = 0
    while step < total:
        if steps is None and step == 30:
            started = time.time()
        if steps is None and step == 60:
            total = max(100, int(minutes * 60 / ((time.time() - started) / 30)))
            print(f"{total} steps", flush=True)
        share = min(1.0, step / total)
        rate = lr * min(1.0, (step + 1) / 100) * (1 - share if share > 0.3 else 0.7) / 0.7
        for group in optimizer.param_groups:
            group["lr"] = rate
        rows = torch.randint(len(maps), (s["batch"],), generator=generator)
        side = s["side"] if share < 0.7 or dims == 3 else s["side"] * 4 // 3
        pictures, targets, made = two_views(maps[rows], side, generator, alike)
        numbers = torch.cat([attributes[rows].repeat(2, 1), (made - offset) / spread], 1)
        if alike:
            numbers = torch.cat([numbers, seen(pictures, targets[:, :1])], 1)
        found = losses(learner, pictures.contiguous(memory_format=layout), targets, numbers)
        loss = sum(w * v for w, v in zip(weights, found.values(), strict=True))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if nn.utils.clip_grad_norm_(learner.parameters(), 5.0).isfinite():
            optimizer.step()
        else:
            print(f"{step:6d}  gradients that are not finite, step left out", flush=True)
        keep = min(0.998, step / (step + 20))
        with torch.no_grad():
            for mine, theirs in zip(averaged.parameters(), learner.net.parameters(), strict=True):
                mine.lerp_(theirs, 1 - keep)
        for k, v in found.items():
            running[k] = 0.98 * running.get(k, v.item()) + 0.02 * v.item()
        step += 1
        if step % 100 == 0:
            line = "  ".join(f"{k} {v:.3f}" for k, v in running.items())
            print(f"{step:6d}  {(time.time() - start) / step * 1e3:.0f} ms  {line}", flush=True)
        if step == total or time.time() - saved > 180:
            final = copy.deepcopy(averaged)
            settle(final, maps, dims, torch.Generator().manual_seed(seed + 2))
            facts: dict[str, object] = {
                "start": start_from.name if start_from else "random",
                "seed": seed,
                "scenes": count,
                "steps": step,
                "of": total,
                "batch": s["batch"],
                "projections": projections,
                "alike": alike,
            }
            save(final, dims, out, facts)
            saved = time.time()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dims", type=int, choices=(2, 3), required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--minutes", type=float, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scenes", type=int)
    parser.add_argument("--bank", type=Path, default=Path("bank"))
    parser.add_argument("--start-from", type=Path, help="weights of an earlier run, for one more cycle")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--weights", type=float, nargs=3, default=(1.0, 1.0, 1.0), metavar=("C", "M", "P"))
    parser.add_argument("--projections", type=float, default=0.0, help="share of scenes that are projections (2D)")
    parser.add_argument("--alike", type=float, default=0.0, help="how much of the grey curve two views share")
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    count = a.scenes or SETTINGS[a.dims]["scenes"]
    train(
        a.dims, a.out, steps=a.steps, minutes=a.minutes, seed=a.seed, count=count, folder=a.bank, lr=a.lr,
        weights=tuple(a.weights), start_from=a.start_from, projections=a.projections, alike=a.alike,
    )  # fmt: skip


if __name__ == "__main__":
    main()
