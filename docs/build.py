"""Build the manual: run its code, draw its pictures, write its references, build the pages, check their links.

python docs/build.py                 everything, as `make docs`
python docs/build.py tutorial.md     run the code of these pages only
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
MADE, OUT = DOCS / "_made", DOCS / "_build" / "html"
sys.path[:0] = [str(DOCS / "_ext"), str(ROOT)]


def pages() -> list[Path]:
    """Every page with code that a reader may try: the manual and the README."""
    own = [p for p in DOCS.rglob("*.md") if not {"_made", "_build", "examples"} & {*p.relative_to(DOCS).parts}]
    return [*sorted(own), ROOT / "README.md"]


def run_pages(wanted: Sequence[Path], workers: int) -> list[dict[str, object]]:
    """Run the blocks of pages, each page in a folder of its own."""
    from blocks import run_page

    jobs = [(p, p.relative_to(DOCS).as_posix() if p.is_relative_to(DOCS) else p.name) for p in wanted]
    found: list[dict[str, object]] = []
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        futures = [pool.submit(run_page, path, name) for path, name in jobs]
        for (_, name), future in zip(jobs, futures, strict=True):
            outcomes = future.result()
            count = Counter(o.status for o in outcomes)
            took = sum(o.seconds for o in outcomes)
            print(f"  {name}: {', '.join(f'{n} {s}' for s, n in count.items()) or 'no code'}, {took:.0f} s", flush=True)
            for o in outcomes:
                if o.status == "failed":
                    print(f"    line {o.line} failed:\n{o.output}", flush=True)
            found += [o.to_record() for o in outcomes]
    return found


def references() -> None:
    """The generated parts of the reference, and the notebooks where Sphinx looks for them."""
    import reference

    (MADE / "config.md").write_text(reference.config_reference(), encoding="utf-8")
    (MADE / "commands.md").write_text(reference.command_reference(), encoding="utf-8")
    target = DOCS / "examples"
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    for notebook in sorted((ROOT / "examples").glob("*.ipynb")):
        shutil.copyfile(notebook, target / notebook.name)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("pages", nargs="*", help="run the code of these pages only, and build nothing")
    parser.add_argument("--keep-code", action="store_true", help="take the outputs of the last run")
    parser.add_argument("--workers", type=int, default=min(2, os.cpu_count() or 1))
    asked = parser.parse_args()
    started = time.monotonic()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(DOCS / "_ext"), os.environ.get("PYTHONPATH", "")])
    MADE.mkdir(exist_ok=True)
    if asked.pages:
        outcomes = run_pages([DOCS / p if (DOCS / p).is_file() else ROOT / p for p in asked.pages], asked.workers)
        return int(any(o["status"] == "failed" for o in outcomes))

    kept = MADE / "blocks.json"
    if not asked.keep_code:
        print("code of the pages")
        kept.write_text(json.dumps(run_pages(pages(), asked.workers), indent=1), encoding="utf-8")
    outcomes = json.loads(kept.read_text(encoding="utf-8"))
    print(f"pictures and references, {time.monotonic() - started:.0f} s", flush=True)
    import pictures

    pictures.draw(MADE)
    references()
    print(f"pages and notebooks, {time.monotonic() - started:.0f} s", flush=True)
    shutil.rmtree(DOCS / "_build", ignore_errors=True)
    sphinx = subprocess.run([sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", "-d",
                             str(DOCS / "_build" / "trees"), str(DOCS), str(OUT)], check=False)  # fmt: skip
    import links

    broken = links.broken(OUT) if OUT.is_dir() else ["no pages were built"]
    for line in broken:
        print(f"broken: {line}")
    count = Counter(str(o["status"]) for o in outcomes)
    for o in outcomes:
        if o["status"] == "not run":
            print(f"not run: {o['page']} line {o['line']}: {o['reason']}")
    print(f"blocks: {dict(count)}; broken links: {len(broken)}; sphinx ended with {sphinx.returncode}; "
          f"{time.monotonic() - started:.0f} s")  # fmt: skip
    return int(bool(count["failed"] or broken or sphinx.returncode))


if __name__ == "__main__":
    sys.exit(main())
