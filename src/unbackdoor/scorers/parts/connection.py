"""Connections to a judge's endpoint that end when their time is up, or all at once when the run is broken off."""

from __future__ import annotations

import contextlib
import http.client
import socket
import ssl
import threading
from collections.abc import Iterator
from urllib.parse import urlsplit

from pydantic import SecretStr

from unbackdoor.errors import UserError

MOST_BYTES = 1 << 20
"""A longer reply is not read to its end."""


class StoppedError(Exception):
    """The questions were broken off."""


class FailedError(Exception):
    """A try that may go better the next time."""

    def __init__(self, message: str, *, wait: float = 0.0, malformed: bool = False) -> None:
        super().__init__(message)
        self.wait = wait
        self.malformed = malformed


class _Call:
    """One connection, which other threads may cut."""

    def __init__(self, connection: http.client.HTTPConnection) -> None:
        self.connection = connection
        self.sock: socket.socket | None = None  # the connection lets go of its own before the reply is read
        self.late = False

    def end(self) -> None:
        """The time is up."""
        self.late = True
        self.cut()

    def cut(self) -> None:
        """End what another thread waits for on the connection."""
        sock = self.sock or self.connection.sock
        if sock is not None:
            with contextlib.suppress(OSError, ValueError):
                sock.shutdown(socket.SHUT_RDWR)


class Line:
    """Connections to one host. Each is cut when its time is up, and all of them by `stop`."""

    def __init__(self, url: str, key: SecretStr | None, tls: ssl.SSLContext | None, timeout: float) -> None:
        self.stopped = threading.Event()
        self._parts = urlsplit(url)
        self._key = key
        self._tls = tls
        self._timeout = timeout
        self._lock = threading.Lock()
        self._calls: set[_Call] = set()

    def post(self, body: bytes) -> tuple[int, str | None, bytes]:
        """Status, Retry-After and content of the response, whatever its status; one byte too many where it is too long.

        Raises `FailedError` where no whole response came in time, `UserError` where the certificate is not valid.
        """
        with self._call() as call:
            connection = call.connection
            try:
                connection.connect()
                call.sock = connection.sock
                self._check(call)
                connection.request("POST", f"{self._parts.path}/chat/completions", body, self._headers())
                with connection.getresponse() as response:
                    content = response.read(MOST_BYTES + 1)
                    if response.length and len(content) <= MOST_BYTES:
                        raise http.client.IncompleteRead(b"", response.length)
                if call.late:
                    raise TimeoutError
                return response.status, response.getheader("Retry-After"), content
            except ssl.SSLCertVerificationError:
                raise UserError("--judge-url: the host's certificate is not valid") from None
            # ValueError: a TLS connection that was cut.
            except (OSError, http.client.HTTPException, ValueError) as error:
                if self.stopped.is_set():
                    raise StoppedError from None
                if call.late or isinstance(error, TimeoutError):
                    raise FailedError(f"no whole reply within {self._timeout:g} s (--judge-timeout)") from None
                reason = (isinstance(error, OSError) and error.strerror) or type(error).__name__
                raise FailedError(f"the connection failed ({reason})") from None

    def pause(self, seconds: float) -> None:
        """Wait, unless stopped."""
        if self.stopped.wait(seconds):
            raise StoppedError

    def stop(self) -> None:
        """Cut every connection."""
        self.stopped.set()
        with self._lock:
            for call in self._calls:
                call.cut()

    @contextlib.contextmanager
    def _call(self) -> Iterator[_Call]:
        host, port = self._parts.hostname or "", self._parts.port
        timeout = self._timeout
        if self._tls is not None:
            call = _Call(http.client.HTTPSConnection(host, port or 443, timeout=timeout, context=self._tls))
        else:
            call = _Call(http.client.HTTPConnection(host, port or 80, timeout=timeout))
        call.connection.set_debuglevel(0)  # whatever the process has set: it would print the key
        # The connection's own timeout is one of each read: a reply that drips would never end.
        timer = threading.Timer(timeout, call.end)
        timer.daemon = True
        with self._lock:
            self._calls.add(call)
        timer.start()
        try:
            yield call
        finally:
            timer.cancel()
            with self._lock:
                self._calls.discard(call)
            call.connection.close()

    def _check(self, call: _Call) -> None:
        """Raise where the time was up, or all was stopped, before there was a connection to cut."""
        if self.stopped.is_set():
            raise StoppedError
        if call.late:
            raise TimeoutError

    def _headers(self) -> dict[str, str]:
        headers = {"Content-Type": "application/json", "Accept": "application/json", "Connection": "close"}
        if self._key is not None:
            headers["Authorization"] = f"Bearer {self._key.get_secret_value()}"
        return headers
