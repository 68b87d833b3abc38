"""An object store on this machine: moto's S3 server in a process of its own, and a way to it that can be closed for a while.

Requests are counted by the server's own log.
"""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow.fs as pafs

UNAVAILABLE = b"HTTP/1.1 503 Slow Down\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


class ObjectStore:
    """A running server. Each bucket is a test's own."""

    def __init__(self, port: int, log: Path) -> None:
        self.port, self._log = port, log
        self._admin = pafs.S3FileSystem(
            access_key="k",
            secret_key="s",
            endpoint_override=f"127.0.0.1:{port}",
            scheme="http",
            region="us-east-1",
            allow_bucket_creation=True,
        )

    def uri(self, path: str, *, port: int | None = None) -> str:
        """URI of a path ``bucket/key``, by the way of another port if one is given."""
        address = f"127.0.0.1:{port or self.port}"
        return f"s3://k:s@{path}?endpoint_override={address}&scheme=http&region=us-east-1"

    def make_bucket(self, name: str) -> None:
        """Make a bucket, three characters or more."""
        self._admin.create_dir(name)

    def requests(self) -> list[str]:
        """Every request until now: method and path."""
        lines = self._log.read_text().splitlines()
        return [line.split('"')[1].removesuffix(" HTTP/1.1") for line in lines if 'HTTP/1.1"' in line]

    def objects(self, bucket: str) -> dict[str, bytes]:
        """Every object of a bucket by its key; those whose key ends in a slash are left out."""
        infos = self._admin.get_file_info(pafs.FileSelector(bucket, recursive=True))
        files = [info.path for info in infos if info.type == pafs.FileType.File]
        found = {}
        for path in files:
            with self._admin.open_input_file(path) as stream:
                found[path.removeprefix(f"{bucket}/")] = stream.read()
        return found


@contextmanager
def object_store(folder: Path) -> Iterator[ObjectStore]:
    """A server that writes its log into a folder, until the end of the block."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = int(listener.getsockname()[1])
    log = folder / "object-store.log"
    with log.open("w") as stream:
        server = subprocess.Popen(
            [sys.executable, "-c", "from moto.server import main; main()", "-H", "127.0.0.1", "-p", str(port)],
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=stream,
        )
    try:
        while True:
            assert server.poll() is None, log.read_text()
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                break
            time.sleep(0.1)
        yield ObjectStore(port, log)
    finally:
        server.terminate()
        server.wait()


class Way:
    """A port that passes everything on to another one, but for some connections that it answers with 503 or cuts off."""

    def __init__(self, port: int) -> None:
        self._to = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._open: list[socket.socket] = []
        self._lock = threading.Lock()
        self._refusals: list[bytes] = []
        threading.Thread(target=self._serve, daemon=True).start()

    def refuse(self, n: int, *, answer: bytes = UNAVAILABLE) -> None:
        """End every connection, and refuse the next `n`; an empty answer cuts them off."""
        with self._lock:
            self._refusals = [answer] * n
            for one in self._open:
                _end(one)
            self._open.clear()

    @property
    def n_left(self) -> int:
        """Connections that are still to be refused."""
        return len(self._refusals)

    def close(self) -> None:
        """End everything."""
        self.refuse(0)
        _end(self._listener)

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._handle, args=(client,), daemon=True).start()

    def _handle(self, client: socket.socket) -> None:
        # A connection counts once it asks for something.
        data = client.recv(1 << 16)
        with self._lock:
            answer = self._refusals.pop() if self._refusals and data else None
        if answer is not None:
            client.sendall(answer)
            _end(client)
            return
        server = socket.create_connection(("127.0.0.1", self._to))
        with self._lock:
            self._open += [client, server]
        server.sendall(data)
        threading.Thread(target=_pump, args=(client, server), daemon=True).start()
        _pump(server, client)


def _pump(source: socket.socket, to: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 16):
            to.sendall(data)
    _end(source)
    _end(to)


def _end(one: socket.socket) -> None:
    with contextlib.suppress(OSError):
        one.shutdown(socket.SHUT_RDWR)
    one.close()
