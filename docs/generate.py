"""Generate the reference pages from the code: `python docs/generate.py` writes them, `--check` compares only.

`reference/keys.md` lists every config key with its default and the comment above it, read from the functions that
define the defaults. The tables of fields in `reference/formats.md` and the JSON schemas in `reference/schemas/` come
from the models of `ssl_transfer/formats`.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import inspect
import json
import pkgutil
import re
import sys
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import ssl_transfer.formats  # noqa: E402
from ssl_transfer.formats import FileFormat  # noqa: E402

REFERENCE = ROOT / "docs" / "reference"
KEYS_HEAD = """# Config keys

For everybody who writes a config file or `KEY VALUE` on a command line. Every key with its default and meaning,
generated from the code by `python docs/generate.py`; a test compares this page with the code. Detectron2's own keys
(`MODEL.*`, `SOLVER.*` … of fine-tuning) are explained in its documentation.
"""


@dataclass(frozen=True)
class Key:
    """One row: keys that share a comment.

    Attributes:
        names: dotted names without their section's prefix.
        defaults: their default values as Python source.
        text: the comment.
    """

    names: list[str]
    defaults: list[str]
    text: str


def comments(source: str) -> dict[int, str]:
    """Comments by line number, without the `#`."""
    tokens = tokenize.generate_tokens(iter(source.splitlines(keepends=True)).__next__)
    return {t.start[0]: t.string.lstrip("# ").rstrip() for t in tokens if t.type == tokenize.COMMENT}


def assignments(function: ast.FunctionDef) -> Iterator[tuple[str, ast.expr, int]]:
    """(dotted name below the node, value, line) of every `node.A.B = value` in a function, in order."""
    sections: dict[str, str] = {}
    for statement in function.body:
        if not isinstance(statement, ast.Assign):
            continue
        names = [target.id for target in statement.targets if isinstance(target, ast.Name)]
        for target in statement.targets:
            parts: list[str] = []
            at: ast.expr = target
            while isinstance(at, ast.Attribute):
                parts.insert(0, at.attr)
                at = at.value
            if parts and isinstance(at, ast.Name):
                dotted = sections.get(at.id, "") + ".".join(parts)
                sections |= dict.fromkeys(names, dotted + ".")  # node = cfg.SECTION = CfgNode()
                yield dotted, statement.value, statement.lineno


def keys_of(module: ModuleType, function: str) -> Iterator[Key]:
    """The keys that a function of a module defines, those of the functions it calls included."""
    source = inspect.getsource(module)
    said = comments(source)
    functions = {f.name: f for f in ast.parse(source).body if isinstance(f, ast.FunctionDef)}
    yield from _keys(functions, said, function, "", source.splitlines())


def _keys(
    functions: dict[str, ast.FunctionDef], said: dict[int, str], name: str, prefix: str, lines: list[str]
) -> Iterator[Key]:
    row: Key | None = None
    of_section = ""
    for key, value, line in assignments(functions[name]):
        called = value.func.id if isinstance(value, ast.Call) and isinstance(value.func, ast.Name) else ""
        if called in functions:
            if row:
                yield row
            row = None
            yield from _keys(functions, said, called, f"{prefix}{key}.", lines)
        text = said.get(line) or _above(said, line, lines)
        if called:
            of_section = text
            continue
        text, of_section = text or of_section, ""
        if text or row is None:
            if row:
                yield row
            row = Key([], [], text)
        row.names.append(prefix + key)
        row.defaults.append(ast.unparse(value))
    if row:
        yield row


def _above(said: dict[int, str], line: int, lines: list[str]) -> str:
    """The comment lines right above a line."""
    found: list[str] = []
    while line - 1 in said and lines[line - 2].lstrip().startswith("#"):
        line -= 1
        found.insert(0, said[line])
    return " ".join(found)


def table(rows: Iterator[Key]) -> str:
    """Rows as a Markdown table."""
    text = ["| key | default | meaning |", "|---|---|---|"]
    for row in rows:
        names = ", ".join(f"`{name}`" for name in row.names)
        defaults = ", ".join(f"`{value}`" for value in row.defaults)
        text.append(f"| {names} | {defaults} | {row.text.replace('|', chr(92) + '|')} |")
    return "\n".join(text)


def keys_page() -> str:
    """`reference/keys.md`."""
    import pretrain.keys
    from pretrain.methods import method_names

    parts = [KEYS_HEAD, "## Pre-training (`tools/pretrain.py`)\n", table(keys_of(pretrain.keys, "defaults")), ""]
    for name in method_names():
        method = importlib.import_module(f"pretrain.methods.{name}")
        if hasattr(method, "keys"):
            parts += [f"### `{name.upper()}.*`, of the method `{name}`\n", table(keys_of(method, "keys")), ""]
    evaluation = importlib.import_module("pretrain.evaluation.config")
    parts += ["## Evaluation (`tools/evaluate.py`)\n", table(keys_of(evaluation, "defaults")), ""]
    transfer = importlib.import_module("transfer.engine.config")
    parts += ["## Fine-tuning: `TRANSFER.*` (`tools/transfer.py`)\n", table(keys_of(transfer, "defaults")), ""]
    return "\n".join(parts)


def models() -> dict[str, type[FileFormat]]:
    """Every model of `ssl_transfer/formats` by its class name."""
    names = [m.name for m in pkgutil.iter_modules(ssl_transfer.formats.__path__)]
    modules = [importlib.import_module(f"ssl_transfer.formats.{name}") for name in names]
    found = [value for module in modules for value in vars(module).values() if inspect.isclass(value)]
    return {one.__name__: one for one in found if issubclass(one, FileFormat) and one is not FileFormat}


def fields_table(name: str) -> str:
    """A model's fields, and those of the models inside it, as one table."""
    return "\n".join(["| key | type | meaning |", "|---|---|---|", *_fields(models()[name], "")])


def _fields(model: type[FileFormat], prefix: str) -> Iterator[str]:
    schema = model.model_json_schema()
    for key, field in model.model_fields.items():
        name = field.alias or key
        kind = _type(schema["properties"][name])
        default = "" if field.is_required() else " (optional)"
        text = (field.description or "").replace("|", "\\|")
        yield f"| `{prefix}{name}` | {kind}{default} | {text} |"
        for inner in _models_in(field.annotation):
            many = "[]" if kind.startswith("list") else ".*" if kind.startswith("object of") else ""
            yield from _fields(inner, f"{prefix}{name}{many}.")


def _models_in(annotation: Any) -> Iterator[type[FileFormat]]:
    if inspect.isclass(annotation) and issubclass(annotation, FileFormat):
        yield annotation
    for part in get_args(annotation):
        yield from _models_in(part)


def _type(schema: dict[str, Any]) -> str:
    """A field's type in words: `string`, `list of number`, `object or null` …"""
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(_type(one) for one in schema["anyOf"]))
    if "const" in schema or "enum" in schema:
        return " or ".join(f"`{value}`" for value in schema.get("enum", [schema.get("const")]))
    kind = schema.get("type", "object" if "$ref" in schema else "any")
    if kind == "array":
        return f"list of {_type(schema['items'])}" if schema.get("items") else "list"
    inner = schema.get("additionalProperties")
    return f"object of {_type(inner)}" if kind == "object" and isinstance(inner, dict) and inner else kind


def formats_page() -> str:
    """`reference/formats.md`: the text that is there, with each table of fields made anew."""

    def fill(match: re.Match[str]) -> str:
        return f"<!-- fields: {match[1]} -->\n{fields_table(match[1])}\n<!-- end -->"

    text = (REFERENCE / "formats.md").read_text()
    return re.sub(r"<!-- fields: (\w+) -->.*?<!-- end -->", fill, text, flags=re.DOTALL)


def schemas() -> dict[Path, str]:
    """A JSON schema for each model that is a whole file."""
    found = {}
    for model in models().values():
        if "format" in model.model_fields:
            name = str(model.model_fields["format"].default).replace("/", "-")
            found[REFERENCE / "schemas" / f"{name}.json"] = json.dumps(model.model_json_schema(), indent=1) + "\n"
    return found


def pages() -> dict[Path, str]:
    """Every generated file with its text."""
    return {REFERENCE / "keys.md": keys_page(), REFERENCE / "formats.md": formats_page(), **schemas()}


def main(words: list[str] | None = None) -> int:
    """Write the pages, or compare them; exit 1 where one is out of date."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 where a page is out of date")
    args = parser.parse_args(words)
    texts = pages()
    stale = [path for path, text in texts.items() if not path.is_file() or path.read_text() != text]
    for path in stale:
        if not args.check:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(texts[path])
        print(("out of date: " if args.check else "written: ") + str(path.relative_to(ROOT)))
    return int(args.check and bool(stale))


if __name__ == "__main__":
    raise SystemExit(main())
