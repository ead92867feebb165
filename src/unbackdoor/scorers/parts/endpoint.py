"""A language model as judge, behind any OpenAI-compatible endpoint: every question is asked once and its reply kept."""

from __future__ import annotations

import contextlib
import email.utils
import hashlib
import ipaddress
import json
import os
import queue
import random
import re
import ssl
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

from pydantic import ConfigDict, Field, SecretStr, field_validator, model_validator

from unbackdoor.errors import UserError
from unbackdoor.progress import SILENT, Progress
from unbackdoor.run_directory import RunDirectory
from unbackdoor.scorers.parts.connection import MOST_BYTES, FailedError, Line, StoppedError
from unbackdoor.settings import Settings

Messages = Sequence[Mapping[str, str]]
"""A question to the judge: `role` and `content` of each message."""

LONGEST_WAIT = 300.0
"""Seconds. An endpoint that asks to wait longer is an error: better to run again later."""

ASKED_AGAIN = 2
"""Further tries where a reply says something else than what was asked for: more of the same question help little."""

SHORTEST_SECRET = 8
"""Shorter keys are placeholders of local servers, and may be ordinary words."""


class JudgeSettings(Settings):
    """Which model judges, and how it is asked."""

    model_config = ConfigDict(hide_input_in_errors=True)  # a key given by mistake must not be printed

    judge_url: str = Field(description="Base URL of an OpenAI-compatible API, such as http://localhost:8000/v1.")
    judge_model: str = Field(min_length=1, description="The judging model's name there.")
    judge_key_variable: str | None = Field(
        default=None,
        description="NAME of the environment variable that holds the API key, in capitals; never the key itself.",
    )
    judge_concurrency: int = Field(default=8, ge=1, le=256, description="Questions asked at the same time.")
    judge_timeout: float = Field(default=120.0, gt=0, le=3600, description="Seconds until a whole reply must be there.")
    judge_retries: int = Field(default=5, ge=0, le=20, description="Further tries where a reply fails to come.")
    judge_temperature: float = Field(default=0.0, ge=0, le=2, description="Sampling temperature of the judge.")
    judge_max_tokens: int = Field(default=1024, ge=1, description="Length of the judge's reply, in tokens.")

    @field_validator("judge_url")
    @classmethod
    def _plain(cls, url: str) -> str:
        try:
            parts = urlsplit(url)
            good = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
        except ValueError:
            good = False
        if not good or not url.isascii() or not url.isprintable() or " " in url:
            raise ValueError("give an address such as https://host/v1")
        if "@" in parts.netloc or parts.query or parts.fragment:
            raise ValueError("leave out user, password, '?' and '#': the key goes by --judge-key-variable")
        return url.rstrip("/")

    @field_validator("judge_key_variable")
    @classmethod
    def _name(cls, variable: str | None) -> str | None:
        if variable is not None and not re.fullmatch("[A-Z_][A-Z0-9_]*", variable):
            raise ValueError("give the NAME of an environment variable in capitals, such as JUDGE_KEY, not the key")
        return variable

    @model_validator(mode="after")
    def _encrypted(self) -> Self:
        parts = urlsplit(self.judge_url)
        if self.judge_key_variable and parts.scheme == "http" and not _is_this_machine(parts.hostname or ""):
            raise ValueError("--judge-url: a key is sent by https alone (by http only to this machine)")
        return self

    def parameters(self) -> dict[str, Any]:
        """What goes with every question."""
        return {"temperature": self.judge_temperature, "max_tokens": self.judge_max_tokens}


MALFORMED = "malformed: "


@dataclass(frozen=True)
class Reply:
    """What came of one question.

    Args:
        text: the judge's words; None where no usable reply came.
        problem: why there is no text; else empty.
        prompt_tokens: as the endpoint counted them for this reply; 0 where it did not.
        completion_tokens: the same.
    """

    text: str | None
    problem: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0

    @property
    def malformed(self) -> bool:
        """No reply to the question at all: nothing is known of the answer, and the question may be asked again."""
        return self.problem.startswith(MALFORMED)


def exponential_backoff(attempt: int) -> float:
    """Seconds to wait after a failed try (the first is 0): doubled every time up to a minute, with jitter."""
    return min(60.0, 2.0**attempt) * _jitter.uniform(0.5, 1.0)


_jitter = random.Random()  # of its own: waiting must not change the run's random draws


class Judge:
    """Asks questions and remembers the replies.

    Args:
        settings: the endpoint, the model and how it is asked.
        cache: JSONL file where replies are kept by the hash of what was asked: a resumed run asks nothing twice. It is
            for one process at a time. It holds neither questions nor the key. None keeps replies in memory alone.
        progress: told of every reply.
        backoff: seconds to wait after failed try number 0, 1, …; a longer Retry-After of the endpoint wins.

    The key is read from the environment here and is sent to the configured host alone: redirects are not followed and
    proxies are not used.

    Attributes:
        prompt_tokens: tokens that this object's questions took, failed tries included, cached replies not.
        completion_tokens: the same for the replies.

    Raises:
        UserError: the key is missing, or the cache cannot be written.
    """

    def __init__(
        self,
        settings: JudgeSettings,
        cache: Path | None = None,
        progress: Progress = SILENT,
        *,
        backoff: Callable[[int], float] = exponential_backoff,
    ) -> None:
        self.settings = settings
        self.progress = progress
        self.prompt_tokens = 0
        self.completion_tokens = 0
        self._backoff = backoff
        self._key = _key_from_environment(settings.judge_key_variable)
        self._tls = ssl.create_default_context() if settings.judge_url.startswith("https:") else None
        self._lock = threading.Lock()
        self._replies: dict[str, Reply] = {}
        self._file = cache.name if cache is not None else ""
        self._store: RunDirectory | None = None
        if cache is not None:
            try:
                cache.parent.mkdir(parents=True, exist_ok=True)
                cache.touch()
            except OSError as error:
                raise UserError(f"the judge's cache '{cache}' cannot be written: {error.strerror}") from None
            self._store = RunDirectory(cache.parent)
            for row in self._store.read_lines(self._file):
                with contextlib.suppress(AttributeError, KeyError, TypeError):
                    asked, reply = row.pop("key"), Reply(**row)
                    if not reply.malformed:
                        self._replies[asked] = reply

    def ask(self, messages_list: Sequence[Messages], usable: Callable[[str], bool] | None = None) -> list[Reply]:
        """The replies to the questions, in their order. Equal questions are asked once.

        A reply that is malformed at every try is unusable, and so is one that was cut short or filtered. Malformed
        ones are not kept: they are no results, and another run asks again. Ctrl-C breaks off what is under way; what
        had come is in the cache.

        Args:
            messages_list: the questions.
            usable: whether a text answers the question; others are malformed, and asked for again.

        Raises:
            UserError: the endpoint refuses, redirects, or gives no reply at every try; names the option to change.
        """
        asked = [self._request(messages) for messages in messages_list]
        keys = [_digest([self.settings.judge_url, request]) for request in asked]
        kept = self._replies

        def answered(key: str) -> bool:
            text = kept[key].text if key in kept else None
            return key in kept and not kept[key].malformed and (text is None or usable is None or usable(text))

        missing = {key: r for key, r in zip(keys, asked, strict=True) if not answered(key)}
        if missing:
            self._fetch(missing, usable)
        return [self._replies[key] for key in keys]

    def _request(self, messages: Messages) -> dict[str, Any]:
        readable = [{"role": m["role"], "content": _encodable(m["content"])} for m in messages]
        return {"model": self.settings.judge_model, "messages": readable, **self.settings.parameters()}

    def _fetch(self, requests: Mapping[str, Mapping[str, Any]], usable: Callable[[str], bool] | None) -> None:
        todo: queue.SimpleQueue[tuple[str, Mapping[str, Any]]] = queue.SimpleQueue()
        for item in requests.items():
            todo.put(item)
        done: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
        line = Line(self.settings.judge_url, self._key, self._tls, self.settings.judge_timeout)

        def work() -> None:
            with contextlib.suppress(queue.Empty, StoppedError):
                while not line.stopped.is_set():
                    key, request = todo.get_nowait()
                    try:
                        self._keep(key, self._reply(request, line, usable))
                    except StoppedError:
                        raise
                    except BaseException as error:
                        done.put(error)
                        return
                    done.put(None)

        # Daemons: one that hangs in a name lookup, which nothing can interrupt, must not hold up the program's end.
        count = min(self.settings.judge_concurrency, len(requests))
        threads = [threading.Thread(target=work, daemon=True) for _ in range(count)]
        try:
            for thread in threads:
                thread.start()
            with self.progress.task("replies of the judge", len(requests)) as advance:
                for _ in requests:
                    failure = _next(done)
                    if failure is not None:
                        raise failure
                    advance(1)
        finally:
            line.stop()
            until = time.monotonic() + 2.0
            for thread in threads:
                if thread.ident is not None:
                    thread.join(max(0.0, until - time.monotonic()))  # for a reply that is just being written

    def _reply(self, request: Mapping[str, Any], line: Line, usable: Callable[[str], bool] | None) -> Reply:
        body = json.dumps(request).encode()
        strange = 0
        for attempt in range(self.settings.judge_retries + 1):
            try:
                reply = self._read(*line.post(body))
            except FailedError as error:
                failed = error
            else:
                if reply.text is None or usable is None or usable(reply.text):
                    return reply
                strange += 1
                if strange > ASKED_AGAIN or attempt == self.settings.judge_retries:
                    return replace(reply, text=None, problem=f"{MALFORMED}no verdict (tried {attempt + 1} times)")
                continue
            if attempt < self.settings.judge_retries:
                wait = max(self._backoff(attempt), failed.wait)
                if wait > LONGEST_WAIT:
                    raise UserError(f"--judge-url: the endpoint asks to wait {wait:.0f} s: run again after that")
                line.pause(wait)
        if line.stopped.is_set():  # what was cut off may look malformed
            raise StoppedError
        problem = f"{failed} (tried {self.settings.judge_retries + 1} times)"
        if failed.malformed:
            return Reply(None, f"{MALFORMED}{problem}")
        raise UserError(f"--judge-url '{self.settings.judge_url}': {problem}")

    def _read(self, status: int, retry_after: str | None, content: bytes) -> Reply:
        """The reply in a response; `FailedError` where another try may help, `UserError` where it cannot."""
        if status == 429:
            raise FailedError("too many requests (429): lower --judge-concurrency", wait=_seconds(retry_after))
        if status == 408 or status >= 500:
            raise FailedError(f"the server failed ({status})", wait=_seconds(retry_after))
        if not 200 <= status < 300:
            if _was_filtered(content):
                return Reply(None, "filtered by the endpoint")
            raise UserError(self._refusal(status, content))
        if len(content) > MOST_BYTES:
            raise FailedError(f"a reply of more than {MOST_BYTES} bytes", malformed=True)
        try:
            found = json.loads(content)
            usage = found.get("usage")
            prompt_tokens, completion_tokens = _count(usage, "prompt_tokens"), _count(usage, "completion_tokens")
            with self._lock:
                self.prompt_tokens += prompt_tokens
                self.completion_tokens += completion_tokens
            choice = found["choices"][0]
            text, finish = choice["message"]["content"], choice.get("finish_reason")
        except (ValueError, RecursionError, LookupError, TypeError, AttributeError):
            raise FailedError("not a chat completion in JSON", malformed=True) from None
        if finish == "length":
            # The verdict stands at the end: what looks like one in a reply that was cut is something else.
            problem = "cut short: raise --judge-max-tokens"
            return Reply(None, problem, prompt_tokens, completion_tokens)
        if not isinstance(text, str) or not text.strip():
            raise FailedError("a reply without text", malformed=True)
        return Reply(self._without_key(_encodable(text)), "", prompt_tokens, completion_tokens)

    def _refusal(self, status: int, content: bytes) -> str:
        settings = self.settings
        said = self._said(content)
        if 300 <= status < 400:
            return f"--judge-url: redirected ({status}), which is not followed: give the final address"
        if status in (401, 403):  # what was said is left out: it may show a part of the key
            key = f"the key in {settings.judge_key_variable}" if settings.judge_key_variable else "requests without key"
            return f"--judge-key-variable: the endpoint refuses {key} ({status})"
        if status == 404:
            return f"--judge-url or --judge-model: no '{settings.judge_model}' at '{settings.judge_url}' (404){said}"
        return (
            "--judge-model, --judge-max-tokens or --judge-temperature: "
            f"'{settings.judge_model}' refuses the request ({status}){said}"
        )

    def _said(self, content: bytes) -> str:
        """The endpoint's own explanation, as `: …`; empty where it resembles the key, or there is none."""
        error = _error(content)
        message = error.get("message")
        if not isinstance(message, str):
            return ""
        message = "".join(c if c.isprintable() else " " for c in message)[:200]
        key = self._secret()
        parts = {key[i : i + 6] for i in range(len(key) - 5)}
        return "" if any(part in message for part in parts) else f": {message}"

    def _without_key(self, text: str) -> str:
        key = self._secret()
        return text.replace(key, "[key]") if key else text

    def _secret(self) -> str:
        key = self._key.get_secret_value() if self._key is not None else ""
        return key if len(key) >= SHORTEST_SECRET else ""

    def _keep(self, key: str, reply: Reply) -> None:
        with self._lock:
            if self._store is not None and not reply.malformed:
                self._store.append_lines(self._file, [{"key": key, **asdict(reply)}])
            self._replies[key] = reply


def _next(done: queue.SimpleQueue[BaseException | None]) -> BaseException | None:
    """Wait for the next outcome, in short naps: on some systems Ctrl-C does not end a long one."""
    while True:
        with contextlib.suppress(queue.Empty):
            return done.get(timeout=0.2)


def _key_from_environment(variable: str | None) -> SecretStr | None:
    if variable is None:
        return None
    key = os.environ.get(variable, "").strip()
    if not key:
        raise UserError(f"--judge-key-variable: the environment variable {variable} is not set")
    if not key.isascii() or not key.isprintable() or " " in key:
        raise UserError(f"--judge-key-variable: what {variable} holds is no key: it has spaces or special characters")
    return SecretStr(key)


def _is_this_machine(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _encodable(text: str) -> str:
    """The text with `?` for halves of surrogate pairs, which are in no encoding."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _count(usage: object, name: str) -> int:
    value = usage.get(name) if isinstance(usage, dict) else None
    return value if isinstance(value, int) and value > 0 else 0


def _error(content: bytes) -> Mapping[str, Any]:
    """The `error` of a response that is none; empty where there is none to read."""
    try:
        error = json.loads(content)["error"]
    except (ValueError, RecursionError, LookupError, TypeError):
        return {}
    return error if isinstance(error, dict) else {}


def _was_filtered(content: bytes) -> bool:
    """Some endpoints refuse to read harmful text: that says something of the text, not of the settings."""
    return _error(content).get("code") in ("content_filter", "content_policy_violation")


def _seconds(retry_after: str | None) -> float:
    """The wait that a Retry-After header asks for, in seconds or as a date; 0 where there is none to read."""
    text = (retry_after or "").strip()
    try:
        if text.isdecimal():
            return float(text)
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, OverflowError):
        return 0.0
