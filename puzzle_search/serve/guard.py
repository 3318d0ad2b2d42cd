"""What is checked of a request before its body is read: the key, and the body's size."""

from __future__ import annotations

import hmac

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

LARGEST_BODY_BYTES = 4 * 2**20


def error_response(
    status: int, message: str, *, kind: str, code: str | None = None
) -> JSONResponse:
    """An error as OpenAI's clients read it."""
    error = {"message": message, "type": kind, "param": None, "code": code}
    return JSONResponse({"error": error}, status_code=status)


class Guard:
    """Answers requests that may not pass.

    Args:
        app: what answers the others.
        api_key: that requests below ``/v1`` must carry, if any.
    """

    def __init__(self, app: ASGIApp, *, api_key: str | None) -> None:
        self._app = app
        self._expected = f"Bearer {api_key}".encode() if api_key else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See the class."""
        refused = self._refusal(scope) if scope["type"] == "http" else None
        await (refused or self._app)(scope, receive, send)

    def _refusal(self, scope: Scope) -> JSONResponse | None:
        headers = Headers(scope=scope)
        given = headers.get("authorization", "").encode()
        if (
            self._expected is not None
            and scope["path"].startswith("/v1")
            and not hmac.compare_digest(given, self._expected)
        ):
            return error_response(
                401, "the API key is missing or wrong", kind="authentication_error"
            )
        if scope["method"] != "POST":
            return None
        length = headers.get("content-length", "")
        if not length.isdecimal():
            return error_response(411, "Content-Length is missing", kind="invalid_request_error")
        if int(length) > LARGEST_BODY_BYTES:
            return error_response(
                413, f"the body exceeds {LARGEST_BODY_BYTES} bytes", kind="invalid_request_error"
            )
        return None
