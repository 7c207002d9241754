"""`pipeline report FOLDER --serve`: its runs, bundles and check pages on a local web page."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path
from socketserver import TCPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from pipeline.errors import DeployError
from pipeline.report.folder import item_page, listing_page

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; "
    "script-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


class Pages(BaseHTTPRequestHandler):
    """Answers `/` with the listing and `/page?of=PATH` with what is listed under PATH."""

    server_version, sys_version = "wgates", ""
    protocol_version = "HTTP/1.1"

    def __init__(self, *given: Any, folder: Path) -> None:
        self.folder = folder
        super().__init__(*given)  # answers the request

    def do_GET(self) -> None:  # noqa: N802
        try:
            page = self._page() if self._is_for_us() else None
        except DeployError as error:
            self._answer(HTTPStatus.UNPROCESSABLE_ENTITY, f"{error.message}\nfix: {error.fix}\n")
            return
        except ValueError:  # of urllib
            self._answer(HTTPStatus.BAD_REQUEST, "this is no address\n")
            return
        if page is None:
            self._answer(HTTPStatus.NOT_FOUND, "there is nothing of this name\n")
        else:
            self._answer(HTTPStatus.OK, page, kind="text/html")

    do_HEAD = do_GET  # noqa: N815

    def _page(self) -> str | None:
        asked = urlsplit(self.path)
        if asked.path == "/":
            return listing_page(self.folder)
        if asked.path != "/page":
            return None
        return item_page(self.folder, parse_qs(asked.query).get("of", [""])[0])

    def _is_for_us(self) -> bool:
        """Other sites' scripts reach loopback under a name of theirs: they learn nothing."""
        server = self.server
        assert isinstance(server, ThreadingHTTPServer)
        bound = server.server_name
        if not ip_address(bound).is_loopback:
            return True
        return urlsplit(f"//{self.headers.get('Host', '')}").hostname in (bound, "localhost")

    def _answer(self, status: HTTPStatus, text: str, *, kind: str = "text/plain") -> None:
        content = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(content)))
        for name, value in HEADERS.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: a page that is looked at is no event."""


def open_server(folder: Path, host: str, port: int) -> ThreadingHTTPServer:
    """A server that listens, of a folder; port 0: any free one. DeployError if it cannot."""
    if not folder.is_dir():
        raise DeployError(f"{folder} is no folder", fix="give the folder that holds the runs")
    try:
        return _Server((host, port), partial(Pages, folder=folder))
    except (OSError, OverflowError) as error:
        raise DeployError(
            f"cannot listen on {host}:{port}: {error}", fix="give another --port, or another --host"
        ) from error


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def server_bind(self) -> None:
        """As the library does it, without asking a name server for our own name."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A reader who has left in the middle is no fault; anything else shows itself."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


def serve(folder: Path, host: str, port: int, told: Callable[[str], object]) -> None:
    """Answer until Ctrl-C; `told` hears the address."""
    with open_server(folder, host, port) as server:
        told(f"http://{host}:{server.server_port}/  (Ctrl-C ends it)")
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            told("ended")
