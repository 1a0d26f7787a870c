"""500 instances from a real archive, segmented, sent back and found again, over 20 injected faults.

    python tests/benchmarks/pacs.py [--studies 25] [--slices 20]

Orthanc runs on loopback behind a proxy that resets, cuts, stalls, drips, spoils and refuses; twice the archive itself
is killed and started again. Every count is taken without the code under test: data sets compared by pydicom, objects
asked for over plain HTTP.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

from figures import ROOT, figure

sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "pacs")]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--studies", type=int, default=25)
    parser.add_argument("--slices", type=int, default=20)
    options = parser.parse_args()
    from services.orthanc import missing

    if why := missing():
        print(why)
        return
    os.environ["PYTHON_KEYRING_BACKEND"] = "keyring.backends.null.Keyring"
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["MEDTRANSFER_HOME"], os.environ["MEDTRANSFER_CACHE"] = f"{scratch}/home", f"{scratch}/cache"
        from round_trip import round_trip

        found = round_trip(Path(scratch), studies=options.studies, slices=options.slices)
    for name in ("instances", "segmentations", "faults", "calls", "seconds"):
        print(f"{name:<20} {found[name]:,.0f}")
    print(f"{'kinds of faults':<20} {', '.join(found['kinds'])}")
    print(f"{'identifiers':<20} {', '.join(found['leaks']) or 'none in messages and names'}")
    for error in found["errors"]:
        print(f"  {error}")
    figure("instances lost on the way here", found["lost"], most=0)
    figure("segmentations not found by QIDO", found["segmentations_lost"], most=0)
    figure("objects stored twice", found["doubled"], most=0)
    figure("faults injected", found["faults"], least=20)
    figure("addresses contacted besides the server's", found["elsewhere"], most=0)


if __name__ == "__main__":
    main()
