"""The whole way: from the archive, through a segmentation, and back into the archive, over injected faults."""

from __future__ import annotations

import itertools
import json
import threading
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pydicom
from faulty import Faulty, watched
from services.orthanc import Orthanc
from small_masks import config, write_balls
from small_studies import CANARIES, ROOT, write_studies

from medtransfer.config import Experiment
from medtransfer.errors import PacsError, PacsRefused
from medtransfer.masks import predict_into
from medtransfer.pacs.fetch import fetch, find
from medtransfer.pacs.send import Sent, objects, send
from medtransfer.pacs.server import Server
from medtransfer.pipeline import train

FETCHING = ("refuse", "reset", "cut", "truncate", "stall", "corrupt", "shorten", "other", "401", "503", "500", "html",
            "drip", "gone")  # fmt: skip
SENDING = ("refuse", "lost", "503", "401", "cut", "gone")


class Plan:
    """One fault every so many requests of a kind, until all have happened."""

    def __init__(self, archive: Orthanc, kind: str, faults: Sequence[str], requests: int) -> None:
        self.archive, self.kind, self.left = archive, kind, list(faults)
        self._every, self._count, self._lock = (
            max(2, requests // (len(faults) + 1)),
            itertools.count(1),
            threading.Lock(),
        )

    def __call__(self, method: str, path: str) -> str:
        wanted = method == "POST" if self.kind == "send" else "/instances/" in path
        with self._lock:
            if not wanted or not self.left or next(self._count) % self._every:
                return ""
            fault = self.left.pop(0)
            if fault == "gone":
                self.archive.kill()
            return fault


def until_done(call: Any, archive: Orthanc, *, most: int = 30) -> tuple[Any, list[str]]:
    """The result of the same call, made again after each error, the archive started where it is gone."""
    errors: list[str] = []
    while True:
        try:
            return call(), errors
        except (PacsError, PacsRefused) as error:
            errors.append(f"{type(error).__name__}: {error}")
            if len(errors) == most:
                raise
        if not archive.runs:
            archive.start()


def ask(archive: Orthanc, path: str) -> Any:
    """JSON of the archive, asked without this package."""
    with urllib.request.urlopen(f"http://localhost:{archive.http}{path}", timeout=60) as answer:
        return json.loads(answer.read() or b"[]")


def round_trip(
    scratch: Path, *, studies: int, slices: int, fetching: Sequence[str] = FETCHING, sending: Sequence[str] = SENDING
) -> dict[str, Any]:
    """Fetch, segment, send, count; every number of it is taken without the code under test.

    Returns
    -------
    dict
        ``instances``, ``lost`` (instances that are not here bit for bit as data sets), ``segmentations``,
        ``segmentations_lost`` (not found by QIDO), ``doubled``, ``faults``, ``calls``, ``elsewhere`` (addresses other
        than the server's), ``leaks`` (identifiers in messages and names) and ``seconds``.
    """
    began = time.monotonic()
    source = write_studies(scratch / "source", studies=studies, slices=slices)
    write_balls(scratch / "balls")
    train(Experiment.from_text(config(scratch / "balls", scratch / "run")), progress=False)
    total, faults = studies * slices, []
    with Orthanc(scratch / "orthanc") as archive:
        send(Server(archive.dimse), objects([scratch / "source"]), progress=False)
        assert ask(archive, "/statistics")["CountInstances"] == total
        fetch_plan = Plan(archive, "fetch", fetching, total)
        send_plan = Plan(archive, "send", sending, studies)
        with watched() as contacted:
            with Faulty(archive.http, fetch_plan, stall_s=8) as proxy:
                places = {("127.0.0.1", proxy.port)}
                server = Server(proxy.web, timeout_s=5, attempts=4)
                found = find(server, {"Modality": "CT", "PatientID": "CANARYID*"})
                fetched, told = until_done(
                    lambda: fetch(server, found, scratch / "in", progress=False).check(), archive
                )
                faults += proxy.done
            series = sorted(p for p in (scratch / "in").glob("*/*") if p.is_dir())
            made = list(predict_into(scratch / "run", [str(p) for p in series], scratch / "seg", form="seg"))
            with Faulty(archive.http, send_plan, stall_s=8) as proxy:
                places.add(("127.0.0.1", proxy.port))
                server = Server(proxy.web, timeout_s=5, attempts=4)
                results = objects([scratch / "seg"])

                def give(server: Server = server) -> Sent:
                    return send(server, results, progress=False)

                sent, more = until_done(give, archive)
                faults += proxy.done
        uids = {one.uid for one in results}
        there = set()
        for study in range(studies):
            rows = ask(archive, f"/dicom-web/studies/{ROOT}.{study}.1/instances?Modality=SEG")
            there |= {row["00080018"]["Value"][0] for row in rows}
        count = ask(archive, "/statistics")["CountInstances"]
    originals = {f"{ROOT}.{i // slices}.2.{i % slices + 1}": pydicom.dcmread(f) for i, f in enumerate(source)}
    here = {d.SOPInstanceUID: d for p in (scratch / "in").rglob("*.dcm") if (d := pydicom.dcmread(p))}
    names = " ".join(str(p.relative_to(scratch)) for f in ("in", "seg") for p in (scratch / f).rglob("*"))
    words = (names + " ".join(told + more) + str(fetched) + str(sent)).lower()
    return {
        "instances": total, "lost": sum(here.get(uid) != d for uid, d in originals.items()),
        "segmentations": len([m for m in made if m.path]), "segmentations_lost": len(uids - there),
        "doubled": count - total - len(uids), "faults": len(faults), "kinds": sorted(set(faults)),
        "calls": len(told) + len(more) + 2, "errors": told + more, "elsewhere": len(set(contacted) - places),
        "leaks": [c for c in CANARIES if c.lower() in words], "seconds": time.monotonic() - began,
    }  # fmt: skip
