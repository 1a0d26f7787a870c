"""The house: who may import whom, what is public, what costs nothing."""

import ast
import subprocess
import sys
from pathlib import Path

import medtransfer

ROOT = Path(medtransfer.__file__).parent

# data walk down this list; a file imports from files above it only
ROOMS = [
    "__init__", "errors", "parallel", "yamltext", "image", "pseudonym", "table", "predictions", "io", "deid", "cache",
    "pacs", "cohort", "split", "folds", "claims", "audit", "prepare", "augment", "dataset",
    "memory", "checkpoints", "weights", "compact", "backbones", "volume", "stem", "witness", "adapt", "heads", "model",
    "fastform", "certify",
    "tuned", "recipe", "sharding", "reasons", "capacity", "boundary", "features", "predict", "explain", "run",
    "training", "losses", "linear",
    "team", "metrics", "loop", "fit", "out", "segment", "estimators", "trials", "search", "probes", "groups",
    "controls", "robustness", "enough", "decisions", "evaluate", "strategies", "track", "report", "rivals", "judge",
    "external", "contour", "export", "config", "dryrun", "cost", "masks", "masks_external", "pipeline", "reported",
    "bulk", "view", "refine", "share", "phantom", "demo",
    "cli_predict", "cli_refine", "cli_view", "cli_share", "cli_weights", "cli_pacs", "cli", "__main__",
]  # fmt: skip
PRIVATE = {
    "_case": "cohort", "_labels": "cohort", "_rows": "cohort", "_reference": "cohort", "_table1": "cohort",
    "_medmnist": "cohort", "_join": "cohort", "_allocate": "split", "_measure": "evaluate", "_mistakes": "evaluate",
    "_join_masks": "cohort", "_copies": "audit", "_thorax": "phantom", "_cost_masks": "cost",
}  # fmt: skip
HEAVY = {"torch", "torchvision", "monai", "sklearn", "scipy", "pandas", "matplotlib", "lightning_fabric", "pydicom",
         "highdicom", "nibabel", "PIL", "openpyxl", "safetensors", "jinja2", "ruamel"}  # fmt: skip


def room(path: Path) -> str:
    return room_of(path.relative_to(ROOT).parts[0].removesuffix(".py"))


def room_of(module: str) -> str:
    return PRIVATE.get(module, module)


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found.add(node.module)
            if node.module == "medtransfer":
                found |= {f"medtransfer.{a.name}" for a in node.names}
        elif isinstance(node, ast.Import):
            found |= {a.name for a in node.names}
    return found


def files() -> list[Path]:
    return sorted(ROOT.rglob("*.py"))


def test_every_file_has_its_room():
    assert {room(p) for p in files()} == set(ROOMS)


def test_imports_point_upwards():
    wrong = []
    for path in files():
        here = ROOMS.index(room(path))
        for name in imports(path):
            parts = name.split(".")
            ours = parts[0] == "medtransfer" and len(parts) > 1 and room_of(parts[1]) in ROOMS
            if ours and here > 0 and ROOMS.index(room_of(parts[1])) > here:
                wrong.append(f"{path.name} imports {name}")
    assert not wrong


def test_reading_and_metrics_know_neither_torch_nor_each_other():
    for path in files():
        if room(path) in ("io", "metrics"):
            other = {"io": "medtransfer.metrics", "metrics": "medtransfer.io"}[room(path)]
            assert not [n for n in imports(path) if n.startswith(("torch", other, "monai"))], path.name


def test_no_file_outgrows_its_room():
    long = {p.name: n for p in files() if (n := len(p.read_text(encoding="utf-8").splitlines())) > 400}
    assert not long


def test_public_names_and_all_agree():
    assert set(medtransfer.__all__) == set(medtransfer._HOME) | {"__version__"}
    for name in medtransfer.__all__:
        assert getattr(medtransfer, name) is not None
    assert callable(medtransfer.fit)
    assert callable(medtransfer.evaluate)
    assert callable(medtransfer.audit)


def test_functions_stay_functions_after_their_modules_are_imported():
    code = "import medtransfer.fit, medtransfer.evaluate, medtransfer.audit as a, medtransfer as m\n"
    code += "assert all(callable(f) for f in (m.fit, m.evaluate, m.audit))"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_importing_loads_nothing_heavy():
    for code in ("import medtransfer", "import medtransfer.cli"):
        command = [sys.executable, "-c", f"{code}; import sys; print(*sys.modules)"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        loaded = {m.split(".")[0] for m in done.stdout.split()}
        assert not loaded & HEAVY
