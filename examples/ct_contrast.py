"""Contrast medium in chest CT: the same as configs/ct_contrast.yaml, as a script.

python examples/ct_contrast.py FOLDER OUT
"""

import sys
from pathlib import Path

import medtransfer as mt
from medtransfer.judge import judge


def main(data: Path, out: Path) -> float:
    cohort = mt.Cohort.from_dicom(
        data / "siim_ct_contrast_dicom" / "dicom_dir.tar.gz",
        labels=data / "siim_ct_contrast_dicom" / "manifest.csv",
        on="file",
        label="label_contrast",
        choose="all",
        classes=["0", "1"],
    )
    split = mt.split_by_patient(cohort, folds=5, val=0, seed=0)
    mt.audit(cohort, split).raise_for_errors()
    model = mt.load_model(
        str(data / "imagenet_mobilenet_v2" / "mobilenet_v2_keras_imagenet_torchvision.safetensors"),
        arch="mobilenet_v2",
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        pool_from=("block1", "block2", "block3", "block4"),
        pool="mean_std",
    )
    prepare = mt.Prepare(size=225, window_hu="vessel")
    run = mt.fit(model, cohort, split, prepare, mt.Recipe(method="logistic"), out=out)
    result = judge(run)
    print(result)
    print(mt.write_report(result, out / "report.html"))
    return float(result.estimates["auroc"].value)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2]))
