"""The network as a ``torch.export`` program (.pt2), and a look into such a file before torch reads it."""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medtransfer.errors import ConfigError, RunError
from medtransfer.export.card import Card

if TYPE_CHECKING:
    from torch import nn
    from torch.export import ExportedProgram

CARD = "card.json"
_OPERATORS = re.compile(r"torch\.ops\.aten\.[\w.]+|torch\.ops\.higher_order\.wrap_with_set_grad_enabled"
                        r"|_operator\.\w+|math\.\w+|torch\.sym_\w+")  # fmt: skip
_WORDS = {"Symbol", "Integer", "Mul", "Add", "Pow", "Min", "Max", "Mod", "PythonMod", "FloorDiv", "CeilDiv", "CleanDiv",
          "floor", "ceiling", "positive", "nonnegative", "integer", "True"}  # fmt: skip


def program_of(network: nn.Module, card: Card) -> ExportedProgram:
    """The network as a graph of operators, of any number of cases; of a bag also of any number of images.

    Raises
    ------
    ConfigError
        Where torch cannot write this network as a graph.
    """
    import torch

    from medtransfer.export.network import example

    axes: dict[int, Any] = {0: torch.export.Dim("batch")} | ({2: torch.export.Dim("images")} if card.bag else {})
    # sizes that no axis has, and at least 2: torch takes equal sizes, and 1, for a rule of the graph
    image = example(card, next(n for n in range(2, 9) if n not in card.shape and n != 3))
    try:
        with torch.no_grad():
            program = torch.export.export(network, (image,), dynamic_shapes=(axes,), strict=False)
    except (RuntimeError, ValueError, TypeError, AssertionError, NotImplementedError) as error:
        raise ConfigError(
            "torch cannot write this network as a graph", where=str(card.weights.get("architecture", "")),
            got=" ".join(str(error).split())[:200], fix="export --to weights, which needs medtransfer to run",
        ) from error  # fmt: skip
    program._guards_code = []  # conditions on the input as Python source, which nothing here should have to run
    for node in program.graph.nodes:
        for name in ("stack_trace", "from_node"):  # paths of this machine
            node.meta.pop(name, None)
    return program


def save_program(program: ExportedProgram, card: Card, path: Path) -> None:
    """Write a program with its card into one file."""
    import torch

    from medtransfer.run import write

    buffer = io.BytesIO()
    torch.export.save(program, buffer, extra_files={CARD: card.to_json()})
    write(path, buffer.getvalue())


def load_program(path: Path) -> tuple[nn.Module, Card]:
    """A program that :func:`save_program` wrote, ready to be called, and its card.

    torch's own reader unpickles, evaluates expressions and resolves names that it finds in a file. Before it may, the
    file is searched: tensors must be plain numbers, operators PyTorch's arithmetic, and sizes simple expressions.

    Raises
    ------
    RunError
        Where the file is damaged, is of another kind, or holds anything else.
    """
    import torch

    try:
        content = path.read_bytes()
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            _inspect(archive, path.name)
            names = {n.split("/", 1)[-1]: n for n in archive.namelist()}
            card = Card.from_json(archive.read(names[f"extra/{CARD}"]), where=path.name)
        program = torch.export.load(io.BytesIO(content))
        graph = program.module()
        return torch.fx.GraphModule(graph, graph.graph).eval(), card
    except (OSError, zipfile.BadZipFile, KeyError, ValueError, RuntimeError, AssertionError) as error:
        raise RunError(
            "the exported program is missing or damaged", where=path.name, got=type(error).__name__,
            fix="export the run again",
        ) from error  # fmt: skip


def _inspect(archive: zipfile.ZipFile, where: str) -> None:
    """Refuse a program that could do more than arithmetic."""
    import pickle

    import torch

    for name in archive.namelist():
        short = name.split("/", 1)[-1]
        if re.fullmatch(r"data/(weights|constants)/model_\w+_config\.json", short):
            held = json.loads(archive.read(name)).get("config") or {}
            if strange := [k for k, v in held.items() if v.get("use_pickle") or "tensor_meta" not in v
                           or not v["tensor_meta"]]:  # fmt: skip
                _refuse(where, f"{len(strange)} tensors that are pickled")
        elif short == "models/model.json":
            for kind, text in _told(json.loads(archive.read(name))):
                if not (_OPERATORS.fullmatch(text) if kind == "target" else kind == "expr_str" and _simple(text)):
                    _refuse(where, f"a {kind} that is no arithmetic")
        elif short == "data/sample_inputs/model.pt":
            try:
                torch.load(io.BytesIO(archive.read(name)), weights_only=True)
            except pickle.UnpicklingError:
                _refuse(where, "pickled objects")
        elif not re.fullmatch(
            rf"data/(weights/weight|constants/tensor)_\d+|extra/{re.escape(CARD)}|archive_(format|version)"
            r"|\.data/\w+|byteorder|\.format_version|\.storage_alignment|version", short,
        ):  # fmt: skip
            _refuse(where, f"an entry {Path(short).name!r}")


def _refuse(where: str, got: str) -> None:
    raise RunError(
        "the file holds more than a network", where=where, got=got,
        fix="take the file from who exported it, or ask for ONNX, which holds no code",
    )  # fmt: skip


def _told(node: object) -> Iterator[tuple[str, str]]:
    """Every operator, symbolic size and condition in a serialized program."""
    if isinstance(node, dict):
        for key, value in node.items():
            if key in ("target", "expr_str") and isinstance(value, str):
                yield key, value
            elif key == "guards_code":
                yield from ((key, str(text)) for text in value)
            else:
                yield from _told(value)
    elif isinstance(node, list):
        for value in node:
            yield from _told(value)


def _simple(size: str) -> bool:
    """Whether a size is made of symbols, numbers and arithmetic alone.

    Examples
    --------
    >>> _simple("Mul(Integer(3), Symbol('s77', positive=True, integer=True))"), _simple("__import__('os')")
    (True, False)
    """
    left = re.sub(r"'[suz]\d+'", "0", size)
    return re.fullmatch(r"[A-Za-z0-9_+\-*/(),=\s]*", left) is not None and all(
        w in _WORDS or re.fullmatch(r"[suz]\d+", w) for w in re.findall(r"[A-Za-z_]\w*", left)
    )
