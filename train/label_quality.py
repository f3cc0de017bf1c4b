"""A page to label samples with the keyboard: `python -m train.label_quality --data FOLDER --labels FILE --kind mask`.

It is served on this machine's loopback alone, and to pages of its own address alone: another site that a browser has
open can neither read it nor send it anything.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from text2layer_core.png import write_png
from text2layer_core.quality import KINDS
from train.labelling import Session
from train.quality_samples import SampleFiles

_HOST = "127.0.0.1"
_NAMES = (_HOST, "localhost")
_PAGE = Path(__file__).with_name("label_page.html")
_MOST_BYTES = 4096
_POLICY = "default-src 'self'; img-src 'self' data:; script-src 'unsafe-inline'; style-src 'unsafe-inline'"


class LabelServer(ThreadingHTTPServer):
    """The page's server, on loopback; `address` is where to look."""

    daemon_threads = True

    def __init__(self, session: Session, port: int = 0) -> None:
        """Listens; port 0 takes a free one.

        Raises:
            OSError: the port is taken.
        """
        self.session = session
        super().__init__((_HOST, port), partial(_Handler, session))

    @property
    def address(self) -> str:
        """The page."""
        return f"http://{_HOST}:{self.server_port}/"

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ANN401 - the base class's own
        """Nothing of a browser that no longer wants its pictures: quick keys cancel them."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    """GET / and picture/INDEX/VIEW.png, POST act."""

    def __init__(self, session: Session, *arguments: Any) -> None:  # noqa: ANN401 - the base class's own
        self._session = session
        super().__init__(*arguments)

    def do_GET(self) -> None:
        """The page and its pictures."""
        if not self._is_ours():
            return
        path = unquote(urlsplit(self.path).path)
        if path == "/":
            self._answer(HTTPStatus.OK, "text/html; charset=utf-8", _PAGE.read_bytes())
            return
        parts = path.removeprefix("/picture/").removesuffix(".png").split("/")
        if not path.startswith("/picture/") or len(parts) != 2 or not parts[0].isdecimal():
            self._fail(HTTPStatus.NOT_FOUND, f"no such page: {path}")
            return
        try:
            picture = self._session.view(int(parts[0]), parts[1])
        except ValueError as error:
            self._fail(HTTPStatus.NOT_FOUND, str(error))
            return
        data = io.BytesIO()
        write_png(data, picture[0])
        self._answer(HTTPStatus.OK, "image/png", data.getvalue())

    def do_POST(self) -> None:
        """A key."""
        if not self._is_ours():
            return
        length = self.headers.get("Content-Length", "")
        if urlsplit(self.path).path != "/act" or not length.isdecimal() or int(length) > _MOST_BYTES:
            self._fail(HTTPStatus.NOT_FOUND, "a key must be sent to act, in few bytes")
            return
        try:
            sent = json.loads(self.rfile.read(int(length)))
            if not isinstance(sent, dict) or type(sent.get("index")) is not int:
                raise ValueError("a key must come with action and index")
            state = self._session.act(str(sent.get("action")), sent["index"])
        except ValueError as error:
            self._fail(HTTPStatus.BAD_REQUEST, str(error))
        except OSError as error:
            self._fail(HTTPStatus.INSUFFICIENT_STORAGE, f"not saved: {error}")
        else:
            self._answer(HTTPStatus.OK, "application/json", json.dumps(state).encode())

    def log_message(self, format: str, *args: Any) -> None:  # noqa: ANN401 - the base class's own
        """Nothing: one line a picture would hide what matters."""

    def _is_ours(self) -> bool:
        """Whether the request names this server as its host, and comes from its page.

        A foreign name that was made to point at 127.0.0.1 (DNS rebinding) stands in the Host header; another site's
        script, in Origin; its form or picture, in Sec-Fetch-Site.
        """
        port = self.connection.getsockname()[1]
        hosts = {f"{name}:{port}" for name in _NAMES}
        origin, site = self.headers.get("Origin"), self.headers.get("Sec-Fetch-Site", "none")
        if self.client_address[0] != _HOST or self.headers.get_all("Host") not in [[host] for host in hosts]:
            self._fail(HTTPStatus.FORBIDDEN, f"this page is at {_HOST}:{port} alone")
        elif origin not in (None, *(f"http://{host}" for host in hosts)) or site not in ("none", "same-origin"):
            self._fail(HTTPStatus.FORBIDDEN, "requests of other pages are refused")
        elif self.command == "POST" and self.headers.get_content_type() != "application/json":
            self._fail(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "a key must be sent as application/json")
        else:
            return True
        return False

    def _fail(self, status: HTTPStatus, message: str) -> None:
        self.close_connection = True
        self._answer(status, "application/json", json.dumps({"error": message}).encode())

    def _answer(self, status: HTTPStatus, kind: str, data: bytes) -> None:
        self.send_response(status)
        for name, value in (("Content-Type", kind), ("Content-Length", str(len(data))), ("Cache-Control", "no-store"),
                            ("Content-Security-Policy", _POLICY), ("X-Content-Type-Options", "nosniff"),
                            ("X-Frame-Options", "DENY"), ("Cross-Origin-Resource-Policy", "same-origin")):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)


def main(argv: Sequence[str] | None = None) -> int:
    """Serves until Ctrl-C; 2 on bad input, with one line."""
    parser = argparse.ArgumentParser(prog="python -m train.label_quality", description=__doc__)
    parser.add_argument("--data", required=True, help="folder of samples, or a glob of .tar shards")
    parser.add_argument("--labels", type=Path, required=True, help="CSV to write to and go on with: key,label")
    parser.add_argument("--kind", choices=KINDS, required=True, help="what is judged")
    parser.add_argument("--port", type=int, default=0, help="of the page (default: a free one)")
    arguments = parser.parse_args(argv)
    try:
        if not 0 <= arguments.port < 65536:
            raise ValueError(f"--port must lie in [0, 65535], got {arguments.port}")
        labels = arguments.labels.expanduser()
        server = LabelServer(Session(SampleFiles(arguments.data), labels, arguments.kind), arguments.port)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    with server:
        print(f"{server.address}  (Ctrl-C ends it; labels are in {labels})", flush=True)
        with suppress(KeyboardInterrupt):
            server.serve_forever()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
