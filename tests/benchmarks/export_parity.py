"""What ONNX Runtime and an exported torch program answer beside the model itself: every backbone, 100 images.

python tests/benchmarks/export_parity.py --out FOLDER [job ...]      (all of them by default; done ones are kept)
python tests/benchmarks/export_parity.py --out FOLDER --table        (the table in Markdown)
python tests/benchmarks/export_parity.py --out FOLDER --page docs/export.md      (and into the page)

A job is an architecture and the dimensions it is built in, as ``resnet18/2d``. Each runs in a process of its own.
Kernels are random, and made as well-behaved as trained ones: batch normalisation has the statistics of the images, gain
and shift of one half, and at the end of a residual branch a small gain (training starts with none there, Goyal et al.
2017, arXiv 1706.02677). With gain one and shift zero, rounding grows with every layer (Yang et al. 2019, arXiv
1902.08129). The new head is drawn so that its logits spread over several units: were all answers one half, any two
programs would agree. The same model in float64 tells how much of a difference is mere rounding. Jobs that end in
``-trained`` take trained weights as they are, and only their head is drawn.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data" / "medmnist"
IMAGES, BAR, GAIN, LAST = 100, 1e-4, 0.5, 0.2
MARKS = ("<!-- parity -->", "<!-- end of parity -->")
# side: the least that every network takes, more where an architecture asks for it
SIDES = {"2d": 64, "3d": 32}
EXTRA = (
    "resnet18/3d-centre",
    "resnet18/3d-acs",
    "resnet18/3d-slices",
    "convnext_tiny/3d-centre",
    "mobilenet_v2/3d-acs",
    "mobilenet_v2/2d-trained",
    "compact2d/2d-trained",
    "compact3d/3d-trained",
)
IMAGENET = SHARED.parent / "imagenet_mobilenet_v2" / "mobilenet_v2_keras_imagenet_torchvision.safetensors"


def jobs() -> list[str]:
    """Every architecture in each of its own dimensions, and some that are taken into 3D."""
    from medtransfer.backbones import ARCHITECTURES

    found = [f"{a.name}/{d}d" for a in ARCHITECTURES.values() for d in a.dims]
    return [*found, *EXTRA]


def images(dims: int, channels: int, side: int) -> np.ndarray:
    """Real ones where they are on this machine, else noise of different grain, ``[100, channels, ...]`` in [0, 1]."""
    import torch
    from torch.nn import functional as F

    mode, size = ("bilinear", "trilinear")[dims - 2], (side,) * dims
    found = [torch.from_numpy(a)[None, None] for a in (pictures() if dims == 2 else volumes())]
    generator = torch.Generator().manual_seed(0)
    found += [torch.rand(1, 1, *[4 + (i * 7) % (side - 3)] * dims, generator=generator)
              for i in range(IMAGES - len(found))]  # fmt: skip
    parts = [F.interpolate(a, size, mode=mode) for a in found]
    return torch.cat(parts).expand(-1, channels, *size).contiguous().numpy()


def pictures() -> list[np.ndarray]:
    """Ultrasound of the breast and radiographs of the chest."""
    found = []
    for name in ("breastmnist", "pneumoniamnist_rebuilt"):
        if (path := SHARED / f"{name}.npz").is_file():
            found += list(np.load(path)["test_images"][: IMAGES // 2].astype(np.float32) / 255)
    return found


def volumes() -> list[np.ndarray]:
    """MRI around the hippocampus, each from its darkest to its brightest value."""
    import nibabel

    paths = sorted((SHARED.parent / "hippocampus" / "images").glob("*.nii.gz"))[:IMAGES]
    arrays = [np.asarray(nibabel.load(p).dataobj, np.float32) for p in paths]
    return [(a - a.min()) / (a.max() - a.min()) for a in arrays]


def measure(job: str) -> dict[str, object]:
    """The largest difference of a probability, by ONNX Runtime and by the torch program."""
    import torch

    import medtransfer as mt
    from medtransfer.backbones import architecture
    from medtransfer.errors import MedTransferError
    from medtransfer.export.card import Card
    from medtransfer.export.graph import Graph, save_graph
    from medtransfer.export.network import network_of
    from medtransfer.export.program import load_program, program_of, save_program

    torch.set_num_threads(1)
    name, kind = job.split("/")
    dims, way = int(kind[0]), kind[3:] or "centre"
    side = max(SIDES[kind[:2]], architecture(name).min_side)
    if way == "trained" and name == "mobilenet_v2":
        model = mt.load_model(IMAGENET, arch=name, mean=(0.5,) * 3, std=(0.5,) * 3, classes=3)
    elif way == "trained":
        model = mt.load_model(f"embedded/{name}", dims=dims, classes=3)
    else:
        model = mt.load_model(f"random/{name}", dims=dims, depth=way, classes=3)
    batch = torch.from_numpy(images(dims, 1, side))
    if way != "trained":
        settle(model, batch)
    draw_head(model.eval(), batch)
    shape = tuple(batch.shape[1:])
    card = Card("classification", ("a", "b", "c"), shape, mt.Prepare(size=shape[1:]).model_dump(mode="json"),
                weights={"architecture": name})  # fmt: skip
    network = network_of([model], card)
    with torch.inference_mode():
        wanted = torch.cat([network(part) for part in batch.split(10)]).numpy()
    found: dict[str, object] = {
        "job": job, "side": side, "parameters": sum(p.numel() for p in model.parameters()),
        "spread": [float(np.quantile(wanted, q)) for q in (0.05, 0.95)], "images": len(batch),
        "versions": {p.__name__: p.__version__ for p in (torch, __import__("onnx"), __import__("onnxruntime"))},
    }  # fmt: skip
    with torch.inference_mode():
        exact = torch.cat([network.double()(part.double()) for part in batch[::4].split(10)]).numpy()
    found["rounding"] = float(np.abs(exact - wanted[::4]).max())
    network.float()
    with tempfile.TemporaryDirectory() as folder:
        try:
            program = program_of(network, card)
            save_program(program, card, Path(folder, "m.pt2"))
            again, _ = load_program(Path(folder, "m.pt2"))
            with torch.inference_mode():
                found["torch"] = float(np.abs(again(batch[:25]).numpy() - wanted[:25]).max())
            del again
            save_graph(program, card, Path(folder, "m.onnx"))
            found["mib"] = round(Path(folder, "m.onnx").stat().st_size / 2**20, 1)
            graph = Graph(Path(folder, "m.onnx"))
            answers = np.concatenate([graph(part.numpy()) for part in batch.split(10)])
            found["onnx"] = float(np.abs(answers - wanted).max())
        except MedTransferError as error:
            found["refused"] = str(error)
    return found


def last_of_branches(model, batch) -> list:
    """Batch normalisations whose answer is added to what came around the block; those of projections left out."""
    import torch
    from torch.overrides import TorchFunctionMode

    names = {m: n for n, m in model.named_modules() if m in set(norms(model))}
    answered, found = {}, {}

    class Additions(TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            if getattr(function, "__name__", "").strip("_") in ("add", "iadd", "radd"):
                found.update({answered[id(a)][0]: None for a in args[:2] if id(a) in answered})
            return function(*args, **(kwargs or {}))

    # what is answered is kept, or its place in memory, and so its identity, would be taken again
    hooks = [m.register_forward_hook(lambda m, _, o: answered.update({id(o): (m, o)})) for m in names]
    with torch.no_grad(), Additions():
        model.eval().features(batch)
    for hook in hooks:
        hook.remove()
    return [m for m in found if not any(part in names[m] for part in (".downsample.", ".proj."))]


def norms(model) -> list:
    import torch

    return [m for m in model.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]


def settle(model, batch) -> None:
    """Batch normalisation as after training, with the statistics of all these images at once.

    Averages over small batches would not do: no image then has the statistics that its maps are divided by, the misfit
    grows from layer to layer, and a few images answer with values of 1e5 that any rounding turns over.
    """
    import torch

    with torch.no_grad():
        for norm in norms(model):
            norm.weight.fill_(GAIN)
            norm.bias.fill_(GAIN)
        for norm in last_of_branches(model, batch[:2]):
            norm.weight.fill_(LAST)
        for norm in norms(model):
            norm.momentum = 1.0
            norm.train()
        model.features(batch) if norms(model) else None


def draw_head(model, batch) -> None:
    """A head whose answers differ."""
    import torch

    with torch.no_grad():
        features = torch.cat([model.features(part) for part in batch.split(10)])
        last = model.head[-1]
        weight = torch.randn(last.weight.shape, generator=torch.Generator().manual_seed(0))
        scores = (features - features.mean(0)) @ weight.T
        last.weight.copy_(weight * (2 / scores.std(0).clamp(min=1e-12))[:, None])
        last.bias.copy_(-(features.mean(0) @ last.weight.T))


def table(folder: Path) -> str:
    """The results so far, in the order of the jobs."""
    lines = ["| architecture | built in | side | M parameters | ONNX Runtime | torch program | float64 | why not |"]
    lines.append("|---|---|---|---|---|---|---|---|")
    for job in jobs():
        path = folder / f"{job.replace('/', '-')}.json"
        if not path.is_file():
            continue
        r = json.loads(path.read_text())
        name, kind = job.split("/")
        columns = ("onnx", "torch", "rounding")
        cells = [f"{r[k]:.1e}" if k in r else "–" for k in columns]
        cells = [f"**{c}**" if k in r and r[k] > BAR else c for k, c in zip(columns, cells, strict=True)]
        shown = kind.replace("-trained", ", trained weights").replace("-", ", ").replace("d", "D", 1)
        size = f"{r['parameters'] / 1e6:.1f}" if "parameters" in r else "–"
        why = str(r.get("refused") or r.get("failed") or "").replace("|", "/")
        lines.append(f"| {name} | {shown} | {r.get('side', '–')} | {size} | {' | '.join(cells)} | {why} |")
    wanted = jobs()
    done = [j for j in wanted if (folder / f"{j.replace('/', '-')}.json").is_file()]
    lines += ["", f"{len(done)} of {len(wanted)} measured."]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--page", type=Path, help="Put the table between the marks of this page.")
    parser.add_argument("--one", action="store_true", help="Measure here, without processes.")
    parser.add_argument("job", nargs="*")
    told = parser.parse_args()
    told.out.mkdir(parents=True, exist_ok=True)
    if told.page is not None:
        before, _, rest = told.page.read_text().partition(MARKS[0])
        after = rest.partition(MARKS[1])[2]
        told.page.write_text(f"{before}{MARKS[0]}\n\n{table(told.out)}\n\n{MARKS[1]}{after}")
    if told.page is not None or told.table:
        print(table(told.out))
        return
    for job in told.job or jobs():
        path = told.out / f"{job.replace('/', '-')}.json"
        if path.is_file():
            continue
        if told.one:
            found = measure(job)
        else:
            command = [sys.executable, __file__, "--out", str(told.out), "--one", job]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode == 0:
                continue
            why = f"signal {-done.returncode}" if done.returncode < 0 else done.stderr.strip().splitlines()[-1][:200]
            found = {"job": job, "failed": why}
        draft = path.with_suffix(".part")
        draft.write_text(json.dumps(found))
        draft.replace(path)
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
