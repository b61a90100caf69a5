"""A small hub on loopback: what the clients of Hugging Face and ModelScope ask for, from a real folder."""
import hashlib
import json
import re
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(ThreadingHTTPServer):
    """Serves one model; remembers what was asked, as (method, path, Range)."""

    daemon_threads = True

    def __init__(self, identifier: str, folder: Path):
        super().__init__(("127.0.0.1", 0), Answer)
        self.identifier, self.folder, self.asked = identifier, folder, []
        self.claimed = None  # bytes that every file is said to have
        self.stalls_after, self.goes_on = None, Event()  # bytes of a file

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.server_port}"

    def fetched(self) -> set[str]:
        """The names of the files whose content was asked for."""
        return {path.rpartition("/")[2] for method, path, _ in self.asked if method == "GET" and "/resolve/" in path}

    def sizes(self) -> dict[str, int]:
        """What it says of its files' sizes."""
        return {path.name: self.claimed or path.stat().st_size for path in sorted(self.folder.iterdir())}


class Answer(BaseHTTPRequestHandler):
    """An answer to a request."""

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.answer()

    def do_GET(self):
        self.answer()

    def answer(self):
        hub, path = self.server, unquote(urlsplit(self.path).path)
        hub.asked.append((self.command, path, self.headers.get("Range")))
        if path == f"/api/models/{hub.identifier}/revision/main":
            files = [{"rfilename": name, "size": size} for name, size in hub.sizes().items()]
            self.send_json({"id": hub.identifier, "modelId": hub.identifier, "sha": COMMIT, "siblings": files})
        elif path == f"/api/v1/models/{hub.identifier}/repo/files":
            files = [{"Path": name, "Size": size, "Type": "blob"} for name, size in hub.sizes().items()]
            self.send_json({"Code": 200, "Data": {"Files": [*files, {"Path": "assets", "Size": 0, "Type": "tree"}]}})
        elif path.startswith(f"/{hub.identifier}/resolve/") and (hub.folder / Path(path).name).is_file():
            self.send_file(hub.folder / Path(path).name)
        else:
            self.send_error(404, headers={"X-Error-Code": "RepoNotFound"})

    def send_error(self, code, message=None, explain=None, headers=()):
        self.send_response(code)
        for name in headers:
            self.send_header(name, headers[name])
        self.send_header("Content-Length", "0")
        self.end_headers()

    def send_json(self, content):
        body = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def send_file(self, path):
        """The file from where the client has it, with what Hugging Face says of every file."""
        content = path.read_bytes()
        start = int(re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "bytes=0-"))[1])
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        if self.command == "GET":
            stall = self.server.stalls_after or len(content)
            self.wfile.write(content[start:stall])
            if len(content) > stall:
                self.server.goes_on.wait()


@contextmanager
def serving(identifier: str, folder: Path):
    """A hub with one model, as long as the block lasts."""
    with Hub(identifier, folder) as hub:
        Thread(target=hub.serve_forever, daemon=True).start()
        try:
            yield hub
        finally:
            hub.goes_on.set()
            hub.shutdown()
