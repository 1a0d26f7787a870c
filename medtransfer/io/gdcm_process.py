"""GDCM in a process of its own: it ends the whole process on some damaged files, and prints on the error stream.

The process is started at the first file that needs it and serves all later ones. A request is a line with the file's
path as JSON; the answer is one JSON line (shape, dtype, or what went wrong) and the bytes of the array.
"""

from __future__ import annotations

import atexit
import json
import os
import subprocess
import sys
import threading
from typing import Any

import numpy as np

from medtransfer.image import Array

_CHILD = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); import medtransfer.io.gdcm_process as g; g.serve()"
_locks: dict[int, threading.Lock] = {}  # one a process: a forked worker must not inherit a lock that is held
_processes: dict[int, subprocess.Popen[bytes]] = {}


class DecodeFailed(Exception):
    """GDCM could not decode the file."""


def decode(path: str, *, seconds: float = 120.0) -> Array:
    """Stored values of all frames of a file.

    Raises
    ------
    DecodeFailed
        Where GDCM refuses the file, ends on it, or takes longer than ``seconds``.
    """
    with _locks.setdefault(os.getpid(), threading.Lock()):
        process = _process()
        assert process.stdin is not None
        assert process.stdout is not None
        watch = threading.Timer(seconds, process.kill)
        watch.start()
        try:
            process.stdin.write(json.dumps(os.fsencode(os.path.abspath(path)).hex()).encode() + b"\n")
            process.stdin.flush()
            line = process.stdout.readline()
            if not line:
                raise DecodeFailed("the decoder ended on this file")
            answer = json.loads(line)
            if "error" in answer:
                raise DecodeFailed(answer["error"])
            array = np.empty(answer["shape"], np.dtype(answer["dtype"]))
            view, done = memoryview(array.reshape(-1).view(np.uint8)), 0  # type: ignore[arg-type]
            while done < len(view):
                count = process.stdout.readinto(view[done:])  # type: ignore[attr-defined]
                if not count:
                    raise DecodeFailed("the decoder ended on this file")
                done += count
            return array
        except (BrokenPipeError, ValueError):
            _stop(process)
            raise DecodeFailed("the decoder ended on this file") from None
        finally:
            watch.cancel()


def _process() -> subprocess.Popen[bytes]:
    process = _processes.get(os.getpid())  # a forked worker must not share its parent's pipe
    if process is None or process.poll() is not None:
        process = subprocess.Popen(  # noqa: S603  (this very module, found where this process found it)
            [sys.executable, "-c", _CHILD, json.dumps(sys.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        _processes[os.getpid()] = process
        atexit.register(_stop, process)
    return process


def _stop(process: subprocess.Popen[bytes]) -> None:
    if _processes.get(os.getpid()) is process:
        del _processes[os.getpid()]
        process.kill()
        process.wait()


def serve() -> None:
    """Answer requests until the input ends."""
    out = sys.stdout.buffer
    sys.stdout = sys.stderr  # nothing else may write between the answers
    for line in sys.stdin.buffer:
        try:
            array = np.ascontiguousarray(_decode(bytes.fromhex(json.loads(line))))
        except Exception as error:  # whatever it is, the other side turns it into a ReadError
            out.write(json.dumps({"error": type(error).__name__}).encode() + b"\n")
        else:
            out.write(json.dumps({"shape": array.shape, "dtype": array.dtype.str}).encode() + b"\n")
            out.write(array.data)
        out.flush()


def _decode(path: bytes) -> Any:
    import pydicom
    from pydicom.pixels.decoders.base import get_decoder

    found = pydicom.dcmread(os.fsdecode(path), force=True)
    syntax = found.file_meta.TransferSyntaxUID
    progressive = syntax in ("1.2.840.10008.1.2.4.53", "1.2.840.10008.1.2.4.55")
    if not progressive and not (syntax == "1.2.840.10008.1.2.4.51" and found.BitsStored > 8):
        return get_decoder(syntax).as_array(found, raw=False, decoding_plugin="gdcm")[0]
    import gdcm  # what pydicom leaves out: 12-bit and progressive JPEG

    reader = gdcm.ImageReader()
    reader.SetFileName(os.fsdecode(path))
    if not reader.Read():
        raise ValueError("GDCM refuses the file")
    data = reader.GetImage().GetBuffer().encode("utf-8", "surrogateescape")
    frames, samples = int(found.get("NumberOfFrames") or 1), int(found.get("SamplesPerPixel", 1))
    bits = reader.GetImage().GetPixelFormat().GetBitsAllocated()
    dtype = np.dtype(f"<{'i' if found.PixelRepresentation else 'u'}{bits // 8}")
    return np.frombuffer(data, dtype).reshape(frames, found.Rows, found.Columns, samples)
