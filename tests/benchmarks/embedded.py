"""Embedded backbones against the same networks untrained: frozen features, logistic regression, paired draws.

``python tests/benchmarks/embedded.py`` reads the real images of the folder ``shared/data`` beside the repository and
prints AUROC on the official test parts. Nothing here is used to choose how the backbones are trained.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from figures import figure
from numpy.typing import NDArray
from torch.nn import functional as F

from medtransfer.compact import CompactNet
from medtransfer.features import fit_logistic
from medtransfer.model import load_model
from medtransfer.weights import read_tensors

ROOT = Path(__file__).resolve().parents[2]
SHARED = ROOT.parent / "shared" / "data"
DATA = {"breastmnist": 2, "pneumoniamnist_rebuilt": 2, "adrenalmnist3d": 3}
Array = NDArray[np.float32]


def auroc(score: Array, labels: NDArray[np.int64]) -> float:
    from scipy.stats import rankdata

    ranks, n1 = rankdata(score), int(labels.sum())
    return float((ranks[labels == 1].sum() - n1 * (n1 + 1) / 2) / (n1 * (len(labels) - n1)))


def compact(dims: int, file: Path | None, seed: int = 0) -> CompactNet:
    """The embedded network, or the same one with random weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = CompactNet(2 if dims == 2 else 3)
    if file is not None:
        tensors = {k: v.float() for k, v in read_tensors(file).items()}
        network.load_state_dict(network.state_dict() | tensors)
    return network.eval()


def normalised(network: CompactNet) -> Callable[[torch.Tensor], list[torch.Tensor]]:
    """Its stages on images in [0, 1]."""
    return lambda x: network.stages((x - 0.5) / 0.25)


def pooled(outputs: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    """Average and deviation of every stage after the stem; the last stage's average alone."""
    flat = [x.flatten(2) for x in outputs]
    every = [f(x) for x in flat[1:] for f in (lambda x: x.mean(2), lambda x: x.std(2, correction=0))]
    return {"stages": torch.cat(every, 1), "last": flat[-1].mean(2)}


def features(
    stages: Callable[[torch.Tensor], list[torch.Tensor]], images: NDArray[np.uint8], side: int
) -> dict[str, Array]:
    """Features of uint8 images ``[n, ...]``, enlarged to ``side``."""
    mode = "bilinear" if images.ndim == 3 else "trilinear"
    parts: dict[str, list[Array]] = {"stages": [], "last": []}
    with torch.inference_mode():
        for start in range(0, len(images), 64):
            x = torch.from_numpy(images[start : start + 64]).float()[:, None] / 255
            x = F.interpolate(x, (side,) * (images.ndim - 1), mode=mode, antialias=False)
            for k, v in pooled(stages(x)).items():
                parts[k].append(v.numpy())
    return {k: np.concatenate(v) for k, v in parts.items()}


def mobilenet() -> Callable[[torch.Tensor], list[torch.Tensor]]:
    """ImageNet MobileNetV2, for orientation."""
    file = next((SHARED / "imagenet_mobilenet_v2").glob("*.safetensors"))
    model = load_model(str(file), arch="mobilenet_v2", mean=(0.5,) * 3, std=(0.5,) * 3).eval()

    def stages(x: torch.Tensor) -> list[torch.Tensor]:
        outputs = []
        for stage in model.stages.values():
            x = stage(x)
            outputs.append(x)
        return outputs

    return stages


def compare(
    name: str, dims: int, file: Path, *, side: int, draws: int, numbers: tuple[int, ...], kinds: tuple[str, ...]
) -> list[dict[str, object]]:
    """One row a number of training cases and a pooling: AUROC of both, and their paired difference."""
    data = np.load(SHARED / "medmnist" / f"{name}.npz")
    train, test = data["train_images"], data["test_images"]
    y, y_test = data["train_labels"][:, 0].astype(np.int64), data["test_labels"][:, 0].astype(np.int64)
    rng = np.random.default_rng(0)
    picks = {n: [rng.choice(len(y), n, replace=False) for _ in range(draws)] for n in numbers}
    used = np.unique(np.concatenate([p for ps in picks.values() for p in ps]))
    place = np.full(len(y), -1)
    place[used] = np.arange(len(used))
    networks = {"embedded": normalised(compact(dims, file))} if "embedded" in kinds else {}
    if "random" in kinds:
        networks |= {f"random{seed}": normalised(compact(dims, None, seed)) for seed in range(3)}
    if "imagenet" in kinds and dims == 2:
        networks["imagenet"] = mobilenet()
    found = {
        k: (features(s, train[used], side + (k == "imagenet")), features(s, test, side + (k == "imagenet")))
        for k, s in networks.items()
    }
    rows: list[dict[str, object]] = []
    for pool in ("stages", "last"):
        for n in numbers:
            scores: dict[str, list[float]] = {k: [] for k in ("embedded", "random", "imagenet")}
            for i, pick in enumerate(picks[n]):
                for kind, score in scores.items():
                    key = f"random{i % 3}" if kind == "random" else kind
                    if key in found:
                        x, x_test = found[key][0][pool][place[pick]], found[key][1][pool]
                        model = fit_logistic(x, y[pick], pick.astype(str), 2, strengths=(1e-4, 1e-3, 1e-2, 1e-1, 1))
                        score.append(auroc(model.probability(x_test)[:, 1], y_test))
            row: dict[str, object] = {"data": name, "side": side, "pool": pool, "n": n}
            row |= {k: round(float(np.mean(v)), 3) for k, v in scores.items() if v}
            if scores["embedded"] and scores["random"]:
                gain = np.subtract(scores["embedded"], scores["random"])
                row |= {"gain": round(float(gain.mean()), 3), "se": round(float(gain.std(ddof=1) / draws**0.5), 3)}
                row |= {"better": f"{int((gain > 0).sum())}/{draws}"}
            rows.append(row)
            print(json.dumps(row), flush=True)
            if "gain" in row:
                figure(f"{name}, {pool}, n={n}: AUROC of embedded weights less untrained", row["gain"],
                       note=f"embedded {row['embedded']}, untrained {row['random']}, {draws} draws")  # fmt: skip
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", type=Path, default=ROOT / "medtransfer" / "embedded")
    parser.add_argument("--dims", type=int, nargs="+", default=(2, 3))
    parser.add_argument("--side", type=int, default=64)
    parser.add_argument("--draws", type=int, default=10)
    parser.add_argument("--kinds", nargs="+", default=("embedded", "random"), help="imagenet: MobileNetV2 too")
    parser.add_argument("--data", nargs="+", default=tuple(DATA))
    a = parser.parse_args()
    torch.set_num_threads(1)
    for name in a.data:
        if (dims := DATA[name]) in a.dims:
            file = a.weights / f"compact{dims}d.safetensors"
            side = a.side if dims == 2 else 32
            compare(name, dims, file, side=side, draws=a.draws, numbers=(100, 500), kinds=tuple(a.kinds))


if __name__ == "__main__":
    main()
