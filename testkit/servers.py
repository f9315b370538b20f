"""Servers for tests of clients: some for files, and some that need not speak any protocol."""

import asyncio
import functools
import http.server
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

# The first words of a client of HTTP/2: the preface, and settings that change nothing.
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\x04\0\0\0\0\0"


@contextmanager
def server(answer: Callable[[socket.socket], None], host: str = "127.0.0.1") -> Iterator[int]:
    """Accept connections on the yielded port, and leave each of them to `answer`."""
    listener = socket.create_server((host, 0))

    def accept() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=answer, args=[connection], daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.close()


def answering(status: str, body: str, *headers: str) -> Callable[[socket.socket], None]:
    """Return a function that answers each request in this way."""
    head = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", "Connection: close", *headers, "", body]

    def answer(connection: socket.socket) -> None:
        connection.recv(10_000)
        connection.sendall("\r\n".join(head).encode())
        connection.close()

    return answer


@contextmanager
def served(folder: Path, host: str = "127.0.0.1") -> Iterator[str]:
    """Yield the address of a web server for the files of a folder, such as ``127.0.0.1:8080``."""
    handler = functools.partial(_Quiet, directory=folder)
    with http.server.ThreadingHTTPServer((host, 0), handler) as files:
        threading.Thread(target=files.serve_forever, daemon=True).start()
        yield f"{host}:{files.server_port}"
        files.shutdown()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    # The type that Prometheus wants of what it scrapes.
    extensions_map = {".txt": "text/plain; version=0.0.4"}  # noqa: RUF012 (the base class has it so)

    def log_message(self, *_: object) -> None:
        """Log nothing."""


@contextmanager
def forwarding(shown: ssl.SSLContext, trusted: ssl.SSLContext, host: str, name: str, cut: int = 0) -> Iterator[int]:
    """Forward the yielded port to port 443 of a host, for clients that have no certificate.

    They see the certificate of ``shown``, and the host sees that of ``trusted``, which expects this name of it. ``cut``
    is how many bytes the first connection with so many carries before it breaks, or 0.
    """
    loop = asyncio.new_event_loop()
    breaks = [cut] if cut else []

    async def copy(source: asyncio.StreamReader, sink: asyncio.StreamWriter, reply: asyncio.StreamWriter) -> None:
        carried = 0
        with suppress(OSError):
            while content := await source.read(1 << 16):
                sink.write(content)
                await sink.drain()
                carried += len(content)
                if breaks and carried > breaks[0]:
                    breaks.clear()
                    reply.transport.abort()
                    break
        sink.close()

    async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there, back = await asyncio.open_connection(host, 443, ssl=trusted, server_hostname=name)
        except OSError:
            writer.close()
            return
        await asyncio.gather(copy(reader, back, writer), copy(there, writer, back))

    server = loop.run_until_complete(asyncio.start_server(forward, "127.0.0.1", 0, ssl=shown))
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
