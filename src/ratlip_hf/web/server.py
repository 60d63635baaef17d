"""Serving an exported page on this machine, with the headers and types that a browser wants."""

import functools
import os
import sys
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

from .export import CSP

HOST = "127.0.0.1"


class _Handler(SimpleHTTPRequestHandler):
    # Not those of the system's registry, which on some machines has no type for modules.
    extensions_map = {
        "": "application/octet-stream",
        ".css": "text/css; charset=utf-8",
        ".gz": "application/gzip",
        ".html": "text/html; charset=utf-8",
        ".js": "text/javascript; charset=utf-8",
        ".json": "application/json",
        ".mjs": "text/javascript; charset=utf-8",
        ".svg": "image/svg+xml",
    }

    def end_headers(self) -> None:
        self.send_header("Content-Security-Policy", f"{CSP}; frame-ancestors 'none'")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Referrer-Policy", "no-referrer")
        self.send_header("Cache-Control", "no-cache")  # asked again each time: a second export is seen at once
        super().end_headers()

    def list_directory(self, path):
        self.send_error(404, "File not found")

    def log_message(self, format, *args) -> None:
        pass


class _Server(ThreadingHTTPServer):
    def handle_error(self, request, client_address) -> None:
        if not isinstance(sys.exception(), ConnectionError):  # a tab that was closed while it loaded
            super().handle_error(request, client_address)


def make_server(folder: str | os.PathLike, port: int = 0) -> ThreadingHTTPServer:
    """A server of the folder for this machine's own browsers; `serve_forever()` starts it, `server_port` is its port.

    Port 0 takes a free one. Raises OSError, with the port in it, when it is taken.
    """
    try:
        return _Server((HOST, port), functools.partial(_Handler, directory=os.fspath(folder)))
    except (OSError, OverflowError) as error:
        raise OSError(f"cannot serve on port {port}: {error}") from error
