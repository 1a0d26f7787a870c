"""The config and the command reference, written from the settings classes, the signatures and the commands."""

from __future__ import annotations

import inspect
import re
import types
import typing
from collections.abc import Callable
from typing import Annotated, Any, Literal

import click
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

Keys = dict[str, tuple[str, str]]  # name: (type as the docstring says it, meaning)

TOP = {
    "out": "The run folder. The same config with the same folder goes on where it stands.",
    "data": "Folder that relative paths of the cohort, and of a weights file, start from.",
    "title": "Of the report.",
    "synthetic": "Say on every page that no patient was imaged.",
    "seed": "Of the order of cases, augmentation, dropout and everything that starts untrained.",
    "task": "What is predicted; by default the cohort says. `segmentation` changes the sections, see below.",
    "structures": "Names of the labels of a segmentation, by number and without a gap; 0 is the background.",
}


def config_reference() -> str:
    """Every key of a config, as Markdown."""
    from medtransfer.config import sections
    from medtransfer.fit import fit

    top = {**_documented(fit), **{k: ("", v) for k, v in TOP.items()}}
    parts = ["## Keys outside the sections\n", _table(_top(), top)]
    plain, masks = sections("csv"), sections("csv", "segmentation")
    for name, model in plain.items():
        if name == "cohort":
            for key, title in (("csv", "a table of files"), ("dicom", "a DICOM dump and a table of labels"),
                               ("medmnist", "an array file")):  # fmt: skip
                parts += [
                    f"## `cohort`: {title}\n",
                    _source("cohort", key),
                    _table(sections(key)[name], _doc(name, key)),
                ]
        else:
            parts += [f"## `{name}`\n", _source(name), _table(model, _doc(name))]
    parts.append("## With `task: segmentation`\n")
    same = ", ".join(f"`{k}`" for k in masks if k in plain and masks[k] is plain[k])
    parts.append(f"As above: {same}. There is no section but these and the following.\n")
    for name in (k for k in masks if k not in plain or masks[k] is not plain[k]):
        parts += [f"### `{name}` of a segmentation\n", _source(name, "masks"), _table(masks[name], _doc(name, "masks"))]
    return "\n".join(parts)


def documented_keys() -> dict[str, set[str]]:
    """The keys of every section that have a line of text."""
    from medtransfer.config import sections

    found = {}
    for kind in ("csv", "dicom", "medmnist"):
        for name in sections(kind):
            found[f"{name}/{kind}" if name == "cohort" else name] = set(_doc(name, kind))
    for name in ("plan", "model", "evaluate"):
        found[f"{name}/masks"] = set(_doc(name, "masks"))
    return found


def _owner(section: str, kind: str = "csv") -> Callable[..., Any] | type:
    """The function whose keywords, or the class whose fields, a section is."""
    from medtransfer import Augment, Cohort, Prepare, Recipe, load_model, search, split_by_patient, write_report
    from medtransfer.config import AuditSettings
    from medtransfer.contour import judge_masks
    from medtransfer.judge import judge
    from medtransfer.report.author import Author
    from medtransfer.segment import Plan, load_segmenter
    from medtransfer.track import Tracker

    cohort = {"csv": Cohort.from_csv, "dicom": Cohort.from_dicom, "medmnist": Cohort.from_medmnist}
    if kind == "masks" and section in ("plan", "model", "evaluate"):
        return {"plan": Plan, "model": load_segmenter, "evaluate": judge_masks}[section]
    owners: dict[str, Any] = {
        "split": split_by_patient, "audit": AuditSettings, "prepare": Prepare, "augment": Augment, "model": load_model,
        "recipe": Recipe, "evaluate": judge, "report": write_report, "search": search, "track": Tracker,
        "author": Author,
    }  # fmt: skip
    return cohort[kind] if section == "cohort" else owners[section]


def _doc(section: str, kind: str = "csv") -> Keys:
    """Documented parameters of a section; what only points to another function takes that one's text."""
    from medtransfer import Cohort, Prepare, load_model

    owner = _owner(section, kind)
    found = _documented(owner)
    elders = {
        "from_dicom": Cohort.from_csv,
        "from_medmnist": Cohort.from_csv,
        "load_segmenter": load_model,
        "Plan": Prepare,
    }
    elder = elders.get(getattr(owner, "__name__", ""))
    if elder is not None:
        theirs = _documented(elder)
        found = {k: theirs[k] if v[1].startswith(("As in", "Grey values, as in")) and k in theirs else v
                 for k, v in found.items()}  # fmt: skip
    if section == "audit":
        found = {"accept": ("", inspect.getdoc(owner) or "")}
    if section == "author":
        found = _asked_of_authors()
    return found


def _asked_of_authors() -> Keys:
    """What the reporting guidelines ask for in each field, in the words of the report's checklist."""
    from medtransfer.report.author import Author
    from medtransfer.report.checklist import ITEMS
    from medtransfer.report.words import Words

    words = Words("en")
    asked: dict[str, list[str]] = {name: [] for name in Author.model_fields}
    for item in ITEMS:
        if item.author:
            asked[item.author].append(words.plain(f"item.{item.topic}"))
    named = {name: texts or [words.plain(f"author.{name}")] for name, texts in asked.items()}
    return {name: ("", "; ".join(texts)) for name, texts in named.items()}


def _documented(owner: Any) -> Keys:
    """The ``Parameters`` of a numpy docstring.

    >>> def f(a, b):
    ...     '''One line.
    ...
    ...     Parameters
    ...     ----------
    ...     a, b : int
    ...         Both.
    ...     '''
    >>> _documented(f)
    {'a': ('int', 'Both.'), 'b': ('int', 'Both.')}
    """
    text = inspect.getdoc(owner) or ""
    body = re.search(r"^Parameters\n-+\n(.*?)(?=^\w[\w ]*\n-+$|\Z)", text, re.M | re.S)
    found: Keys = {}
    for entry in re.finditer(r"^(?P<names>\w[\w, ]*?)(?: : (?P<type>.*))?\n(?P<text>(?:[ \t]+.*\n?|\n)*)",
                             (body[1] if body else "") + "\n", re.M):  # fmt: skip
        meaning = " ".join(entry["text"].split())
        for name in entry["names"].split(", "):
            found[name] = (entry["type"] or "", meaning)
    return found


def _source(section: str, kind: str = "csv") -> str:
    owner = _owner(section, kind)
    if section in ("audit", "author"):
        return f"{inspect.getdoc(owner)}\n"
    name = owner.__qualname__.replace("Tracker", "track")
    what = "Fields" if inspect.isclass(owner) and issubclass(owner, BaseModel) else "Keywords"
    first = (inspect.getdoc(owner) or "").split("\n")[0]
    return f"{what} of `{name}`: {first[0].lower()}{_plain(first[1:])}\n"


def _top() -> type[BaseModel]:
    from medtransfer.config import Experiment

    text = "cohort: {csv: a.csv}\nmodel: {weights: random/resnet18}\nout: x\n"
    return type(Experiment.from_text(text).top)


def _table(model: type[BaseModel], documented: Keys) -> str:
    rows = ["| key | values | default | meaning |", "|---|---|---|---|"]
    for name, info in model.model_fields.items():
        default = "needed" if info.default is PydanticUndefined and info.is_required() else _value(info.get_default())
        annotation = Annotated[(info.annotation, *info.metadata)] if info.metadata else info.annotation
        meaning = _plain(documented.get(name, ("", ""))[1])
        rows.append(f"| `{name}` | {values_of(annotation)} | {default} | {meaning} |")
    return "\n".join(rows) + "\n"


def _value(value: object) -> str:
    if isinstance(value, BaseModel):
        return "its defaults"
    shown = {None: "–", (): "none", "": "empty", True: "true", False: "false"}.get(value) if _hashable(value) else None
    if isinstance(value, tuple) and value:
        shown = "`[" + ", ".join(str(v) for v in value) + "]`"
    return (
        shown
        if shown is not None and not (isinstance(value, int | float) and not isinstance(value, bool))
        else f"`{value}`"
    )


def _hashable(value: object) -> bool:
    try:
        hash(value)
    except TypeError:
        return False
    return True


def values_of(annotation: Any) -> str:
    """A type as a config's author thinks of it.

    >>> from pydantic import Field
    >>> values_of(Annotated[int, Field(ge=1)] | None), values_of(Literal["a", "b"]), values_of(tuple[str, ...])
    ('whole number ≥ 1', '`a`, `b`', 'list of text')
    """
    origin, inside = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        limits = " and ".join(dict.fromkeys(t for m in inside[1:] for t in _limits(m)))
        return f"{values_of(inside[0])} {limits}".strip()
    if origin is Literal:
        return ", ".join(f"`{v}`" for v in inside)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(values_of(a) for a in inside if a is not type(None)))
    if origin is tuple and inside[-1:] == (...,):
        return f"list of {values_of(inside[0])}"
    if origin is tuple:
        parts = [values_of(a) for a in inside]
        return f"[{', '.join(parts)}]" if len(set(parts)) > 1 else f"{len(parts)} × {parts[0]}"
    if origin is dict:
        return f"{values_of(inside[0])}: {values_of(inside[1])}"
    if origin is not None and inside:
        return f"list of {values_of(inside[0])}"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return f"fields of `{annotation.__name__}`"
    names = {int: "whole number", float: "number", str: "text", bool: "true, false", object: "any"}
    if annotation in names:
        return names[annotation]
    return "path" if "Path" in str(annotation) else getattr(annotation, "__name__", str(annotation))


def _limits(mark: Any) -> list[str]:
    signs = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
    found = [f"{sign} {getattr(mark, k):g}" for k, sign in signs.items() if getattr(mark, k, None) is not None]
    return found + [t for inner in getattr(mark, "metadata", ()) for t in _limits(inner)]


def _plain(text: str) -> str:
    """reStructuredText of docstrings as Markdown for a table's cell."""
    text = re.sub(r":\w+:`~?(?:medtransfer\.)?([^`]+)`", r"`\1`", text)
    return re.sub(r"``([^`]+)``", r"`\1`", text).replace("|", "\\|").replace("\n", " ")


# --- commands ---------------------------------------------------------------------------------------------


def command_reference() -> str:
    """Every command with its arguments and options, as Markdown."""
    from medtransfer.cli import cli

    return "\n".join(_commands(cli, "medtransfer"))


def _commands(group: click.Group, called: str) -> list[str]:
    parts = []
    for name in group.list_commands(click.Context(group)):
        command = group.commands[name]
        full = f"{called} {name}"
        if isinstance(command, click.Group):
            parts += [f"## {full}\n", f"{command.help}\n", *_commands(command, full)]
        else:
            parts.append(_command(command, full))
    return parts


def _command(command: click.Command, called: str) -> str:
    context = click.Context(command, info_name=called)
    usage = " ".join(command.collect_usage_pieces(context))
    parts = [f"## {called}\n", f"{_plain(inspect.cleandoc(command.help or ''))}\n", f"```text\n{called} {usage}\n```\n"]
    options = [p.get_help_record(context) for p in command.params if isinstance(p, click.Option)]
    rows = [f"| `{names}` | {_plain(text)} |" for names, text in (o for o in options if o)]
    return "\n".join([*parts, *(["| option | |", "|---|---|", *rows, ""] if rows else [])])
