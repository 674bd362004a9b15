"""A file server on 127.0.0.1 that resumes, and that fails in the ways in which servers fail."""

import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class FileServer:
    """
    Serves `files` (path with its slash: content) until the `with` block ends.

    What goes wrong can be set at any time: `cut_after` ends every answer after so many bytes, `length` is told instead
    of the true size, `ranges` False ignores what part is asked for, `tags` False leaves out what names a version,
    `heeds` False sends the part of whatever version there is, and `answer` is sent as it is in place of all this.
    `requests` is the log: path and wanted range of each request.
    """

    def __init__(self, files: dict[str, bytes]):
        self.files = files
        self.cut_after: int | None = None
        self.length: int | None = None
        self.ranges, self.tags, self.heeds = True, True, True
        self.answer: bytes | None = None
        self.content_type = "application/octet-stream"
        self.requests: list[tuple[str, str | None]] = []

    def __enter__(self) -> "FileServer":
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _handler(server: FileServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            wanted = self.headers.get("Range")
            server.requests.append((self.path, wanted))
            if server.answer is not None:
                self.wfile.write(server.answer)
                self.close_connection = True
                return
            if self.path not in server.files:
                self.send_error(404)
                return
            content = server.files[self.path]
            tag = f'"{hashlib.md5(content).hexdigest()}"'
            start = 0
            if server.ranges and wanted and (self.headers.get("If-Range") == tag or not server.heeds):
                start = int(wanted.removeprefix("bytes=").removesuffix("-"))
                if start >= len(content):
                    self.send_response(416)
                    self.send_header("Content-Range", f"bytes */{len(content)}")
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
            self.send_response(206 if start else 200)
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
            if server.tags:
                self.send_header("ETag", tag)
            self.send_header("Content-Type", server.content_type)
            length = len(content) - start if server.length is None else server.length
            self.send_header("Content-Length", str(length))
            self.end_headers()
            self.wfile.write(content[start:][: server.cut_after])
            self.close_connection = True

        def log_message(self, *_):
            pass

    return Handler
