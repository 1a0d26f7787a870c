"""The network as an ONNX graph: one file, a fixed opset, its card inside; run by ONNX Runtime without torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from medtransfer.errors import ConfigError, RunError, require
from medtransfer.export.card import KEY, Card

if TYPE_CHECKING:
    from torch.export import ExportedProgram

OPSET = 18
INPUT = "image"


def save_graph(program: ExportedProgram, card: Card, path: Path) -> None:
    """Write a program as ONNX with its card in the metadata.

    Raises
    ------
    MissingPackage
        Without onnx and onnxscript.
    ConfigError
        Where ONNX has no operators for this network.
    """
    onnx: Any = require("onnx", "onnx")
    require("onnxscript", "onnx")
    import torch

    from medtransfer.run import write

    try:
        made = torch.onnx.export(
            precise(program), input_names=[INPUT], output_names=[card.output], opset_version=OPSET, dynamo=True,
            external_data=False, verbose=False,
        )  # fmt: skip
    except torch.onnx.OnnxExporterError as error:
        raise ConfigError(
            "ONNX cannot hold this network", where=str(card.weights.get("architecture", "")),
            got=" ".join(str(error.__cause__ or error).split())[:200], fix="export --to torch",
        ) from error  # fmt: skip
    assert made is not None
    model = made.model_proto
    _keep_to_itself(model)
    name_axes(model, card)
    onnx.helper.set_model_props(model, {KEY: card.to_json()})
    model.doc_string = f"{card.task}: {', '.join(card.names)}"
    write(path, model.SerializeToString())


def precise(program: ExportedProgram) -> ExportedProgram:
    """Normalisations over a whole map, written as means of one axis after the other.

    ONNX Runtime adds the values of a map up one by one in float32: over a volume of 32 x 32 x 32 voxels that costs two
    digits, and more over larger ones.
    """
    import torch
    from torch import Tensor

    def normal(x: Tensor, first: int, eps: float) -> Tensor:
        gap = x - mean(x, first)
        return gap * torch.rsqrt(mean(gap * gap, first) + eps)

    def mean(x: Tensor, first: int) -> Tensor:
        for axis in reversed(range(first, x.ndim)):
            x = x.mean(axis, keepdim=True)
        return x

    def scaled(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        shape = (1, -1, *[1] * (x.ndim - 2))
        x = x if weight is None else x * weight.reshape(shape)
        return x if bias is None else x + bias.reshape(shape)

    def group(x: Tensor, groups: int, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5,
              _: bool = True) -> Tensor:  # fmt: skip
        parts = x.reshape(x.shape[0], groups, x.shape[1] // groups, *x.shape[2:])
        return scaled(normal(parts, 2, eps).reshape(x.shape), weight, bias)

    def instance(x: Tensor, weight: Tensor | None, bias: Tensor | None, old_mean: Tensor | None,
                 old_var: Tensor | None, own: bool, momentum: float, eps: float, _: bool) -> Tensor:  # fmt: skip
        if not own:
            return NotImplemented  # type: ignore[no-any-return]
        return scaled(normal(x, 2, eps), weight, bias)

    aten = torch.ops.aten
    table = {aten.group_norm.default: group, aten.instance_norm.default: instance}
    return program.run_decompositions(table)  # type: ignore[no-any-return]


def name_axes(model: Any, card: Card) -> None:
    """Call the free axes by what they count."""
    free = ["cases", *(["channels", "images"] if card.bag else [])]
    for value in (*model.graph.input, *model.graph.output):
        old = [d.dim_param for d in value.type.tensor_type.shape.dim]
        for i, name in enumerate(free):
            if i < len(old) and old[i]:
                value.type.tensor_type.shape.dim[i].dim_param = name


def _keep_to_itself(model: Any) -> None:
    """Take out what the exporter writes down of this machine: source files, stack traces, its versions."""
    del model.metadata_props[:]
    graphs = [model.graph, *model.functions]
    for graph in graphs:
        del graph.metadata_props[:]
        for node in graph.node:
            del node.metadata_props[:]
            node.doc_string = ""
    for value in (*model.graph.value_info, *model.graph.initializer, *model.graph.input, *model.graph.output):
        del value.metadata_props[:]


class Graph:
    """An ONNX file, asked for arrays.

    Parameters
    ----------
    path : Path

    Attributes
    ----------
    card : Card

    Raises
    ------
    MissingPackage
        Without onnxruntime.
    RunError
        Where the file is damaged or has no card.
    """

    def __init__(self, path: Path) -> None:
        runtime: Any = require("onnxruntime", "onnx")
        import os

        options = runtime.SessionOptions()
        options.log_severity_level = 3
        if (threads := os.environ.get("OMP_NUM_THREADS", "")).isdigit():
            options.intra_op_num_threads = int(threads)
        failures: tuple[type[Exception], ...] = (OSError, *_errors())
        try:
            self.session = runtime.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])
            text = self.session.get_modelmeta().custom_metadata_map[KEY]
        except KeyError:
            raise RunError(
                "the ONNX file has no card: it says nothing of preparation and classes", where=path.name,
                fix="medtransfer export RUN --to onnx",
            ) from None  # fmt: skip
        except failures as error:
            raise RunError(
                "the ONNX file is missing or damaged", where=path.name, got=type(error).__name__,
                fix="export the run again",
            ) from error  # fmt: skip
        self.card = Card.from_json(text, where=path.name)

    def __call__(self, array: NDArray[np.float32]) -> NDArray[np.float32]:
        """The answer for prepared images ``[n, channels, ...]``."""
        found: NDArray[np.float32] = self.session.run([self.card.output], {INPUT: np.ascontiguousarray(array)})[0]
        return found


def _errors() -> tuple[type[Exception], ...]:
    """What ONNX Runtime raises about a file; its errors share no base of their own."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    names = ("Fail", "InvalidArgument", "InvalidGraph", "InvalidProtobuf", "NotImplemented", "RuntimeException")
    return tuple(getattr(state, name) for name in names)
