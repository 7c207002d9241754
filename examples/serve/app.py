"""The HTTP side of the KServe v2 protocol, for one bundle."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from examples.serve.pool import Pool
from examples.serve.protocol import VERSION, RequestError, answer, model_metadata, parse_request
from pipeline.errors import DeployError
from pipeline.manifest import Manifest
from targets.base import Engine

HEADER_LENGTH = "Inference-Header-Content-Length"
EXTENSIONS = ["binary_tensor_data", "classification"]
MODEL = "/v2/models/{name}"
MODEL_VERSION = MODEL + "/versions/{version}"


@dataclass(frozen=True)
class Limits:
    """What one client may ask of the server."""

    request_bytes: int = 16 << 20
    read_seconds: float = 30.0  # to send a request in


def make_app(manifest: Manifest, pool: Pool, limits: Limits) -> FastAPI:
    """The server of one model."""
    # the pages about the API would load scripts from outside
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None, redirect_slashes=False)
    app.add_exception_handler(DeployError, _refused)
    app.add_exception_handler(HTTPException, _not_found)
    _add_health(app, manifest)
    _add_model(app, manifest)

    @app.post(MODEL + "/infer")
    @app.post(MODEL_VERSION + "/infer")
    async def infer(request: Request, name: str, version: str = VERSION) -> Response:
        _require(manifest, name, version)
        with pool.place():
            json_bytes = _json_bytes(request)
            body = await _body(request, limits)
            return await pool.run(lambda engine: _inferred(engine, body, json_bytes, manifest))

    return app


def _add_health(app: FastAPI, manifest: Manifest) -> None:
    """Requests come in only while the engines are loaded: who gets an answer, gets a yes."""

    @app.get("/v2/health/live")
    async def live() -> dict[str, bool]:
        return {"live": True}

    @app.get("/v2/health/ready")
    async def ready() -> dict[str, bool]:
        return {"ready": True}

    @app.get("/v2")
    @app.get("/v2/")
    async def server() -> dict[str, Any]:
        return {"name": "wgates", "version": manifest.wgates, "extensions": EXTENSIONS}


def _add_model(app: FastAPI, manifest: Manifest) -> None:
    @app.get(MODEL)
    @app.get(MODEL_VERSION)
    async def model(name: str, version: str = VERSION) -> dict[str, Any]:
        _require(manifest, name, version)
        return model_metadata(manifest)

    @app.get(MODEL + "/ready")
    @app.get(MODEL_VERSION + "/ready")
    async def model_ready(name: str, version: str = VERSION) -> dict[str, Any]:
        _require(manifest, name, version)
        return {"name": manifest.name, "ready": True}


def _require(manifest: Manifest, name: str, version: str) -> None:
    if (name, version) != (manifest.name, VERSION):
        raise RequestError(
            f"there is no model {name!r} of version {version!r}",
            status=404,
            fix=f"there is {manifest.name!r} of version {VERSION!r}",
        )


def _json_bytes(request: Request) -> int | None:
    """How much of the body is JSON; None: all of it."""
    if request.headers.get("content-encoding", "identity") != "identity":
        raise RequestError("compressed requests are not taken", status=415)
    text = request.headers.get(HEADER_LENGTH)
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise RequestError(f"{HEADER_LENGTH} is no number of bytes: {text!r}")
    return int(text)


async def _body(request: Request, limits: Limits) -> bytes:
    """The whole body, unless it is too long or too slow."""
    _require_size(int(request.headers.get("content-length", 0)), limits)
    parts: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(limits.read_seconds):
            async for part in request.stream():
                size += len(part)
                _require_size(size, limits)
                parts.append(part)
    except TimeoutError as error:
        late = f"the request took longer than {limits.read_seconds:g} s to arrive"
        raise RequestError(late, status=408) from error
    except ClientDisconnect as error:
        raise RequestError("the client went away") from error
    return b"".join(parts)


def _require_size(size: int, limits: Limits) -> None:
    if size > limits.request_bytes:
        raise RequestError(
            f"the request has more than {limits.request_bytes} bytes",
            status=413,
            fix="send fewer images, or start the server with a larger --max-request-mb",
        )


def _inferred(engine: Engine, body: bytes, json_bytes: int | None, manifest: Manifest) -> Response:
    """Parsed, computed and written on the engine's thread: the event loop only moves bytes."""
    request = parse_request(body, json_bytes, manifest)
    content, length = answer(request, engine.infer(request.images), manifest)
    if length is None:
        return Response(content, media_type="application/json")
    return Response(
        content, media_type="application/octet-stream", headers={HEADER_LENGTH: str(length)}
    )


async def _refused(_request: Request, error: Exception) -> Response:
    status = error.status if isinstance(error, RequestError) else 500
    return _error(str(error), status, {})


async def _not_found(_request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return _error(error.detail, error.status_code, error.headers or {})


def _error(message: str, status: int, headers: Mapping[str, str]) -> Response:
    # what is left of a request that was not read to its end must not be taken for the next one
    closing = {"connection": "close"} if status in (408, 413, 415, 503) else {}
    return JSONResponse({"error": message}, status, {**headers, **closing})
