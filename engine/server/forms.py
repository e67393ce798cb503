"""Forms with pictures, as the bodies that they stand for."""

from __future__ import annotations

import json
import re
from typing import Any

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.datastructures import UploadFile

from stepfuse.display import brief
from stepfuse.server.errors import ApiError
from stepfuse.server.schema import Edit

_FILES, _FIELDS = 4, 64  # most of a form
_OBJECTS = "sampler_options", "lora"  # fields that are JSON, or a field an entry
_ENTRY = re.compile(r"(sampler_options|lora)\[([^\[\]]{1,200})\]")


async def edit_of(request: Request) -> Edit:
    """The body of an edit.

    ``sampler_options`` is a text of JSON, or a field ``sampler_options[NAME]`` an option, as OpenAI's client sends it;
    so is ``lora``.

    Raises:
        ApiError: If the body is no form, or a field comes twice.
        RequestValidationError: If a field is refused.
    """
    kind = request.headers.get("content-type", "")
    if not kind.startswith("multipart/form-data"):
        raise ApiError(400, f"the body must be multipart/form-data, got {brief(kind)}", code="no_form")
    found: dict[str, Any] = {}
    entries: dict[str, dict[str, Any]] = {}
    async with request.form(max_files=_FILES, max_fields=_FIELDS) as form:
        for key, value in form.multi_items():
            name = key.removesuffix("[]")
            if name in found:
                raise ApiError(400, f"{name} must be given once: one picture is edited at a time", param=name)
            text = await value.read() if isinstance(value, UploadFile) else value
            if (entry := _ENTRY.fullmatch(name)) and isinstance(text, str):
                entries.setdefault(entry[1], {})[entry[2]] = _json(text)
            else:
                found[name] = _json(text) if name in _OBJECTS and isinstance(text, str) else text
    found |= entries
    try:
        return Edit.model_validate(found)
    except ValidationError as error:
        raise RequestValidationError(error.errors()) from error


def _json(text: str) -> Any:
    """What a text is as JSON, or else the text."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text
