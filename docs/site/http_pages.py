"""The page of the HTTP service: paths, parameters, fields and answers, as ``/openapi.json`` has them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import stepfuse as sf
from stepfuse.server import create_app

_INTRODUCTION = """# HTTP

Made of the `/openapi.json` that `stepfuse serve` answers with. [The HTTP service](../http.md) says how the fields work
together, with errors, streams, keys and metrics.
"""


def pages() -> Iterator[tuple[str, str]]:
    """One page with all paths and all schemas."""
    with sf.Engine.from_callable(lambda x, t, cond: x, shape=(1, 8, 8), schedule=sf.NoiseSchedule.linear()) as engine:
        document = create_app({"model": engine}, warm_up=False).openapi()
    parts = [_INTRODUCTION, "## Paths"]
    for path, methods in document["paths"].items():
        parts += [_operation(method, path, operation) for method, operation in methods.items()]
    parts.append("## Schemas")
    parts += [_schema(name, schema) for name, schema in document["components"]["schemas"].items()]
    yield "reference/http.md", "\n\n".join(parts) + "\n"


def _operation(method: str, path: str, operation: Mapping[str, Any]) -> str:
    parts = [f"### `{method.upper()} {path}`", operation.get("summary", "") + ".", operation.get("description", "")]
    if parameters := operation.get("parameters"):
        rows = [(one["name"], _type(one["schema"]), one.get("description", "")) for one in parameters]
        parts.append(_table(("parameter", "type", "what")[: 3 if any(row[2] for row in rows) else 2], rows))
    for kind, content in operation.get("requestBody", {}).get("content", {}).items():
        parts.append(f"Body: `{kind}`, {_type(content['schema'])}.")
    answers = []
    for status, answer in operation["responses"].items():
        contents = ", ".join(
            f"`{kind}`" + (f", {_type(content['schema'])}" if content.get("schema") else "")
            for kind, content in answer.get("content", {}).items()
        )
        answers.append((status, answer["description"], contents))
    parts.append(_table(("status", "answer", "content"), answers))
    return "\n\n".join(part for part in parts if part)


def _schema(name: str, schema: Mapping[str, Any]) -> str:
    required = schema.get("required", ())
    rows = [
        (field, _type(one) + (", required" if field in required else ""), _about(one))
        for field, one in schema.get("properties", {}).items()
    ]
    about = " ".join(schema.get("description", "").replace("``", "`").split())
    fields = [_table(("field", "type", "what"), rows)] if rows else []
    return "\n\n".join([f"### {name}", *([about] if about else []), *fields])


def _about(field: Mapping[str, Any]) -> str:
    """A field's description, with its default and bounds."""
    one = next((part for part in field.get("anyOf", ()) if part.get("type") != "null"), field)
    names = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}
    said = [f"{word} {one[key]}" for key, word in names.items() if key in one]
    said += [f"at most {one['maxLength']} characters"] if "maxLength" in one else []
    said += [f"default `{field['default']}`"] if field.get("default") not in (None, {}, []) else []
    return f"{field.get('description', '')} ({', '.join(said)})" if said else field.get("description", "")


def _type(schema: Mapping[str, Any]) -> str:
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if "anyOf" in schema:
        return " or ".join(_type(one) for one in schema["anyOf"])
    if "enum" in schema or "const" in schema:
        return " or ".join(f"`{value}`" for value in schema.get("enum", [schema.get("const")]))
    if schema.get("type") == "array":
        return f"array of {_type(schema.get('items', {}))}"
    return str(schema.get("type", "any"))


def _table(heads: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    for first, *rest in (row[: len(heads)] for row in rows):
        cells = [f"`{first}`", *(" ".join(cell.split()).replace("|", "\\|") for cell in rest)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
