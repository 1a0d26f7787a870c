"""The network as a MONAI Bundle: a folder that ``monai.bundle`` verifies and runs without this package.

The network is the ``torch.export`` program, so that a bundle holds every architecture and needs no class of ours.
MONAI's own run prepares images by the transforms in ``configs/inference.json``; ``medtransfer predict`` reads only the
program and its card, and never the configuration, which MONAI evaluates as Python.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import medtransfer
from medtransfer.errors import ConfigError
from medtransfer.export.card import Card
from medtransfer.export.opened import BUNDLED
from medtransfer.export.program import save_program

if TYPE_CHECKING:
    from torch.export import ExportedProgram

# the schema that the format asks a bundle to name; nothing here opens it
SCHEMA = "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/meta_schema_20240725.json"

# Lambdas see what stands before the colon and modules, nothing else. The arithmetic is that of medtransfer.Prepare.
_LINEAR = (
    "$lambda n, m, step: (lambda w: w / w.sum(1, keepdim=True))((1 - (torch.arange(n)[None] - ((n - 1) / 2 + "
    "(torch.arange(m) - (m - 1) / 2) * step).clamp(-0.5, n - 0.5)[:, None]).abs() / max(1.0, step)).clamp(min=0))"
)
_SHIFTED = "$lambda n, m: torch.eye(n)[(torch.arange(m) + n // 2 - m // 2).clamp(0, n - 1)]"
_AXIS = (
    "$lambda n, m, step, linear=@linear, shifted=@shifted: "
    "shifted(n, m) if abs(step - 1) < 1e-6 else linear(n, m, step)"
)
_GRID = (
    "$lambda x, size=@size, spacing=@spacing, axis=@axis: functools.reduce(lambda y, a: torch.tensordot("
    "axis(y.shape[a], size[a - 1], spacing[a - 1] / float(x.pixdim[a - 1]) if spacing else y.shape[a] / size[a - 1]), "
    "y, dims=([1], [a])).movedim(0, a), range(1, x.ndim), x.as_tensor().float())"
)
_PERCENTILE = (
    "(lambda low, high: ((x - low) / max(high - low, 1e-12)).clamp(0, 1))(*(float(v) for v in "
    "numpy.percentile(x.numpy(), {0})))"
)


def save_bundle(program: ExportedProgram, card: Card, out: Path) -> None:
    """Write the bundle's folder.

    Raises
    ------
    ConfigError
        For bags of images, which MONAI's engines do not run.
    """
    from medtransfer.run import write

    if card.bag:
        raise ConfigError("MONAI's engines take one image a case, not bags", where=out.name, fix="--to onnx")
    save_program(program, card, out / BUNDLED)
    inference = _masks(card) if card.task == "segmentation" else _classes(card)
    for name, content in (("metadata", _metadata(card)), ("inference", inference)):
        write(out / "configs" / f"{name}.json", json.dumps(content, indent=2) + "\n")
    write(out / "docs" / "README.md", _readme(card))


def _metadata(card: Card) -> dict[str, Any]:
    versions = card.environment
    names = ("background", *card.names) if card.task == "segmentation" else card.names
    shown = {"type": "image", "format": "magnitude", "modality": "any", "num_channels": card.shape[0],
             "spatial_shape": list(card.shape[1:]), "dtype": "float32", "value_range": [0, 1],
             "is_patch_data": card.task == "segmentation",
             "channel_def": {str(i): "image" for i in range(card.shape[0])}}  # fmt: skip
    needed = {"nibabel": versions.get("nibabel", ""), "pytorch-ignite": "0.5.0"}
    if "largest" in card.finish.values():
        needed["scikit-image"] = "0.22.0"  # MONAI's connected components
    said = {"type": card.output, "format": "segmentation" if card.task == "segmentation" else "classification",
            "num_channels": card.outputs, "spatial_shape": list(card.shape[1:]) if card.task == "segmentation" else [1],
            "dtype": "float32", "value_range": [] if card.task == "regression" else [0, 1], "is_patch_data": False,
            "channel_def": {str(number): name for number, name in enumerate(names)}}  # fmt: skip
    return {
        "schema": SCHEMA,
        "version": "0.1.0",
        "changelog": {"0.1.0": "exported"},
        "monai_version": versions.get("monai", ""),
        "pytorch_version": versions.get("torch", "").split("+")[0],
        "numpy_version": versions.get("numpy", ""),
        "required_packages_version": needed,
        "task": f"{card.task}: {', '.join(card.names)}",
        "description": f"Exported by medtransfer {medtransfer.__version__}; for research, not for diagnosis.",
        "authors": "see the owner of this bundle",
        "copyright": "see the owner of this bundle",
        "intended_use": "Research only. Not a medical device.",
        "network_data_format": {"inputs": {"image": shown}, "outputs": {"pred": said}},
    }


def _frame(card: Card, preparing: list[Any], extra: dict[str, Any]) -> dict[str, Any]:
    """What all bundles' inference shares."""
    return {
        "imports": [f"$import {m}" for m in ("functools", "glob", "os", "monai", "numpy", "torch")],
        "bundle_root": ".",
        "dataset_dir": "$@bundle_root + '/data'",
        "output_dir": "$@bundle_root + '/eval'",
        "images": "$sorted(glob.glob(os.path.join(@dataset_dir, '*')))",
        "device": "$torch.device('cpu')",
        "network_def": (
            "$(lambda g: torch.fx.GraphModule(g, g.graph))(torch.export.load(os.path.join(@bundle_root, "
            f"'{BUNDLED.as_posix()}')).module())"
        ),
        **extra,
        "preprocessing": {"_target_": "Compose", "transforms": preparing},
        "dataset": {"_target_": "Dataset", "data": "$[{'image': i} for i in @images]", "transform": "@preprocessing"},
        "dataloader": {"_target_": "DataLoader", "dataset": "@dataset", "batch_size": 1, "num_workers": 0},
        "evaluator": {
            "_target_": "SupervisedEvaluator",
            "device": "@device",
            "val_data_loader": "@dataloader",
            "network": "@network_def",
            "inferer": "@inferer",
            "postprocessing": "@postprocessing",
            "val_handlers": "@handlers",
        },
        "inference": ["$@evaluator.run()"],
        "run": ["$@evaluator.run()"],
    }


def _reading(dims: int) -> list[Any]:
    """Axes (rows, columns), or (z, y, x) from feet, front and right on, which MONAI calls SPL."""
    if dims == 2:  # pictures; MONAI would turn them otherwise
        return [
            {"_target_": "LoadImaged", "keys": "image", "reader": "$monai.data.PILReader(reverse_indexing=False)"},
            {"_target_": "EnsureChannelFirstd", "keys": "image"},
        ]
    return [
        {"_target_": "LoadImaged", "keys": "image"},
        {"_target_": "EnsureChannelFirstd", "keys": "image"},
        {"_target_": "Orientationd", "keys": "image", "axcodes": "SPL"},
    ]


def _grey(settings: dict[str, Any], channels: int) -> dict[str, Any]:
    """Stored values to [0, 1]; colours to grey where the preparation does so."""
    x = "x"
    if settings.get("gray"):
        x = "((x[:3] * x.new_tensor([0.299, 0.587, 0.114])[:, None, None]).sum(0, keepdim=True) if len(x) > 1 else x)"
    scale = settings.get("scale")
    if windows := settings.get("window_hu"):
        shown = ", ".join(f"((x - {low!r}) / {high - low!r}).clamp(0, 1)" for low, high in windows)
        body = f"torch.cat([{shown}])"
    elif scale == "range":
        body = "(x / 255).clamp(0, 1)"  # of 8 bits
    elif scale == "percentile":
        body = _PERCENTILE.format(list(settings["percentiles"]))
    else:
        low, high = scale or (0.0, 1.0)
        body = f"((x - {low!r}) / {high - low!r}).clamp(0, 1)"
    return {"_target_": "Lambdad", "keys": "image", "func": f"$lambda x: (lambda x: {body})({x})"}


def _classes(card: Card) -> dict[str, Any]:
    prepare = card.preparation()
    order = slice(None) if prepare.dims == 2 else slice(None, None, -1)
    spacing = None if prepare.spacing_mm is None else list(prepare.spacing_mm)[order]
    extra = {
        "size": list(prepare.size)[order], "spacing": spacing, "linear": _LINEAR, "shifted": _SHIFTED, "axis": _AXIS,
        "grid": _GRID, "inferer": {"_target_": "SimpleInferer"}, "postprocessing": None,
        "handlers": [{
            "_target_": "ClassificationSaver", "output_dir": "@output_dir", "filename": "predictions.csv",
            "batch_transform": "$lambda batch: [b['image'].meta for b in batch]",
            "output_transform": "$monai.handlers.from_engine(['pred'])",
        }],
    }  # fmt: skip
    settings = card.prepare or {}
    preparing = [
        *_reading(prepare.dims),
        _grey(settings, card.shape[0]),
        {"_target_": "Lambdad", "keys": "image",
         "func": "$lambda x, grid=@grid: monai.data.MetaTensor(grid(x), meta=x.meta)"},
    ]  # fmt: skip
    return _frame(card, preparing, extra)


def _masks(card: Card) -> dict[str, Any]:
    plan = card.planned()
    preparing = _reading(plan.dims)
    if plan.spacing_mm is not None:
        spacing = list(plan.spacing_mm if plan.dims == 2 else plan.spacing_mm[::-1])
        preparing.append({"_target_": "Spacingd", "keys": "image", "pixdim": spacing, "mode": "bilinear"})
    preparing.append(_grey(card.plan or {}, card.shape[0]))
    after: list[Any] = [
        {"_target_": "Invertd", "keys": "pred", "transform": "@preprocessing", "orig_keys": "image",
         "nearest_interp": False, "to_tensor": True},
        {"_target_": "AsDiscreted", "keys": "pred", "argmax": True},
    ]  # fmt: skip
    largest = [int(k) for k, what in card.finish.items() if what == "largest"]
    if largest:
        after.append({"_target_": "KeepLargestConnectedComponentd", "keys": "pred", "applied_labels": largest})
    suffix = ".nii.gz" if plan.dims == 3 else ".png"
    after.append({"_target_": "SaveImaged", "keys": "pred", "output_dir": "@output_dir", "output_ext": suffix,
                  "output_postfix": "seg", "separate_folder": False, "resample": False})  # fmt: skip
    extra = {
        "inferer": {"_target_": "SlidingWindowInferer", "roi_size": list(card.shape[1:]), "sw_batch_size": 2,
                    "overlap": plan.overlap, "mode": "gaussian", "sigma_scale": 0.125},
        "postprocessing": {"_target_": "Compose", "transforms": after},
        "handlers": [],
    }  # fmt: skip
    return _frame(card, preparing, extra)


def _readme(card: Card) -> str:
    lost = [k for k, what in card.finish.items() if what and what != "largest"]
    lines = [
        f"# {card.task}: {', '.join(card.names)}",
        "",
        "For research, not for diagnosis. The network takes prepared images in [0, 1] and answers with "
        f"{'values' if card.task == 'regression' else 'probabilities'}, the average of {card.folds} trained model(s).",
        "",
        "    python -m monai.bundle run inference --config_file configs/inference.json --dataset_dir DATA",
        "    medtransfer predict . IMAGE ...",
        "",
        "The first reads every file of DATA by MONAI's transforms and writes into eval/. Its configuration is Python "
        "that MONAI evaluates: run it only where you trust this folder. The second does not read the configuration.",
    ]
    if lost:
        lines += ["", f"MONAI's run leaves out the post-processing by volume of structures {', '.join(lost)}."]
    return "\n".join(lines) + "\n"
