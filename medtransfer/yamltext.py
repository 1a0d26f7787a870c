"""Text of a config as values, each key with its line: YAML 1.2, nothing in it is evaluated."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from medtransfer.errors import ConfigError

_MOST_BYTES, _MOST_NODES = 2**20, 100_000
Keys = tuple[str, ...]


def read_text(path: Path) -> str:
    """Text of a config file, refused where it is missing, too large or not UTF-8."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise ConfigError(
            "the config cannot be read", where=path.name, got=error.strerror, fix="correct the path"
        ) from error
    if len(raw) > _MOST_BYTES:
        raise ConfigError("this is too large for a config", where=path.name, got=f"{len(raw):,} bytes")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError("the config is not UTF-8 text", where=path.name) from error


def parse(text: str, name: str) -> tuple[dict[str, Any], dict[Keys, str]]:
    """Values of a YAML text and the line of every key."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import MarkedYAMLError, YAMLError

    yaml = YAML(typ="safe", pure=True)
    try:
        node = yaml.compose(io.StringIO(text))
        if _count(node) > _MOST_NODES:
            raise ConfigError(
                "the aliases of the YAML expand to too much", where=name, fix="write the config without aliases"
            )
        values = YAML(typ="safe", pure=True).load(io.StringIO(text))
    except MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else "?"
        problem = str(error.problem or error.context or "not YAML").split("\n")[0]
        raise ConfigError("this is not valid YAML", where=f"{name} line {line}", got=problem) from error
    except (YAMLError, ValueError, RecursionError) as error:
        raise ConfigError("this is not valid YAML", where=name, got=str(error).split("\n")[0][:120]) from error
    if not isinstance(values, dict) or not all(isinstance(k, str) for k in values):
        raise ConfigError("a config is a mapping of sections", where=name, got=short(values))
    lines: dict[Keys, str] = {}
    _lines(node, (), lines, name)
    return values, lines


def _count(node: Any, seen: dict[int, int] | None = None) -> int:
    """Nodes after all aliases are expanded, without expanding them."""
    seen = {} if seen is None else seen
    if id(node) in seen:
        return seen[id(node)]
    seen[id(node)] = _MOST_NODES  # an alias of itself is too much
    value = getattr(node, "value", None)
    members: list[Any] = []
    if isinstance(value, list):
        members = [m for item in value for m in (item if isinstance(item, tuple) else (item,))]
    seen[id(node)] = min(2 * _MOST_NODES, 1 + sum(_count(m, seen) for m in members))
    return seen[id(node)]


def _lines(node: Any, at: Keys, lines: dict[Keys, str], name: str) -> None:
    for key, value in node.value if type(node).__name__ == "MappingNode" else ():
        path = (*at, str(key.value))
        lines[path] = f"{name} line {key.start_mark.line + 1}"
        _lines(value, path, lines, name)


def short(value: object) -> str:
    """A value as a message shows it."""
    text = repr(value)
    return "nothing" if value is None else text if len(text) < 80 else text[:77] + "..."


def as_yaml(values: dict[str, Any]) -> str:
    """Values as text, in their order."""
    from ruamel.yaml import YAML

    yaml, text = YAML(typ="safe", pure=True), io.StringIO()
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    yaml.dump(values, text)
    return text.getvalue()
