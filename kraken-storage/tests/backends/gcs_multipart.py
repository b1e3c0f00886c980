"""Multi-part uploads of Google's XML interface in front of fake-gcs-server, which has only the JSON
interface: collects the parts, and uploads them in one. Everything else is passed on.

    gcs_multipart.py PORT SERVER-PORT
"""

import hashlib
import http.client
import sys
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

PORT, SERVER = int(sys.argv[1]), int(sys.argv[2])
uploads = {}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def answer(self, status, body=b"", headers=()):
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        if status != 204:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def any(self):
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length)
        url = urlsplit(self.path)
        query = parse_qs(url.query, keep_blank_values=True)
        upload = query.get("uploadId", [None])[0]
        if "uploads" in query and self.command == "POST":
            upload = uuid.uuid4().hex
            uploads[upload] = {}
            self.answer(200, f"<InitiateMultipartUploadResult><UploadId>{upload}</UploadId></InitiateMultipartUploadResult>".encode())
        elif upload is None:
            self.forward(self.command, self.path, body)
        elif upload not in uploads:
            self.answer(404)
        elif self.command == "PUT":
            uploads[upload][int(query["partNumber"][0])] = body
            self.answer(200, headers=[("ETag", f'"{hashlib.md5(body).hexdigest()}"')])
        elif self.command == "DELETE":
            del uploads[upload]
            self.answer(204)
        else:
            parts = uploads.pop(upload)
            whole = b"".join(parts[number] for number in sorted(parts))
            bucket, name = url.path.lstrip("/").split("/", 1)
            path = f"/upload/storage/v1/b/{bucket}/o?uploadType=media&name={name}"
            status, _, _ = self.ask("POST", path, whole)
            self.answer(status, b"<CompleteMultipartUploadResult></CompleteMultipartUploadResult>")

    def ask(self, method, path, body):
        server = http.client.HTTPConnection("127.0.0.1", SERVER)
        dropped = ("connection", "content-length")
        headers = {name: value for name, value in self.headers.items() if name.lower() not in dropped}
        server.request(method, path, body, headers)
        answer = server.getresponse()
        return answer.status, answer.getheaders(), answer.read()

    def forward(self, method, path, body):
        status, headers, body = self.ask(method, path, body)
        if method == "HEAD":
            self.send_response(status)
            for name, value in headers:
                self.send_header(name, value)
            self.end_headers()
            return
        kept = ("content-length", "transfer-encoding", "connection", "date", "server")
        self.answer(status, body, [pair for pair in headers if pair[0].lower() not in kept])

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = any


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128


Server(("127.0.0.1", PORT), Handler).serve_forever()
