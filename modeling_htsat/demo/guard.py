"""What stands before Gradio's server: the routes that the page needs, and of files those alone that were uploaded.

Gradio keeps its own watch too. This one does not depend on its release, is short enough to be read, and also closes
what Gradio leaves open on purpose: fetching files from addresses that a visitor names.
"""

import json
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from starlette.formparsers import MultiPartException
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

FILE_ROUTE = "/gradio_api/file="
UPLOAD_ROUTE = "/gradio_api/upload"
# Everything else is not there: proxies, deep links, component servers, what developers use, and calls (`run`, `api`,
# `call`) that go past the queue, in which so many wait and no more, or in by another of its doors.
READ = re.compile(
    r"/|/(config|theme\.css|favicon\.ico|manifest\.json|robots\.txt)/?|/(assets|static)/.*"
    r"|/gradio_api/(info|startup-events|app_id|login_check|queue/data|queue/status|upload_progress)/?"
    r"|/gradio_api/(heartbeat/\w+|file=.*)",
    re.DOTALL,
)
WRITE = re.compile(r"/gradio_api/((upload|queue/join|cancel|reset)/?|stream/\w+(/close)?)")
MAX_BODY_BYTES = 2**20  # of a request that is no upload: sliders and names
UPLOAD_SLACK_BYTES = 2**16  # names and boundaries around the files
NOT_UPLOADED = "Only what was uploaded to this page can be heard: upload the file first."


class OnlyUploads:
    """ASGI middleware: refuses every route that is not listed, and every file that is not in the folder of uploads."""

    def __init__(self, app: ASGIApp, uploads: Path, max_megabytes: int):
        self.app, self.uploads, self.max_megabytes = app, uploads.resolve(), max_megabytes
        self.max_upload_bytes = max_megabytes * 10**6 + UPLOAD_SLACK_BYTES

    async def __call__(self, scope: Scope, receive: Receive, send: Send):
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return
        request = Request(scope, receive)
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        is_for_upload = path.rstrip("/") == UPLOAD_ROUTE
        refusal = self._refusal(request, path, is_for_upload)
        if refusal is None and is_for_upload:
            await self._take_upload(scope, receive, send)
            return
        if refusal is None and request.method == "POST":
            body = await _read_body(request)
            refusal = self._refusal_of_body(body)
            receive = _replayed(body or b"", receive)
        await (refusal or self.app)(scope, receive, send)

    async def _take_upload(self, scope: Scope, receive: Receive, send: Send):
        """Pass on what is uploaded as long as it is not too much. Gradio counts each file of a request by itself."""
        num_bytes = 0

        async def receive_some() -> Message:
            nonlocal num_bytes
            message = await receive()
            num_bytes += len(message.get("body", b""))
            if num_bytes > self.max_upload_bytes or message["type"] == "http.disconnect":
                # Of this error Gradio knows that the files it has begun are to be deleted.
                raise MultiPartException("This upload is too long, or broke off.")
            return message

        async def send_unless_too_long(message: Message):
            if num_bytes <= self.max_upload_bytes:
                await send(message)

        with suppress(MultiPartException):
            await self.app(scope, receive_some, send_unless_too_long)
        if num_bytes > self.max_upload_bytes:
            await self._too_long()(scope, receive, send)

    def _too_long(self) -> PlainTextResponse:
        return PlainTextResponse(f"This page takes uploads of {self.max_megabytes} MB at most.", 413)

    def _refusal(self, request: Request, path: str, is_for_upload: bool) -> PlainTextResponse | None:
        known = {"GET": READ, "HEAD": READ, "POST": WRITE}.get(request.method)
        if known is None or not known.fullmatch(path):
            return PlainTextResponse("There is no such page.", 404)
        if path.startswith(FILE_ROUTE) and not self.is_upload(path.removeprefix(FILE_ROUTE)):
            return PlainTextResponse("There is no such file.", 403)
        num_bytes = request.headers.get("content-length", "0")
        if is_for_upload and num_bytes.isdecimal() and int(num_bytes) > self.max_upload_bytes:
            return self._too_long()
        return None

    def _refusal_of_body(self, body: bytes | None) -> PlainTextResponse | None:
        if body is None:
            return PlainTextResponse("This request is too long.", 413)
        try:
            named = list(_named_files(json.loads(body or b"null")))
        except (ValueError, RecursionError):
            return PlainTextResponse("This request is not JSON.", 400)
        return None if all(map(self.is_upload, named)) else PlainTextResponse(NOT_UPLOADED, 403)

    def is_upload(self, name: Any) -> bool:
        """Whether this is the path of a file in the folder of uploads, wherever links and dots lead.

        One that is not there is none of anybody's: it may be on its way still.
        """
        if not isinstance(name, str) or urlsplit(name.strip()).scheme:
            return False
        try:
            path = Path(name).resolve()
            return path.is_relative_to(self.uploads) and not path.is_dir()
        except (OSError, ValueError, RuntimeError):
            return False


def _named_files(payload: Any) -> Iterator[Any]:
    """All that a request says to be the path of a file."""
    if isinstance(payload, dict):
        if "path" in payload:
            yield payload["path"]
        payload = list(payload.values())
    if isinstance(payload, list):
        for inner in payload:
            yield from _named_files(inner)


async def _read_body(request: Request) -> bytes | None:
    """The whole body, or None where it is too long."""
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > MAX_BODY_BYTES:
            return None
    return body


def _replayed(body: bytes, receive: Receive) -> Receive:
    """Give the application the body that was read already, and then what comes after it."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def next_message() -> Message:
        return messages.pop() if messages else await receive()

    return next_message


__all__ = ["OnlyUploads"]
