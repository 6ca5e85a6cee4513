"""One token for all calls: fetched when first needed, refreshed ahead of its end, never shown.

Secrets stay inside the closures of the fetchers: they are in no repr, log line or exception text.
"""

from __future__ import annotations

import base64
import binascii
import re
import subprocess
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import msgspec
import trio

from f7tfs.errors import F7tfsError, RateLimited, Unauthorized, Unreachable

REFRESH_AHEAD = 60.0  # seconds before the end of a token's life at which a new one is fetched
UNKNOWN_LIFETIME = 60.0  # seconds that a token of unknown lifetime is believed
REFUSED_AGAIN = 10.0  # seconds a still valid token is used after its refresh failed
COMMAND_DEADLINE = 60.0  # seconds that a token command may take

_SENDABLE = re.compile(r"[\x21-\x7e]+")


class Grant(msgspec.Struct, frozen=True):
    """A token as its source gave it; `lifetime` in seconds from now, None where not told."""

    token: str
    lifetime: float | None = None

    def __repr__(self) -> str:
        return "Grant(…)"


class FormReply(Protocol):
    """What a token endpoint answered."""

    @property
    def status(self) -> int: ...
    @property
    def headers(self) -> Mapping[str, str]: ...
    @property
    def body(self) -> bytes: ...


PostForm = Callable[[str, Mapping[str, str]], Awaitable[FormReply]]
"""POST an urlencoded form to a URL, without a bearer; raises Unreachable."""


def boot_clock() -> float:
    """Seconds since boot, those of suspended laptops included: tokens age in their sleep."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class TokenSource:
    """Keeps one token and refreshes it for all who wait.

    `token()` raises Unauthorized when the source refuses, Unreachable or RateLimited when it cannot
    be asked now.
    """

    def __init__(
        self,
        fetch: Callable[[], Awaitable[Grant]],
        *,
        described: str = "token source",
        clock: Callable[[], float] = boot_clock,
    ) -> None:
        self._fetch = fetch
        self._described = described
        self._clock = clock
        self._token: str | None = None
        self._refresh_at = 0.0
        self._expires_at = 0.0
        # Whoever holds the lock refreshes; a cancelled holder leaves it to the next in line. Those
        # who queued during an attempt share its outcome instead of repeating it.
        self._lock = trio.Lock()
        self._attempts = 0
        self._failure: F7tfsError | None = None

    def __repr__(self) -> str:
        return f"TokenSource({self._described})"

    async def token(self) -> str:
        if (token := self._fresh()) is not None:
            return token
        seen = self._attempts
        async with self._lock:
            if (token := self._fresh()) is not None:
                return token
            if self._attempts != seen and self._failure is not None:
                raise _again(self._failure)
            return await self._refresh()

    def invalidate(self, token: str) -> None:
        """The server refused `token`: forget it, unless a newer one took its place already."""
        if self._token == token:
            self._token = None

    def _fresh(self) -> str | None:
        return self._token if self._clock() < self._refresh_at else None

    async def _refresh(self) -> str:
        try:
            grant = await self._fetch()
        except F7tfsError as error:
            self._attempts += 1
            self._failure = error
            now = self._clock()
            if error.transient and self._token is not None and now < self._expires_at:
                self._refresh_at = min(now + REFUSED_AGAIN, self._expires_at)
                return self._token
            raise
        self._attempts += 1
        self._failure = None
        if not _SENDABLE.fullmatch(grant.token):
            self._failure = Unauthorized(f"{self._described}: what it gave is not a token")
            raise self._failure
        lifetime = grant.lifetime
        if lifetime is None:
            lifetime = _lifetime_of_jwt(grant.token)
        if lifetime is None or lifetime <= 0:
            lifetime = UNKNOWN_LIFETIME
        now = self._clock()
        self._token = grant.token
        self._expires_at = now + lifetime
        self._refresh_at = now + (
            lifetime - REFRESH_AHEAD if lifetime >= 2 * REFRESH_AHEAD else lifetime / 2
        )
        return grant.token


def _again(error: F7tfsError) -> F7tfsError:
    """The same failure for another waiter: an exception object belongs to one traceback."""
    if isinstance(error, RateLimited):
        return RateLimited(str(error), error.retry_after)
    return type(error)(str(error))


def client_credentials(
    token_url: str,
    client_id: str,
    client_secret: str,
    post_form: PostForm,
    *,
    clock: Callable[[], float] = boot_clock,
) -> TokenSource:
    """OAuth2 client credentials (v1 FACTS transcripts auth-token-*)."""

    async def fetch() -> Grant:
        form = {
            "grant_type": "client_credentials",
            "client_id": client_id,
            "client_secret": client_secret,
        }
        reply = await post_form(token_url, form)
        answer = _object(reply.body)
        if reply.status == 200:
            token = answer.get("access_token")
            if not isinstance(token, str):
                raise Unreachable(f"{token_url} answers, but not as a token endpoint")
            return Grant(token, _seconds(answer.get("expires_in")))
        if reply.status == 429:
            raise RateLimited(
                f"{token_url} limits the rate of logins", _seconds(reply.headers.get("retry-after"))
            )
        if reply.status in {400, 401, 403} and answer:
            reason = str(answer.get("error_description") or answer.get("error") or "refused")
            reason = reason.replace(client_secret, "…")
            raise Unauthorized(f"{token_url} refused the login of client {client_id!r}: {reason}")
        if reply.status in {401, 403}:
            raise Unauthorized(f"{token_url} refused the login of client {client_id!r}")
        raise Unreachable(f"{token_url} answered {reply.status} to the login; is the URL right?")

    return TokenSource(fetch, described=f"client {client_id!r} at {token_url}", clock=clock)


def token_command(
    command: str,
    *,
    deadline: float = COMMAND_DEADLINE,
    clock: Callable[[], float] = boot_clock,
) -> TokenSource:
    """A shell command that prints a token, bare or as the JSON of a token endpoint."""

    async def fetch() -> Grant:
        done = None
        with trio.move_on_after(deadline):
            done = await trio.run_process(
                ["/bin/sh", "-c", command],
                stdin=subprocess.DEVNULL,
                capture_stdout=True,
                capture_stderr=True,
                check=False,
            )
        if done is None:
            raise Unauthorized(f"the token command did not end within {deadline:g} s")
        if done.returncode != 0:
            words = done.stderr.decode(errors="replace").strip().splitlines()
            reason = words[0] if words else "no message"
            raise Unauthorized(f"the token command failed ({done.returncode}): {reason}")
        return _grant_of_text(done.stdout, "the token command")

    return TokenSource(fetch, described="token command", clock=clock)


def token_file(path: Path, *, clock: Callable[[], float] = boot_clock) -> TokenSource:
    """A file that somebody else keeps filled with a token; read again when the token ends."""

    async def fetch() -> Grant:
        try:
            text = path.read_bytes()
        except OSError as error:
            raise Unauthorized(f"the token file {path}: {error.strerror}") from None
        return _grant_of_text(text, f"the token file {path}")

    return TokenSource(fetch, described=f"token file {path}", clock=clock)


def _grant_of_text(text: bytes, source: str) -> Grant:
    words = text.decode(errors="replace").strip()
    if words.startswith("{"):
        answer = _object(text)
        token = answer.get("access_token")
        if isinstance(token, str):
            return Grant(token, _seconds(answer.get("expires_in")))
        raise Unauthorized(f"{source} holds JSON without an access_token")
    if not words:
        raise Unauthorized(f"{source} is empty")
    return Grant(words.removeprefix("Bearer ").strip())


def _lifetime_of_jwt(token: str) -> float | None:
    """Seconds until the `exp` claim, read without checking the signature; None for other tokens."""
    parts = token.split(".")
    if len(parts) != 3:
        return None
    try:
        claims = base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4))
    except (binascii.Error, ValueError):
        return None
    expires = _seconds(_object(claims).get("exp"))
    return None if expires is None else expires - time.time()


def _object(text: bytes) -> dict[str, Any]:
    try:
        found = msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return {}
    return found if isinstance(found, dict) else {}


def _seconds(value: object) -> float | None:
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None
