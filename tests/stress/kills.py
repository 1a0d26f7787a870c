"""Kill trainings at random moments, a share of them inside a save, and compare how each ends.

    python tests/stress/kills.py --runs 200 --folder kills

Every kill is SIGKILL. The same call is started again until it is through; the model, the last state and the
history must be byte-identical to those of a run that nobody disturbed, in an interpreter of its own. Every run is
killed at least once; about a third of the runs that go on are killed again. Trainings are forked from a process
that has imported everything and computed nothing, which leaves half a second a run. What was counted stands in
``kills.jsonl`` of the folder: the same command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve()
FILES = ("model.safetensors", "last.safetensors", "history.json")
SAVES = 10  # the run below writes twice as many files; a kill waits for one of the first ten


def train(out: Path) -> None:
    """The disturbed program: a small fine-tuning with everything that has a state."""
    from small_cohorts import blobs

    import medtransfer.cache
    from medtransfer import Augment, Head, Prepare, Recipe, fit, load_model, run, split_by_patient

    plain, mark, flush, rename = medtransfer.cache.write_atomically, out.with_suffix(".mark"), os.fsync, os.replace

    def slow_flush(handle: int) -> None:  # as on a slow disk, so that kills fall before and after it
        time.sleep(0.003)
        flush(handle)
        time.sleep(0.003)

    def slow_rename(draft: Path, path: Path) -> None:
        rename(draft, path)
        time.sleep(0.003)

    def marked(path: Path, content: bytes | str, *, mode: int = 0o644) -> None:
        for _ in range(2):  # an odd number of bytes means: inside a save
            with open(mark, "ab") as file:
                file.write(b".")
            if not mark.stat().st_size % 2:
                return
            plain(path, content, mode=mode)

    run.write_atomically, os.fsync, os.replace = marked, slow_flush, slow_rename
    cohort = blobs(60)
    recipe = Recipe(
        epochs=4, freeze_epochs=1, unfreeze_from="layer1", batch_size=8, lr=3e-3, average=2, ema=0.9, views=2
    )
    model = load_model("random/resnet18", until="layer1", head=Head(dropout=0.3))
    fit(model, cohort, split_by_patient(cohort), Prepare(size=40, scale="range"), recipe, out=out,
        augment=Augment(rotate_deg=10, noise_std=0.05), accelerator="cpu", progress=False)  # fmt: skip


def fork(out: Path) -> int:
    """The program in a process of its own, its number."""
    number = os.fork()
    if number:
        return number
    try:
        train(out)
        os._exit(0)
    except BaseException:
        import traceback

        traceback.print_exc()
        os._exit(1)


def digest(out: Path) -> str:
    """One digest of the files that must not differ."""
    raw = b"".join((out / "fold-0" / name).read_bytes() for name in FILES)
    return hashlib.sha256(raw).hexdigest()


def undisturbed(folder: Path) -> str:
    """Digest of a run that nobody kills, in an interpreter of its own."""
    out = folder / "whole"
    if not (out / "fold-0" / "model.safetensors").is_file():
        subprocess.run(
            [sys.executable, str(HERE), "--train", str(out)], env=os.environ | {"OMP_NUM_THREADS": "1"}, check=True
        )
    return digest(out)


def disturb(out: Path, rng: random.Random, share_in_saves: float) -> tuple[int, int]:
    """Kills, and kills inside a save, until the run is through."""
    kills, inside, mark = 0, 0, out.with_suffix(".mark")
    while True:
        mark.write_bytes(b"")
        started, process = time.monotonic(), fork(out)
        wanted = kills == 0 or rng.random() < 1 / 3
        in_save, saves = rng.random() < share_in_saves, rng.randrange(SAVES)
        pause = rng.uniform(0, 0.009) if in_save else rng.uniform(0, 0.6)
        while wanted:
            if in_save and mark.stat().st_size > 2 * saves:
                time.sleep(pause)
                break
            if not in_save and time.monotonic() - started > pause:
                break
            if os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
                break
            time.sleep(0.0002)
        if wanted:
            os.kill(process, signal.SIGKILL)  # no effect on one that has ended and is not yet waited for
        status = os.waitpid(process, 0)[1]
        if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
            kills, inside = kills + 1, inside + mark.stat().st_size % 2
        elif os.waitstatus_to_exitcode(status) != 0:
            raise SystemExit(f"{out.name} failed instead of going on")
        elif kills:
            return kills, inside
        else:  # through before it was killed: again from the beginning
            shutil.rmtree(out)


def stress(runs: int, share_in_saves: float, seed: int, folder: Path) -> dict[str, int]:
    """Counts over all runs, those of earlier calls included."""
    import lightning_fabric  # noqa: F401  imported before the fork, as is everything else below
    import small_cohorts  # noqa: F401

    import medtransfer.fit  # noqa: F401

    folder.mkdir(parents=True, exist_ok=True)
    log, wanted = folder / "kills.jsonl", undisturbed(folder)
    done = [json.loads(line) for line in log.read_text().splitlines()] if log.is_file() else []
    for number in range(len(done), runs):
        out = folder / f"run-{number}"
        shutil.rmtree(out, ignore_errors=True)
        kills, inside = disturb(out, random.Random(f"{seed}/{number}"), share_in_saves)
        entry = {"run": number, "kills": kills, "in_saves": inside, "same": int(digest(out) == wanted)}
        entry["leftovers"] = len(list(out.rglob("kept-*")))
        done.append(entry)
        with open(log, "a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
        if entry["same"]:
            shutil.rmtree(out)
        out.with_suffix(".mark").unlink()
        if number % 10 == 9 or number == runs - 1:
            print(counted(done), flush=True)
    return {key: sum(e[key] for e in done) for key in ("kills", "in_saves", "same", "leftovers")} | {"runs": len(done)}


def counted(done: list[dict[str, int]]) -> str:
    """The counts in words."""
    total = {key: sum(e[key] for e in done) for key in ("kills", "in_saves", "same", "leftovers")}
    return (
        f"{len(done)} runs: {total['kills']} kills, {total['in_saves']} inside a save, "
        f"{total['same']} byte-identical ends, {total['leftovers']} checkpoints left over"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--runs", type=int, default=200, help="disturbed runs, each killed at least once")
    parser.add_argument("--in-saves", type=float, default=0.6, help="share of the kills that wait for a save")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="where counts and runs are kept; by default removed at the end")
    parser.add_argument("--train", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    sys.path[:0] = [str(HERE.parents[2]), str(HERE.parents[1])]
    if asked.train:
        train(asked.train)
        return
    with tempfile.TemporaryDirectory() as folder:
        total = stress(asked.runs, asked.in_saves, asked.seed, asked.folder or Path(folder))
    wrong = total["runs"] - total["same"]
    print(f"{total['kills']} kills, {total['in_saves']} inside a save: {wrong} runs ended otherwise")
    raise SystemExit(wrong > 0)


if __name__ == "__main__":
    main()
