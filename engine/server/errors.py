"""Errors as OpenAI's service answers them: a status, and an object of message, type, param and code."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from typing import Any

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from stepfuse.display import brief, shortened
from stepfuse.errors import DeadlineError, EngineClosed, QueueFull, RequestTimeout, StepfuseError

logger = logging.getLogger("stepfuse.server")

INVALID, LIMIT, SERVER = "invalid_request_error", "rate_limit_error", "server_error"

#: What arguments of the engine are called in a request's body.
_IN_BODY: Mapping[str, str] = {
    "steps": "num_inference_steps",
    "cond": "prompt",
    "negative_cond": "negative_prompt",
    "options": "sampler_options",
    "deadline": "deadline_ms",
    "timeout": "timeout_ms",
    "control_scale": "control.scale",
    "control_range": "control.range",
    "width": "size",
    "height": "size",
}
#: Arguments of the engine that a request has under the same name.
_SAME = (
    "prompt",
    "negative_prompt",
    "sampler",
    "guidance_scale",
    "eta",
    "seed",
    "image",
    "mask",
    "strength",
    "lora",
    "control",
    "priority",
)


class ApiError(HTTPException):
    """An answer that is an error.

    Args:
        status: Of the response.
        message: The rule and the value.
        type: The kind of error.
        param: The field of the request that it is about.
        code: Of the error, for programs.
        headers: More headers of the response.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        type: str = INVALID,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(status, message, dict(headers or {}))
        self.body = {"error": {"message": shortened(message), "type": type, "param": param, "code": code}}


def of_one_replica(what: str, instead: str) -> ApiError:
    """The refusal of what one replica has, while any of several may be asked.

    Args:
        what: It has.
        instead: What to do.
    """
    message = f"{what} of one replica, and any of several may be asked here: {instead}"
    return ApiError(404, message, code="of_one_replica")


def api_error(error: BaseException, retry_after: int = 1) -> ApiError:
    """The answer to a request that the engine has refused, or that has failed.

    Args:
        error: What was raised.
        retry_after: Seconds after which a client may ask again, where that makes sense.
    """
    if isinstance(error, ApiError):
        return error
    later = {"Retry-After": str(retry_after)}
    if isinstance(error, QueueFull):
        return ApiError(429, str(error), type=LIMIT, code="queue_full", headers=later)
    if isinstance(error, DeadlineError):
        return ApiError(429, str(error), type=LIMIT, param="deadline_ms", code="deadline", headers=later)
    if isinstance(error, RequestTimeout):  # another try takes as long: clients of OpenAI's would try twice more
        never = {"x-should-retry": "false"}
        return ApiError(504, str(error), type="timeout_error", param="timeout_ms", code="timeout", headers=never)
    if isinstance(error, EngineClosed):
        return ApiError(503, str(error), type=SERVER, code="closed", headers=later)
    if isinstance(error, ValueError | TypeError) and not isinstance(error, StepfuseError):
        return _refusal(str(error), later)
    if not isinstance(error, StepfuseError):
        logger.error("a request failed", exc_info=error)
        return ApiError(500, "the service failed; its log says more, under this request's id", type=SERVER)
    return ApiError(500, str(error), type=SERVER, code=re.sub(r"(?<!^)(?=[A-Z])", "_", type(error).__name__).lower())


async def answer_error(request: Request, error: Exception) -> JSONResponse:
    """Answers any error in OpenAI's shape."""
    if isinstance(error, RequestValidationError):
        error = _invalid(error)
    elif isinstance(error, HTTPException) and not isinstance(error, ApiError):
        error = _of_framework(request, error)
    found = api_error(error)
    return JSONResponse(found.body, found.status_code, headers=found.headers)


def _refusal(message: str, later: Mapping[str, str]) -> ApiError:
    """An argument that is refused, in the words of the body."""
    name, _, rest = message.partition(" ")
    if message.startswith("deadline must lie ahead"):
        rule = "deadline_ms must leave time to draw: it passed before the request was queued"
        return ApiError(429, rule, type=LIMIT, param="deadline_ms", code="deadline", headers=later)
    if message.startswith("this model draws"):
        return ApiError(400, message, param="size")
    if name in _IN_BODY and _IN_BODY[name] != "size":
        return ApiError(400, f"{_IN_BODY[name]} {rest}", param=_IN_BODY[name])
    return ApiError(400, message, param=_IN_BODY.get(name, name if name in _SAME else None))


def _of_framework(request: Request, error: HTTPException) -> ApiError:
    """What the framework has refused: no such path, another method, a body that cannot be read."""
    where = f"{request.method} {brief(request.url.path)}"
    if error.status_code == 404:
        return ApiError(404, f"there is no {where}: /openapi.json lists what there is", code="not_found")
    if error.status_code == 405:
        return ApiError(405, f"{where} is not allowed", code="method_not_allowed", headers=error.headers)
    cause = f": {error.__cause__}" if error.__cause__ is not None else ""
    return ApiError(error.status_code, f"{error.detail}{cause}", headers=error.headers)


#: What to do in the place of a setting that other services have.
_INSTEAD = {"style": ": say it in the prompt", "input_fidelity": ": say it by strength"}


def _invalid(error: RequestValidationError) -> ApiError:
    """The first of what is wrong with a body."""
    first: Mapping[str, Any] = error.errors()[0]
    where = [str(one) for one in first["loc"] if one != "body"]
    kind, message = first["type"], first["msg"]
    if kind == "json_invalid":
        return ApiError(400, f"the body must be JSON: {first.get('ctx', {}).get('error', message)}", code=kind)
    name = ".".join(where) or "the body"
    if kind == "missing":
        return ApiError(400, f"{name} must be given", param=name, code=kind)
    if kind == "value_error":  # a check of ours, which says the field and the value
        rule = message.removeprefix("Value error, ")
        return ApiError(400, rule, param=rule.partition(" ")[0])
    given = brief(first.get("input"))
    if kind == "extra_forbidden":
        return ApiError(400, f"{name} is no field of this request, got {given}", param=name)
    rule = re.sub(r"^(Input|String|List|Field) should ", "must ", message)
    rule = rule.replace("greater than or equal to", "at least").replace("less than or equal to", "at most")
    instead = _INSTEAD.get(where[-1] if where else "", "")
    return ApiError(400, f"{name} {rule}, got {given}{instead}", param=name)
