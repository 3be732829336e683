"""Servers of video on this machine: of files over HTTP, well or badly, and of a live stream over RTSP."""

import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@contextmanager
def http_server(answer: Callable[[BaseHTTPRequestHandler, int], None]) -> Iterator[str]:
    """The address of a server that answers the n-th request, from 0 on, by a function."""
    requests = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            requests.append(self.path)
            answer(self, len(requests) - 1)

        def log_message(self, *_: object) -> None:
            pass

    class Quiet(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: object) -> None:  # the client went away
            pass

    server = Quiet(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def send(request: BaseHTTPRequestHandler, data: bytes, length: int | None = None) -> None:
    """Answer with these bytes, and promise `length` if one is given."""
    request.send_response(200)
    if length is not None:
        request.send_header("Content-Length", str(length))
    request.end_headers()
    request.wfile.write(data)


@contextmanager
def rtsp_server(transport_stream: bytes) -> Iterator[tuple[str, list[str]]]:
    """The address of one that sends a transport stream to the first client, and what was asked of it."""
    listener, asked = socket.create_server(("127.0.0.1", 0)), list[str]()
    url = f"rtsp://127.0.0.1:{listener.getsockname()[1]}/live"

    def serve() -> None:
        client, _ = listener.accept()
        with client, client.makefile("rb") as lines:
            while head := b"".join(iter(lines.readline, b"\r\n")).decode():
                asked.append(head)
                fields = dict(line.split(": ", 1) for line in head.splitlines()[1:] if ": " in line)
                body, more = "", ""
                if head.startswith("DESCRIBE"):
                    body = "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=-\r\nt=0 0\r\n"
                    body += "m=video 0 RTP/AVP 33\r\na=control:track\r\n"
                    more = f"Content-Base: {url}/\r\nContent-Type: application/sdp\r\n"
                elif head.startswith("SETUP"):
                    more = f"Transport: {fields['Transport']}\r\nSession: 7\r\n"
                more += f"CSeq: {fields['CSeq']}\r\nContent-Length: {len(body)}\r\n"
                client.sendall(f"RTSP/1.0 200 OK\r\n{more}\r\n{body}".encode())
                if head.startswith("PLAY"):
                    for number, start in enumerate(range(0, len(transport_stream), 7 * 188)):
                        data = struct.pack(">BBHII", 128, 33, number, number * 3600, 7)
                        data += transport_stream[start : start + 7 * 188]
                        client.sendall(b"$\0" + struct.pack(">H", len(data)) + data)
                    time.sleep(0.2)
                    return

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield url, asked
    finally:
        listener.close()
