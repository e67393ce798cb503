"""Forms with pictures, as the bodies that they stand for."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.datastructures import UploadFile

from stepfuse.display import brief
from stepfuse.server.encoding import as_base64
from stepfuse.server.errors import ApiError
from stepfuse.server.schema import Edit

_FILES, _FIELDS = 18, 128  # most of a form: image and mask, and as many ControlNets as a model may have
_OBJECTS = "sampler_options", "lora", "control"  # fields that are JSON, or a field an entry
_ENTRY = re.compile(r"(sampler_options|lora|control)((?:\[[^\[\]]{1,200}\]){1,2})(\[\])?")


async def edit_of(request: Request) -> Edit:
    """The body of an edit.

    ``sampler_options`` is a text of JSON, or a field ``sampler_options[NAME]`` an option, as OpenAI's client sends it,
    and ``sampler_options[NAME][]`` a value of a list; so are ``lora`` and ``control``, of which
    ``control[NAME][image]`` may be a file.

    Raises:
        ApiError: If the body is no form, or a field comes twice.
        RequestValidationError: If a field is refused.
    """
    kind = request.headers.get("content-type", "")
    if not kind.startswith("multipart/form-data"):
        raise ApiError(400, f"the body must be multipart/form-data, got {brief(kind)}", code="no_form")
    found: dict[str, Any] = {}
    entries: dict[str, Any] = {}
    async with request.form(max_files=_FILES, max_fields=_FIELDS) as form:
        for key, value in form.multi_items():
            text = await value.read() if isinstance(value, UploadFile) else value
            if entry := _ENTRY.fullmatch(key):
                path = entry[1], *entry[2][1:-1].split("][")
                _enter(entries, path, as_base64(text) if isinstance(text, bytes) else _json(text), among=bool(entry[3]))
                continue
            name = key.removesuffix("[]")
            if name in found:
                raise ApiError(400, f"{name} must be given once: one picture is edited at a time", param=name)
            found[name] = _json(text) if name in _OBJECTS and isinstance(text, str) else text
    found |= entries
    try:
        return Edit.model_validate(found)
    except ValidationError as error:
        raise RequestValidationError(error.errors()) from error


def _enter(into: dict[str, Any], path: Sequence[str], value: Any, *, among: bool) -> None:
    """Puts a value, or one of a list of them, where a path of names leads.

    Raises:
        ApiError: If something is there.
    """
    *parents, last = path
    for parent in parents:
        into = into.setdefault(parent, {}) if isinstance(into, dict) else {}
    if among and isinstance(into, dict) and isinstance(into.setdefault(last, []), list):
        into[last].append(value)
    elif among or not isinstance(into, dict) or last in into:
        raise ApiError(400, f"{brief('.'.join(path))} must be given once", param=path[0])
    else:
        into[last] = value


def _json(text: str) -> Any:
    """What a text is as JSON, or else the text."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text
