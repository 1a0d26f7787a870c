"""Let the disk run full in the middle of a save, and look at what is left.

    python tests/stress/disk_full.py --runs 50 --folder /mnt/small

On a small file system (less than 256 MB free) a file takes what is free but for a random part of what is about to
be saved; elsewhere a limit on the size of files does the same. Every file of before must be intact, no draft may be
left, the message must say how many bytes there were to write, and with room again the same call must end in the
bytes of an undisturbed run.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import sys
import tempfile
from pathlib import Path

import kills

SMALL = 256 * 2**20
SAVES = 11  # a run has a few more; which of them fails is drawn


def contents(out: Path) -> dict[str, str]:
    """Digests of all files of a run by name, logs aside: these grow."""
    return {
        str(p.relative_to(out)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(out.rglob("*"))
        if p.is_file() and p.suffix != ".jsonl"
    }


def train(out: Path, at: int, left: float, pipe: int) -> None:
    """The training, whose save of that number finds room for a share of it only; what happens goes into the pipe."""
    import medtransfer.cache
    from medtransfer.errors import RunError

    plain, count, told = medtransfer.cache.write_atomically, 0, {}

    def crowded(path: Path, content: bytes | str, *, mode: int = 0o644) -> None:
        nonlocal count
        count += 1
        if count == at:
            told.update(before=contents(out), bytes=len(content), file=path.name)
            room = int(left * len(content))
            free = shutil.disk_usage(out).free
            if free < SMALL:
                with open(out.with_suffix(".filler"), "wb") as file:
                    os.posix_fallocate(file.fileno(), 0, max(1, free - room))
            else:
                import resource

                resource.setrlimit(resource.RLIMIT_FSIZE, (room, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
        plain(path, content, mode=mode)

    medtransfer.cache.write_atomically = crowded  # which the training of kills.py takes from there
    try:
        kills.train(out)
    except RunError as error:
        told.update(said=str(error))
    os.write(pipe, json.dumps(told).encode())


def disturbed(out: Path, at: int, left: float) -> dict[str, object]:
    """What a training told that met a full disk, in a process of its own."""
    reader, writer = os.pipe()
    if not (process := os.fork()):
        try:
            train(out, at, left, writer)
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as file:
        told = file.read()
    os.waitpid(process, 0)
    out.with_suffix(".filler").unlink(missing_ok=True)
    return json.loads(told or b"{}")


def stress(runs: int, seed: int, folder: Path) -> int:
    """How many of the runs went as they must."""
    import lightning_fabric  # noqa: F401  imported before the fork, as is everything else below
    import small_cohorts  # noqa: F401

    import medtransfer.fit  # noqa: F401

    wanted, good = kills.undisturbed(folder), 0
    for number in range(runs):
        rng, out = random.Random(f"{seed}/{number}"), folder / f"run-{number}"
        told = disturbed(out, rng.randint(4, SAVES), rng.random())
        intact = bool(told.get("said")) and contents(out) == told["before"]
        named = f"{told.get('bytes', -1):,} bytes" in str(told.get("said"))
        out.with_suffix(".mark").unlink(missing_ok=True)
        process = kills.fork(out)
        ended = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 0 and kills.digest(out) == wanted
        good += intact and named and ended
        if not (intact and named and ended):
            print(f"run {number}: intact {intact}, bytes named {named}, same end {ended}: {told.get('said')}")
        elif number % 10 == 0:
            print(f"run {number}: {told['file']}: {told['said']}", flush=True)
        shutil.rmtree(out)
        out.with_suffix(".mark").unlink(missing_ok=True)
    return good


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="on a small file system; by default a temporary folder")
    asked = parser.parse_args()
    sys.path[:0] = [str(kills.HERE.parents[2]), str(kills.HERE.parents[1])]
    with tempfile.TemporaryDirectory(dir=asked.folder) as folder:
        good = stress(asked.runs, asked.seed, Path(folder))
    print(f"{good} of {asked.runs}: the checkpoint of before intact, the bytes named, the same end with room again")
    raise SystemExit(good < asked.runs)


if __name__ == "__main__":
    main()
