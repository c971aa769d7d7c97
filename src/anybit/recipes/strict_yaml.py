"""YAML as recipes use it: mappings, lists and scalars, read by PyYAML's safe loader with what can surprise or explode taken away."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from anybit.errors import FileFormatError

MAX_BYTES = 1 << 20
MAX_DEPTH = 16
MAX_NODES = 5_000


def read(path: Path) -> Any:
    """The content of a YAML file. FileFormatError: see `parse`; also larger than 1 MiB, or not UTF-8."""
    return parse(text_of(path), str(path))


def text_of(path: Path) -> str:
    """The text of a file. FileFormatError: it cannot be read, is larger than 1 MiB, or not UTF-8."""
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise FileFormatError(f"{path}: {error.strerror or error}") from None
    if len(raw) > MAX_BYTES:
        line = raw.count(b"\n", 0, MAX_BYTES) + 1
        raise FileFormatError(f"{path}: line {line}: larger than {MAX_BYTES} bytes; a recipe is a few lines")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise FileFormatError(f"{path}: line {line}: byte {error.start} is not UTF-8; save the file as UTF-8") from None


def lines(text: str) -> Callable[[tuple[str, ...]], int]:
    """Of a document that `parse` accepts: the line, from 1, of the key or list item (by its number) that some keys lead to, or of the
    innermost one on the way that is there."""
    import yaml

    root = yaml.compose(text, Loader=yaml.SafeLoader)

    def line(keys: tuple[str, ...]) -> int:
        node, found = root, 1
        for key in keys:
            if isinstance(node, yaml.MappingNode):
                pairs = [(name.start_mark.line, value) for name, value in node.value if name.value == key]
            else:
                items = node.value if isinstance(node, yaml.SequenceNode) else []
                pairs = [(item.start_mark.line, item) for i, item in enumerate(items) if str(i) == key]
            if not pairs:
                break
            found, node = pairs[0][0] + 1, pairs[0][1]
        return found

    return line


def parse(text: str, where: str) -> Any:
    """Python values of one YAML document.

    FileFormatError, with line and column: no YAML, a key twice, an anchor or alias, a tag, nesting deeper than 16, more than 5,000 values.
    """
    import yaml

    try:
        events = _checked(yaml, text, where)
        root = yaml.compose(text, Loader=yaml.SafeLoader) if events else None
        return None if root is None else _built(yaml, root, where)
    except FileFormatError:
        raise
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f" line {mark.line + 1}, column {mark.column + 1}" if mark is not None else ""
        raise FileFormatError(f"{where}:{place}: no YAML: {error.problem}; correct it") from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise FileFormatError(f"{where}: line {line}: no YAML: {error.reason}; correct it") from None
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        raise FileFormatError(f"{where}: no YAML: {error}; correct it") from None
    except RecursionError:
        raise FileFormatError(f"{where}: nested too deeply; a recipe has {MAX_DEPTH} levels at most") from None


def _at(mark: Any) -> str:
    return f"line {mark.line + 1}, column {mark.column + 1}"


def _checked(yaml: Any, text: str, where: str) -> int:
    """Looks at the events, which take no memory, before anything is built. Returns how many values there are."""
    depth = count = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            raise FileFormatError(f"{where}: {_at(event.start_mark)}: anchors and aliases are not allowed; write the value out")
        if getattr(event, "tag", None) is not None:
            raise FileFormatError(f"{where}: {_at(event.start_mark)}: tag {event.tag} is not allowed; write a plain value")
        if isinstance(event, (yaml.ScalarEvent, yaml.CollectionStartEvent)):
            count += 1
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > MAX_DEPTH or count > MAX_NODES:
            what = f"nested deeper than {MAX_DEPTH}" if depth > MAX_DEPTH else f"more than {MAX_NODES} values"
            raise FileFormatError(f"{where}: {_at(event.start_mark)}: {what}; a recipe needs less")
    return count


def _built(yaml: Any, node: Any, where: str) -> Any:
    constructor = yaml.constructor.SafeConstructor()
    if isinstance(node, yaml.MappingNode):
        found: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = key_node.value if isinstance(key_node, yaml.ScalarNode) else None
            if key is None or key_node.tag == "tag:yaml.org,2002:merge":
                raise FileFormatError(f"{where}: {_at(key_node.start_mark)}: a key must be plain text; write a name")
            if key in found:
                raise FileFormatError(f"{where}: {_at(key_node.start_mark)}: key '{key}' stands here twice; keep one")
            found[key] = _built(yaml, value_node, where)
        return found
    if isinstance(node, yaml.SequenceNode):
        return [_built(yaml, item, where) for item in node.value]
    try:
        value = constructor.construct_object(node)
    except (ValueError, OverflowError) as error:  # a number of thousands of digits, a 13th month
        raise FileFormatError(f"{where}: {_at(node.start_mark)}: no YAML: {str(error).partition(';')[0]}; correct it") from None
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    return node.value  # dates and the like are text here
