"""Pneumonia on small chest radiographs: the same as configs/pneumonia.yaml, as a script.

python examples/pneumonia.py FOLDER OUT
"""

import sys
from pathlib import Path

import medtransfer as mt


def main(data: Path, out: Path, size: int = 129) -> float:
    cohort = mt.Cohort.from_medmnist(data / "medmnist" / "pneumoniamnist_rebuilt.npz", classes=["normal", "pneumonia"])
    split = mt.split_by_patient(cohort, official=True)
    mt.audit(cohort, split, accept=["duplicate_across_parts"]).raise_for_errors()
    model = mt.load_model(
        str(data / "imagenet_resnet18_partial" / "resnet18_imagenet1k_v1_stem_to_layer3_torchvision.safetensors"),
        arch="resnet18",
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        until="layer3",
        pool_from=("stem", "layer1", "layer2", "layer3"),
        pool="mean_std",
    )
    run = mt.fit(model, cohort, split, mt.Prepare(size=size, scale="range"), mt.Recipe(method="logistic"), out=out)
    result = mt.evaluate(run.predict(split.test), threshold=mt.youden(run.predict(split.val)))
    print(result)
    print(mt.write_report(result, out / "report.html"))
    return float(result.estimates["auroc"].value)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2]))
