"""Is transfer real? ImageNet weights against untrained ones: the same recipe, the same cases, paired over seeds.

python tests/benchmarks/transfer.py [--seeds 5] [--side 65]
Frozen features of several stages (average and deviation) and L2 logistic regression; n training cases drawn per
seed, balanced by chance alone; AUROC on the whole official test part. Real data are read from beside the repository.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from figures import figure
from sklearn.linear_model import LogisticRegressionCV
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch.nn import functional as F

from medtransfer.fastform import features_of
from medtransfer.model import load_model

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
BACKBONES = {
    "MobileNetV2": {
        "weights": SHARED / "imagenet_mobilenet_v2" / "mobilenet_v2_keras_imagenet_torchvision.safetensors",
        "arch": "mobilenet_v2", "mean": (0.5,), "std": (0.5,), "until": "block4",
        "pool_from": ("block1", "block2", "block3", "block4"),
    },
    "ResNet-18 to layer3": {
        "weights": SHARED / "imagenet_resnet18_partial"
        / "resnet18_imagenet1k_v1_stem_to_layer3_torchvision.safetensors",
        "arch": "resnet18", "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225), "until": "layer3",
        "pool_from": ("stem", "layer1", "layer2", "layer3"),
    },
}  # fmt: skip
SETS = {"BreastMNIST": "breastmnist.npz", "PneumoniaMNIST-rebuilt": "pneumoniamnist_rebuilt.npz"}


def images(values: np.ndarray, side: int) -> torch.Tensor:
    x = torch.from_numpy(values.astype(np.float32) / 255)[:, None]
    return F.interpolate(x, size=(side, side), mode="bilinear", align_corners=False)


def features(model: torch.nn.Module, x: torch.Tensor) -> np.ndarray:
    model.eval()
    compute = features_of(model, x)
    with torch.inference_mode():
        return np.concatenate([compute(x[i : i + 64]).numpy() for i in range(0, len(x), 64)])


def area(train: np.ndarray, labels: np.ndarray, test: np.ndarray, reference: np.ndarray) -> float:
    search = LogisticRegressionCV(
        Cs=np.logspace(-4, 1, 6), cv=4, scoring="neg_log_loss", max_iter=500, l1_ratios=(0.0,),
        use_legacy_attributes=False,
    )  # fmt: skip
    fitted = make_pipeline(StandardScaler(), search).fit(train, labels)
    return float(roc_auc_score(reference, fitted.predict_proba(test)[:, 1]))


def main(seeds: int, side: int) -> None:
    print(f"{'set':<24}{'backbone':<22}{'n':>5}{'ImageNet':>10}{'random':>8}{'gain':>8}  gains by seed")
    for title, file in SETS.items():
        data = np.load(SHARED / "medmnist" / file)
        pool, labels = data["train_images"], data["train_labels"].ravel()
        test, reference = images(data["test_images"], side), data["test_labels"].ravel()
        draws = {(n, s): np.random.default_rng(s).choice(len(labels), n, replace=False)
                 for n in (100, 500) for s in range(seeds)}  # fmt: skip
        used = np.unique(np.concatenate(list(draws.values())))
        where = {int(case): i for i, case in enumerate(used)}
        train = images(pool[used], side)
        for name, settings in BACKBONES.items():
            options = {k: v for k, v in settings.items() if k not in ("weights", "mean", "std", "arch")}
            told = {k: settings[k] for k in ("arch", "mean", "std")}
            pretrained = load_model(str(settings["weights"]), pool="mean_std", **told, **options)
            known = features(pretrained, train), features(pretrained, test)
            scores = {key: [0.0, 0.0] for key in draws}
            for seed in range(seeds):
                blank = load_model(f"random/{settings['arch']}", pool="mean_std", seed=seed, **options)
                blind = features(blank, train), features(blank, test)
                for (n, s), cases in draws.items():
                    if s == seed:
                        rows = [where[int(c)] for c in cases]
                        for i, (mine, theirs) in enumerate((known, blind)):
                            scores[n, s][i] = area(mine[rows], labels[cases], theirs, reference)
            for n in (100, 500):
                pairs = np.array([scores[n, s] for s in range(seeds)])
                gains = pairs[:, 0] - pairs[:, 1]
                print(f"{title:<24}{name:<22}{n:>5}{pairs[:, 0].mean():>10.3f}{pairs[:, 1].mean():>8.3f}"
                      f"{gains.mean():>+8.3f}  {' '.join(f'{g:+.3f}' for g in gains)}", flush=True)  # fmt: skip
                figure(f"{title}, {name}, n={n}: AUROC of ImageNet weights less untrained", gains.mean(),
                       note=f"{pairs[:, 0].mean():.3f} and {pairs[:, 1].mean():.3f}, {seeds} draws")  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--side", type=int, default=65)
    arguments = parser.parse_args()
    main(arguments.seeds, arguments.side)
