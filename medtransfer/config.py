"""A config file is the package's calls written down: YAML 1.2 in, checked settings out.

Every section is the keywords of one function or the fields of one settings class; nothing is named by
an import path, nothing is evaluated, nothing is read from the environment.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, create_model

from medtransfer.errors import ConfigError
from medtransfer.parallel import check_backend
from medtransfer.predictions import Task
from medtransfer.report.author import Author
from medtransfer.yamltext import Keys, as_yaml, parse, read_text, short

_COHORTS = {"csv": "from_csv", "dicom": "from_dicom", "dicomweb": "from_dicomweb", "medmnist": "from_medmnist"}
_MASKS = {"csv": "mask", "dicom": "SEG", "dicomweb": "SEG"}  # where masks are, if nothing is said
_PATHS = {"cohort": ("csv", "root", "dicom", "labels", "medmnist", "folder", "ca_bundle")}
_HIDDEN = {"cohort": (*_PATHS["cohort"], "dicomweb", "query"), "search": ("storage",), "track": ("mlflow",)}


class AuditSettings(BaseModel):
    """Which findings of the audit the author knows and accepts."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    accept: tuple[str, ...] = ()


def keywords(function: Callable[..., object], *, skip: Sequence[str] = ()) -> type[BaseModel]:
    """The keywords of a function as a settings class, types and defaults included.

    Examples
    --------
    >>> def bake(flour: str, *, minutes: int = 40) -> None: ...
    >>> keywords(bake)(flour="rye").model_dump()
    {'flour': 'rye', 'minutes': 40}
    """
    plain = getattr(function, "__func__", function)
    wanted = {k: v for k, v in plain.__annotations__.items() if k not in (*skip, "return")}
    holder = type(
        "Holder", (), {"__annotations__": wanted}
    )  # annotations that are left out may name what is not imported
    hints = get_type_hints(holder, plain.__globals__, {"Scan": Path}, include_extras=True)
    fields: dict[str, Any] = {
        p.name: (hints[p.name], ... if p.default is p.empty else p.default)
        for p in inspect.signature(function).parameters.values()
        if p.name not in skip
    }
    return create_model(function.__name__, __config__=ConfigDict(frozen=True, extra="forbid"), **fields)


@cache
def sections(cohort_key: str, task: str | None = None) -> dict[str, type[BaseModel]]:
    """The settings class of each section, for a cohort made from ``cohort_key`` and a task."""
    if task == "segmentation":
        return _mask_sections(cohort_key)
    from medtransfer.augment import Augment
    from medtransfer.cohort import Cohort
    from medtransfer.judge import judge
    from medtransfer.model import load_model
    from medtransfer.prepare import Prepare
    from medtransfer.recipe import Recipe
    from medtransfer.report import write_report
    from medtransfer.search import search
    from medtransfer.split import split_by_patient
    from medtransfer.track import track

    searched = ("trials", "minutes", "folds", "fold", "sizes", "backbones", "storage", "pruner", "watts")
    rest = [k for k in inspect.signature(search).parameters if k not in searched]
    return {
        "cohort": keywords(getattr(Cohort, _COHORTS[cohort_key]), skip=("progress", "scan_store")),
        "split": keywords(split_by_patient, skip=("cohort",)),
        "audit": AuditSettings,
        "prepare": Prepare,
        "augment": Augment,
        "model": keywords(load_model),
        "recipe": Recipe,
        "evaluate": keywords(judge, skip=("run",)),
        "report": keywords(write_report, skip=("result", "path")),
        "search": keywords(search, skip=rest),
        "track": keywords(track, skip=("out",)),
        "author": Author,
    }


def _mask_sections(cohort_key: str) -> dict[str, type[BaseModel]]:
    """The sections of a segmentation."""
    from medtransfer.contour import given_plan, judge_masks
    from medtransfer.segment.network import load_segmenter

    kept = ("cohort", "split", "audit", "recipe", "report", "track")
    shared = {k: v for k, v in sections(cohort_key).items() if k in kept}
    own = {"plan": given_plan(), "model": keywords(load_segmenter), "evaluate": keywords(judge_masks, skip=("run",))}
    return shared | own | {"author": Author}


class _Top(BaseModel):
    """Keys outside the sections."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    out: str
    data: str = "."
    title: str = ""
    synthetic: bool = False
    seed: int = 0
    task: Task | Literal["segmentation"] | None = None
    structures: dict[int, str] | tuple[str, ...] | None = None
    workers: Annotated[int, Field(ge=0)] = 2
    accelerator: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    devices: Annotated[int, Field(ge=1)] = 1
    nodes: Annotated[int, Field(ge=1)] = 1
    strategy: Literal["auto", "ddp", "fsdp"] = "auto"
    backend: Annotated[str, AfterValidator(check_backend)] = "threads"
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"


@dataclass(frozen=True)
class Experiment:
    """A checked configuration.

    Parameters
    ----------
    name : str
        File name, for messages.
    top : settings
        ``out``, ``data`` (folder that relative paths of the cohort and of a weights file start from), ``title``,
        ``synthetic``, ``seed``, ``task`` (that of the cohort), ``structures`` (of masks), and where and how it is
        computed: ``workers``, ``accelerator``, ``devices``, ``nodes``, ``strategy``, ``precision`` as for
        :func:`medtransfer.fit`.
    settings : mapping of str to settings
        One entry a section, defaults filled in; ``recipe`` is None where it is left to the cohort's size.

    Examples
    --------
    >>> experiment = Experiment.from_text('''
    ... cohort: {csv: cohort.csv}
    ... model: {weights: random/resnet18}
    ... recipe: {lr: 1e-4}
    ... out: runs/a
    ... ''')
    >>> experiment.settings["recipe"].lr
    0.0001
    """

    name: str
    top: Any
    settings: Mapping[str, Any]
    cohort_key: str
    raw: Mapping[str, Any] = field(repr=False)

    @classmethod
    def from_file(cls, path: str | Path, *, changes: Sequence[str] = ()) -> Experiment:
        """Read a YAML file; ``changes`` are texts such as ``'recipe.epochs=5'`` that come after it.

        Raises
        ------
        ConfigError
            For a missing file, bad YAML, unknown or duplicate keys and values that do not fit; it names the line.
        """
        path = Path(path)
        return cls.from_text(read_text(path), name=path.name, changes=changes)

    @classmethod
    def from_text(cls, text: str, *, name: str = "config", changes: Sequence[str] = ()) -> Experiment:
        """As :meth:`from_file`, from a text."""
        values, lines = parse(text, name)
        for change in changes:
            _change(values, lines, change)
        return cls._checked(values, lines, name)

    @classmethod
    def _checked(cls, values: dict[str, Any], lines: dict[Keys, str], name: str) -> Experiment:
        cohort = values.get("cohort")
        if not isinstance(cohort, dict) or not (keys := [k for k in cohort if k in _COHORTS]):
            raise ConfigError(
                "the cohort is not named", where=_where(("cohort",), lines, name), got=short(cohort),
                fix="cohort: {csv: TABLE, root: FOLDER}, {dicom: FOLDER, labels: TABLE} or {medmnist: FILE}",
            )  # fmt: skip
        masks = values.get("task") == "segmentation"
        if masks and keys[0] == "medmnist":
            raise ConfigError(
                "a segmentation takes its images and masks from a table, or a dump", got=keys[0],
                where=_where(("cohort", keys[0]), lines, name), fix="cohort: {csv: TABLE, root: FOLDER, mask: COLUMN}",
            )  # fmt: skip
        kinds = sections(keys[0], "segmentation" if masks else None)
        known = {*kinds, *_Top.model_fields}
        for key in values:
            if key not in known:
                raise _unknown((key,), sorted(known), lines, name)
        top = _make(_Top, {k: v for k, v in values.items() if k in _Top.model_fields}, (), lines, name)
        settings: dict[str, Any] = {}
        top_task = None if masks else getattr(top, "task", None)
        if getattr(top, "structures", None) is not None and not masks:
            raise ConfigError("structures belong to masks", where=_where(("structures",), lines, name),
                              got=f"task {top_task}", fix="task: segmentation")  # fmt: skip
        implied = {"cohort": {"mask": _MASKS[keys[0]]}, "model": {"weights": "random/unet"}} if masks else {}
        for section, kind in kinds.items():
            given = values.get(section)
            if section == "augment" and isinstance(given, str):
                given = {"modality": given}
            if section == "cohort" and isinstance(given, dict) and top_task:
                given = {"task": top_task} | given
            if section == "recipe" and given is None:
                settings[section] = None
                continue
            if not isinstance(given, dict | None):
                raise ConfigError("a section is a mapping", where=_where((section,), lines, name), got=short(given))
            settings[section] = _make(kind, implied.get(section, {}) | (given or {}), (section,), lines, name)
        return cls(name, top, settings, keys[0], values)

    def with_cohort(self, section: Mapping[str, Any], *, name: str) -> Experiment:
        """The same experiment on another cohort, whose paths start from where the command runs."""
        return self._checked({**self.raw, "cohort": dict(section), "data": "."}, {}, name)

    def path(self, text: str) -> str:
        """A path of the config, started from ``data``."""
        return str(Path(self.top.data) / text.replace("\\", "/"))

    def arguments(self, section: str) -> dict[str, Any]:
        """Keywords for the section's function, paths resolved."""
        model = self.settings[section]
        found = {k: getattr(model, k) for k in type(model).model_fields}
        for key in _PATHS.get(section, ()):
            if key in found and found[key] is not None:
                found[key] = self.path(str(found[key]))
        weights = found.get("weights")
        if section == "model" and isinstance(weights, str) and weights.endswith((".safetensors", ".pth", ".pt")):
            found["weights"] = self.path(weights)
        return found

    def resolved(self, *, private: bool = False) -> str:
        """The whole config with every default written out, as YAML.

        ``private`` keeps the paths; otherwise they are left out, since folders may be named after patients.
        """
        out: dict[str, Any] = {k: v for k, v in self.top.model_dump(mode="json").items() if k not in ("out", "data")}
        for section, model in self.settings.items():
            if model is not None and self.top.task == "segmentation" and section in ("plan", "model"):
                out[section] = model.model_dump(mode="json", exclude_unset=True)  # the rest is derived from the data
            elif model is not None:
                out[section] = model.model_dump(mode="json", exclude_none=True)
        if not private:
            for section, keys in _HIDDEN.items():  # paths, and addresses and ids
                if section in out:
                    out[section] = {k: "(private)" if k in keys else v for k, v in out[section].items()}
            out["model"]["weights"] = (
                Path(out["model"]["weights"]).name if "." in out["model"]["weights"] else out["model"]["weights"]
            )
        else:
            out |= {"out": self.top.out, "data": self.top.data}
        return as_yaml(out)


def _change(values: dict[str, Any], lines: dict[Keys, str], change: str) -> None:
    key, equals, text = change.partition("=")
    path = tuple(key.strip().split("."))
    if not equals or not all(path):
        raise ConfigError("--set wants key=value", got=f"'{change}'", fix="for example --set recipe.epochs=5")
    value = parse(f"value: {text if text.strip() else 'null'}", f"--set {key}")[0]["value"]
    at = values
    for name in path[:-1]:
        if not isinstance(at.get(name), dict):
            at[name] = {}
        at = at[name]
    at[path[-1]] = value
    lines[path] = f"--set {key.strip()}"


def _make(kind: type[BaseModel], given: dict[str, Any], at: Keys, lines: dict[Keys, str], name: str) -> BaseModel:
    try:
        return kind(**given)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        loc = tuple(str(x) for x in first["loc"])
        path = (*at, *loc)
        if first["type"] == "extra_forbidden":
            inner = _model_at(kind, loc[:-1])
            raise _unknown(path, list(inner.model_fields), lines, name) from None
        if first["type"] == "missing":
            raise ConfigError(
                f"'{'.'.join(path)}' is missing", where=_where(at, lines, name), fix=f"add {loc[-1]}: ...",
            ) from None  # fmt: skip
        where = f"{_where(path, lines, name)}, {'.'.join([*at, *loc[:1]])}"
        message = first["msg"].removeprefix("Value error, ")
        raise ConfigError(
            message[0].lower() + message[1:], where=where, got=short(first.get("input")), fix="correct the value"
        ) from None
    except TypeError as error:
        raise ConfigError("keys are words", where=_where(at, lines, name), got=str(error)) from None


def _model_at(kind: type[BaseModel], path: Keys) -> type[BaseModel]:
    for key in path:
        inner = kind.model_fields[key].annotation if key in kind.model_fields else None
        options = [inner, *getattr(inner, "__args__", ())]
        kind = next((o for o in options if isinstance(o, type) and issubclass(o, BaseModel)), kind)
    return kind


def _unknown(path: Keys, known: Sequence[str], lines: dict[Keys, str], name: str) -> ConfigError:
    near = difflib.get_close_matches(path[-1], known, n=1, cutoff=0.5)
    return ConfigError(
        f"there is no key '{'.'.join(path)}'", where=_where(path, lines, name),
        fix=f"did you mean '{near[0]}'?" if near else f"known are {', '.join(known)}",
    )  # fmt: skip


def _where(path: Keys, lines: dict[Keys, str], name: str) -> str:
    while path and path not in lines:
        path = path[:-1]
    return lines.get(path, name)
