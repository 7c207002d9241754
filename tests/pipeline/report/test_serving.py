"""The local server: what it answers, to whom, and how it ends."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from pipeline.check.page import write_page
from pipeline.cli import main
from pipeline.errors import DeployError
from pipeline.report.serving import open_server

from .examples import check_result

PIPELINE = Path(sys.executable).with_name("pipeline")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "runs"
    root.mkdir()
    write_page(root / "a check.html", check_result(), [])
    (tmp_path / "secret.html").write_text("secret")
    return root


@pytest.fixture
def port(folder: Path) -> Iterator[int]:
    with open_server(folder, "127.0.0.1", 0) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


def ask(
    port: int, path: str, *, method: str = "GET", host: str = "127.0.0.1"
) -> tuple[int, dict[str, str], str]:
    """(status, headers, body)"""
    connection = HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.putrequest(method, path, skip_host=True)
        connection.putheader("Host", f"{host}:{port}")
        connection.endheaders()
        answer = connection.getresponse()
        return answer.status, dict(answer.getheaders()), answer.read().decode()
    finally:
        connection.close()


def test_the_listing_links_to_a_page_that_is_there(port: int) -> None:
    status, headers, body = ask(port, "/")
    assert status == 200
    assert headers["Content-Type"] == "text/html; charset=utf-8"
    assert headers["Content-Security-Policy"].startswith("default-src 'none'")
    assert headers["X-Content-Type-Options"] == "nosniff"
    (link,) = [part.split('"')[0] for part in body.split('href="')[1:]]
    status, _, page = ask(port, link)
    assert status == 200
    assert "resnet20-new against resnet20-main" in page


@pytest.mark.parametrize(
    "path",
    [
        "/secret.html",
        "/../secret.html",
        "/page",
        "/page?of=",
        "/page?of=../secret.html",
        "/page?of=..%2Fsecret.html",
        "/page?of=a%20check.html%00",
        "/a%20check.html",
    ],
)
def test_nothing_else_is_there(port: int, path: str) -> None:
    status, _, body = ask(port, path)
    assert (status, body) == (404, "there is nothing of this name\n")


def test_head_has_no_body_and_other_methods_do_nothing(port: int) -> None:
    status, headers, body = ask(port, "/", method="HEAD")
    assert (status, body) == (200, "")
    assert int(headers["Content-Length"]) > 1000
    assert ask(port, "/", method="POST")[0] == 501


def test_another_sites_name_learns_nothing(port: int) -> None:
    assert ask(port, "/", host="evil.example")[0] == 404
    assert ask(port, "/", host="localhost")[0] == 200


def test_what_is_no_address_is_told(port: int) -> None:
    assert ask(port, "/", host="[")[0] == 400
    assert ask(port, "/")[0] == 200


def test_a_damaged_item_is_told_with_its_fix(port: int, folder: Path) -> None:
    path = folder / "a check.html"
    path.write_text(path.read_text().replace('"candidate"', '"nobody"'))
    status, _, body = ask(port, "/page?of=a%20check.html")
    assert status == 422
    assert "is damaged" in body
    assert "fix: run the check again" in body


def test_a_port_that_is_taken_is_told(port: int, folder: Path) -> None:
    with pytest.raises(DeployError, match="cannot listen on") as caught:
        open_server(folder, "127.0.0.1", port)
    assert "--port" in caught.value.fix
    with pytest.raises(DeployError, match="cannot listen on"):
        open_server(folder, "127.0.0.1", 70_000)
    with pytest.raises(DeployError, match="is no folder"):
        open_server(folder / "nowhere", "127.0.0.1", 0)


def test_control_c_ends_it_in_silence(folder: Path) -> None:
    process = subprocess.Popen(
        [PIPELINE, "report", folder, "--serve", "--port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    address = process.stdout.readline()
    try:
        assert address.startswith("http://127.0.0.1:")
        assert ask(int(address.split(":")[2].split("/")[0]), "/")[0] == 200
    finally:
        process.send_signal(signal.SIGINT)
        out, error = process.communicate(timeout=30)
    assert (process.returncode, out, error) == (0, "ended\n", "")


def invoke(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (("--serve", "--out", "x.html"), "--serve writes nothing"),
        (("--port", "0"), "need --serve"),
        (("--host", "0.0.0.0"), "need --serve"),
    ],
)
def test_flags_that_would_do_nothing_are_wrong_usage(
    folder: Path, flags: tuple[str, ...], complaint: str
) -> None:
    result = invoke("report", folder, *flags)
    assert result.exit_code == 2
    assert complaint in result.stderr
