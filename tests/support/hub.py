"""A server on loopback that answers as the Hugging Face hub does, with a folder behind it."""

import contextlib
import hashlib
import http.server
import json
import threading
from pathlib import Path
from urllib.parse import unquote, urlsplit

SHA = "0123456789abcdef0123456789abcdef01234567"
NAME = "somebody/pixels"


class Hub(http.server.ThreadingHTTPServer):
    """One model, `NAME`, with the branch main at commit `SHA`; others are private or gated."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder, self.requests = folder, []
        self.endpoint = f"http://127.0.0.1:{self.server_address[1]}"

    @property
    def downloads(self):
        """Files whose content was sent."""
        return sorted(
            path.split(f"/resolve/{SHA}/")[1]
            for method, path in self.requests
            if method == "GET" and "/resolve/" in path
        )


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_HEAD(self):
        self._answer(with_body=False)

    def do_GET(self):
        self._answer(with_body=True)

    def log_message(self, *args):
        """Says nothing."""

    def _answer(self, *, with_body):
        path = unquote(urlsplit(self.path).path)
        self.server.requests.append((self.command, path))
        code, headers, body = self._found(path)
        self.send_response(code)
        self.send_header("Connection", "close")  # a thread of an open one would survive the server
        for key, value in {"Content-Length": len(body), "X-Repo-Commit": SHA, **headers}.items():
            self.send_header(key, str(value))
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def _found(self, path):
        folder = self.server.folder
        files = sorted(item for item in folder.rglob("*") if item.is_file())
        if path.startswith("/api/models/gated/"):
            return 403, {"X-Error-Code": "GatedRepo"}, b"{}"
        if path.startswith("/api/models/private/"):
            return 401, {"X-Error-Code": "RepoNotFound"}, b"{}"
        if path in (f"/api/models/{NAME}", f"/api/models/{NAME}/revision/main"):
            return 200, {}, json.dumps({"id": NAME, "sha": SHA, "siblings": []}).encode()
        if path.startswith(f"/api/models/{NAME}/revision/"):
            return 404, {"X-Error-Code": "RevisionNotFound"}, b"{}"
        if path.startswith(f"/api/models/{NAME}/tree/{SHA}"):
            entries = [
                {
                    "type": "file",
                    "path": str(file.relative_to(folder)),
                    "size": file.stat().st_size,
                    "oid": _oid(file),
                }
                for file in files
            ]
            return 200, {}, json.dumps(entries).encode()
        for file in files:
            if path == f"/{NAME}/resolve/{SHA}/{file.relative_to(folder)}":
                return 200, {"ETag": f'"{_oid(file)}"'}, file.read_bytes()
        return 404, {"X-Error-Code": "RepoNotFound"}, b"{}"


def _oid(file):
    return hashlib.sha1(file.read_bytes()).hexdigest()


@contextlib.contextmanager
def serve(folder):
    """The server, as long as the context lasts."""
    server = Hub(folder)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
