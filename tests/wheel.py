"""Build the wheel, look into it, install it into a clean environment and run the demo there, outside of the repository.

    python tests/wheel.py --out dist

Takes the packages of constraints.txt from the package index, a minute or more. ``--site`` tries the wheel with the
packages of this interpreter instead; only medtransfer itself is then installed anew.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LARGEST = 12_000_000  # bytes
NEEDED = (
    "medtransfer/py.typed", "medtransfer/report/templates/report.html", "medtransfer/report/templates/style.css",
    "medtransfer/embedded/record.json", "dist-info/licenses/LICENSE", "dist-info/entry_points.txt",
)  # fmt: skip
UNWANTED = re.compile(r"(^|/)(tests?|docs|runs|data)/|__pycache__|\.pyc$|\.ipynb_checkpoints|(^|/)\.")


def build(out: Path) -> Path:
    """The wheel of this working tree, by its own build backend."""
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as made:
        command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", made, str(ROOT)]
        subprocess.run(command, check=True)
        built = next(Path(made).glob("medtransfer-*.whl"))
        wheel = out / built.name
        wheel.write_bytes(built.read_bytes())
    return wheel


def wrong_with(wheel: Path) -> list[str]:
    """What is wrong with the wheel's size and contents."""
    with zipfile.ZipFile(wheel) as file:
        names = file.namelist()
    found = [f"{n} is missing" for n in NEEDED if not any(name.endswith(n) for name in names)]
    found += [f"{name} does not belong there" for name in names if UNWANTED.search(name)]
    found += ["there are no weights"] if not any(n.endswith(".safetensors") for n in names) else []
    tracked = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "medtransfer"], capture_output=True, text=True, check=False
    )
    lacking = set(tracked.stdout.split("\n")) - {""} - set(names)
    found += [
        f"{name} is in the repository and not in the wheel" for name in sorted(lacking) if (ROOT / name).is_file()
    ]
    size = wheel.stat().st_size
    return found + ([f"{size:,} bytes are more than {LARGEST:,}"] if size >= LARGEST else [])


def try_out(wheel: Path, *, site: bool, patients: int) -> float:
    """Seconds of the demo from the installed wheel, in a folder of its own."""
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        venv.create(base / "env", with_pip=True, system_site_packages=False)
        python = base / "env" / ("Scripts" if os.name == "nt" else "bin") / "python"
        pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        if site:  # the packages of this interpreter, without its medtransfer
            home = subprocess.run([python, "-c", "import site; print(site.getsitepackages()[0])"], capture_output=True,
                                  text=True, check=True).stdout.strip()  # fmt: skip
            there = [p for p in sys.path if p.endswith("site-packages")]
            (Path(home) / "packages.pth").write_text("\n".join(there) + "\n")
            subprocess.run([*pip, "--no-deps", "--force-reinstall", wheel], check=True)
        else:
            subprocess.run([*pip, "--constraint", ROOT / "constraints.txt", wheel], check=True)
        clean = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        clean |= {"MEDTRANSFER_HOME": str(base / "home"), "MEDTRANSFER_CACHE": str(base / "cache")}
        where = "import medtransfer; print(medtransfer.__file__)"
        told = subprocess.run([python, "-c", where], cwd=base, env=clean, capture_output=True, text=True, check=True)
        assert Path(told.stdout.strip()).is_relative_to(base), told.stdout
        began = time.monotonic()
        command = [python.parent / "medtransfer", "demo", "--out", base / "demo", "--patients", str(patients), "-q"]
        subprocess.run(command, cwd=base, env=clean, check=True, stdout=subprocess.DEVNULL)
        assert (base / "demo" / "report.html").stat().st_size > 100_000
        return time.monotonic() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("dist"))
    parser.add_argument("--site", action="store_true", help="with the packages of this interpreter")
    parser.add_argument("--patients", type=int, default=160)
    asked = parser.parse_args()
    wheel = build(asked.out)
    print(f"{wheel.name}: {wheel.stat().st_size / 1e6:.2f} MB", flush=True)
    if problems := wrong_with(wheel):
        raise SystemExit("\n".join(problems))
    print(f"medtransfer demo, installed from it: {try_out(wheel, site=asked.site, patients=asked.patients):.0f} s")


if __name__ == "__main__":
    main()
