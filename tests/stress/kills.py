"""Kill a training at random moments, at least a share of them inside a save, and compare how it ends.

    python tests/stress/kills.py --kills 200

Every kill is SIGKILL. The same call is started again until it is through; the model, the last state and the
history must be byte-identical to those of a run that nobody disturbed.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve()
FILES = ("model.safetensors", "last.safetensors", "history.json")


def train(out: Path) -> None:
    """The disturbed program: a small fine-tuning with everything that has a state."""
    sys.path[:0] = [str(HERE.parents[2]), str(HERE.parents[1])]
    from small_cohorts import blobs

    import medtransfer.cache
    from medtransfer import Augment, Head, Prepare, Recipe, fit, load_model, run, split_by_patient

    plain, mark = medtransfer.cache.write_atomically, out.with_suffix(".mark")

    def marked(path: Path, content: bytes | str, *, mode: int = 0o644) -> None:
        for _ in range(2):  # an odd number of bytes means: inside a save
            with open(mark, "ab") as file:
                file.write(b".")
            if not mark.stat().st_size % 2:
                return
            plain(path, content, mode=mode)

    run.write_atomically = marked
    cohort = blobs(60)
    recipe = Recipe(
        epochs=4, freeze_epochs=1, unfreeze_from="layer1", batch_size=8, lr=3e-3, average=2, ema=0.9, views=2
    )
    model = load_model("random/resnet18", until="layer1", head=Head(dropout=0.3))
    fit(model, cohort, split_by_patient(cohort), Prepare(size=40, scale="range"), recipe, out=out,
        augment=Augment(rotate_deg=10, noise_std=0.05), accelerator="cpu", progress=False)  # fmt: skip


def start(out: Path) -> subprocess.Popen[bytes]:
    """The program in a process of its own."""
    return subprocess.Popen([sys.executable, str(HERE), "--train", str(out)], env=os.environ | {"OMP_NUM_THREADS": "1"})


def digest(out: Path) -> str:
    """One digest of the files that must not differ."""
    raw = b"".join((out / "fold-0" / name).read_bytes() for name in FILES)
    return hashlib.sha256(raw).hexdigest()


def stress(kills: int, share_in_saves: float, seed: int) -> tuple[int, int, int]:
    """Kills, kills inside a save, and runs that ended otherwise than the undisturbed one."""
    rng, done, inside, wrong, number = random.Random(seed), 0, 0, 0, 0
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:
        whole = Path(folder) / "whole"
        if start(whole).wait() != 0:
            raise SystemExit("the undisturbed run failed")
        wanted = digest(whole)
        while done < kills:
            out, number = Path(folder) / f"run-{number}", number + 1
            mark = out.with_suffix(".mark")
            while True:
                mark.write_bytes(b"")
                process, in_save = start(out), rng.random() < share_in_saves
                saves, pause = rng.randint(0, 9), 0.0 if in_save else rng.uniform(0, 0.15)
                while process.poll() is None and done < kills:
                    size = mark.stat().st_size
                    if size >= 2 * saves + in_save:
                        time.sleep(pause)
                        size = mark.stat().st_size
                        process.kill()
                        process.wait()
                        done, inside = done + 1, inside + size % 2
                        break
                    time.sleep(0.0002)
                if process.wait() == 0:
                    break
            wrong += digest(out) != wanted
            leftovers = [p.name for p in out.rglob("kept-*")]
            print(f"run {number}: {done} kills, {inside} inside a save, {wrong} wrong ends, {leftovers}", flush=True)
    return done, inside, wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--in-saves", type=float, default=0.4, help="share of the kills that wait for a save")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--train", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.train:
        train(asked.train)
        return
    done, inside, wrong = stress(asked.kills, asked.in_saves, asked.seed)
    print(f"{done} kills, {inside} inside a save: {wrong} runs ended otherwise")
    raise SystemExit(wrong > 0)


if __name__ == "__main__":
    main()
