"""HTTP: the only module that knows httpx. One client for the API, one for the object store.

A bearer goes to the API alone. Calls that change nothing are repeated while patience lasts; a call
that changes something is sent again only if it was certainly not executed.
"""

from __future__ import annotations

import functools
import logging
import math
import random
import ssl
import time
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import aclosing, asynccontextmanager
from types import TracebackType
from typing import Any, Self

import httpcore
import httpx
import msgspec
import trio

from f7tfs import __version__
from f7tfs.api.auth import TokenSource
from f7tfs.api.breaker import Breaker
from f7tfs.api.patience import Patience, retry_after
from f7tfs.api.replies import Judge, Reply, Verdict, words_of
from f7tfs.clock import ServerClock
from f7tfs.errors import (
    F7tfsError,
    OutcomeUnknown,
    RateLimited,
    ServerError,
    Stalled,
    Unauthorized,
    Unreachable,
)

log = logging.getLogger("f7tfs.api")
# Their own lines show whole URLs (presigned signatures) and headers (bearers).
for _name in ("httpx", "httpcore"):
    logging.getLogger(_name).setLevel(logging.WARNING)

# One receive per MiB instead of per 64 KiB: measured 1.2-2 x for big bodies (PERFORMANCE.md).
httpcore.AsyncHTTP11Connection.READ_NUM_BYTES = 1 << 20

CONNECT_TIMEOUT = 10.0
# Servers close idle connections, many of them after 5 s; a POST that meets a closing connection
# would end as OutcomeUnknown.
KEEPALIVE = 4.5
DROP_GRACE = 0.1  # seconds that a server may take to drop a connection after a fault of its own
TRIES_AT_502 = 3  # it may belong to the request and come for ever (v1 FACTS §2)
RATE_BACKOFF_FIRST, RATE_BACKOFF_CAP = 1.0, 10.0
SHARED_HOLD_CAP = 60.0  # the longest that one 429 holds back the other calls

_GATEWAY_TROUBLE = {408, 502, 503, 504}
_REDIRECTS = {301, 302, 303, 307, 308}
_NOT_SENT = (
    httpx.ConnectError,
    httpx.ConnectTimeout,
    httpx.PoolTimeout,
    httpx.ProxyError,
    httpx.UnsupportedProtocol,
    httpx.InvalidURL,
)


class _Lost(Exception):
    """Sent, perhaps executed, no answer."""


class _NotSent(Exception):
    """Certainly not executed. `hopeless`: asking again within seconds changes nothing."""

    def __init__(self, reason: str, hopeless: bool = False) -> None:
        super().__init__(reason)
        self.hopeless = hopeless


class ApiClient:
    """The API under one URL with one token source.

    `request` raises Unauthorized, Unreachable, RateLimited, OutcomeUnknown, ServerError; every
    other answer, also 4xx and 500, is returned for the dialect to understand. `calls` counts what
    was sent, by method and endpoint. `breaker` ends calls at once while the API is offline.
    `heartbeat` is the cheapest thing to ask for, which tells whether it is back. `clock` has learnt
    the server's time from its answers.
    """

    def __init__(
        self,
        url: str,
        token_source: TokenSource,
        *,
        parallel_calls: int = 4,
        request_timeout: float = 30.0,
        patience: float = 20.0,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self.url = url.rstrip("/")
        self.calls: Counter[str] = Counter()
        self.breaker = Breaker(self.url)
        self.breaker.look_with(self._is_there)
        self.heartbeat = "/"
        self.clock = ServerClock()
        self._tokens = token_source
        self._limiter = trio.CapacityLimiter(parallel_calls)
        self._request_timeout = request_timeout
        self._patience = patience
        self._jitter = jitter
        self._judge: Judge = lambda reply: None
        self._held_until = -math.inf  # trio time before which a 429 asked us not to call
        self._client = httpx.AsyncClient(
            verify=_tls(),
            follow_redirects=False,
            timeout=httpx.Timeout(request_timeout, connect=min(CONNECT_TIMEOUT, request_timeout)),
            limits=httpx.Limits(keepalive_expiry=KEEPALIVE),
            headers={"User-Agent": f"f7tfs/{__version__}", "Accept": "application/json, */*"},
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with trio.CancelScope(shield=True), trio.move_on_after(1):
            await self._client.aclose()

    def adapt(self, *, judge: Judge, most_calls: int) -> None:
        """What the dialect behind the URL asks for: its opinion of answers, and a limit of the
        calls at once."""
        self._judge = judge
        self._limiter.total_tokens = min(self._limiter.total_tokens, most_calls)

    async def request(
        self,
        method: str,
        path: str,
        *,
        idempotent: bool,
        query: Mapping[str, str] | None = None,
        form: Mapping[str, str] | None = None,
        files: Mapping[str, tuple[str, bytes]] | None = None,
        document: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        endpoint: str | None = None,
    ) -> Reply:
        """One call. `form` goes urlencoded, or multipart together with `files` (field → file name,
        content); `document` as JSON. `idempotent` says that it changes nothing. `endpoint` is the
        name to count under where `path` holds an id or a system."""
        label = f"{method} {endpoint or path}"
        body = None
        if document is not None:
            body = msgspec.json.encode(document)
            headers = {"Content-Type": "application/json", **(headers or {})}
        began = trio.current_time()
        await self.breaker.admit()
        patience = Patience(self._patience, self._jitter, self.breaker.sleep)
        await self._respect_hold(label, patience)
        renewed = False
        bad_gateways = 0
        while True:
            try:
                token = await self._tokens.token()
            except Unreachable as error:
                if not await patience.wait(patience.next_backoff()):
                    self.breaker.unconnected(began, str(error))
                    raise
                log.debug("%s waits for a token: %s", label, error)
                continue
            try:
                reply = await self._send(
                    label,
                    method,
                    path,
                    token,
                    query=query,
                    form=form,
                    files=files,
                    body=body,
                    headers=headers,
                )
            except _NotSent as error:
                if error.hopeless or not await patience.wait(patience.next_backoff()):
                    words = f"{self.url} cannot be reached: {error}"
                    raise self.breaker.unconnected(began, words) from None
                continue
            except _Lost as error:
                if not idempotent:
                    raise OutcomeUnknown(f"{label}: the reply was lost: {error}") from None
                if not await patience.wait(patience.next_backoff()):
                    words = f"{self.url} does not answer: {error}"
                    raise await self.breaker.suspect(words) from None
                continue

            status = reply.status
            verdict = self._judge(reply)
            if verdict is not None or _is_from_the_api(status):
                self.breaker.answered()
            if status == 401:
                self._tokens.invalidate(token)
                if renewed:
                    raise Unauthorized(f"{self.url} refuses the login: {words_of(reply)}")
                renewed = True
            elif status == 429:
                await self._wait_for_rate(label, reply, patience)
            elif status in _REDIRECTS:
                words = f"{self.url} redirects {label} elsewhere; is the URL right?"
                raise await self.breaker.suspect(words)
            elif verdict is Verdict.FINAL:
                return reply
            elif verdict is not None:
                repeatable = idempotent or verdict is Verdict.NOT_EXECUTED
                if not repeatable or not await patience.wait(patience.next_backoff()):
                    return reply
            elif status not in _GATEWAY_TROUBLE:
                return reply
            elif not idempotent and (status != 503 or "retry-after" not in reply.headers):
                raise OutcomeUnknown(f"{label}: the gateway answered {status}")
            else:
                bad_gateways += status == 502
                if bad_gateways >= TRIES_AT_502:
                    raise ServerError(f"{label}: {self.url} answered 502 {bad_gateways} times")
                wait = retry_after(reply.headers)
                if not await patience.wait(patience.next_backoff() if wait is None else wait):
                    words = f"{self.url} is not available: {label} gave {status}"
                    raise await self.breaker.suspect(words)

    async def _is_there(self) -> bool:
        """Whether the API answers at all, past the limit of parallel calls: those may hang."""
        try:
            token = await self._tokens.token()
            reply = await self._exchange(f"GET {self.heartbeat}", "GET", self.heartbeat, token)
        except (Unreachable, _NotSent, _Lost):
            return False
        except F7tfsError:  # the login is refused: that is for the next caller to hear
            return True
        return self._judge(reply) is not None or _is_from_the_api(reply.status)

    async def _send(self, label: str, *words: str, **content: Any) -> Reply:
        """One attempt among a limited number at once. Raises _NotSent or _Lost."""
        async with self._limiter:
            return await self._exchange(label, *words, **content)

    async def _exchange(
        self,
        label: str,
        method: str,
        path: str,
        token: str,
        *,
        query: Mapping[str, str] | None = None,
        form: Mapping[str, str] | None = None,
        files: Mapping[str, tuple[str, bytes]] | None = None,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Reply:
        parts = {
            field: (name, content, "application/octet-stream")
            for field, (name, content) in (files or {}).items()
        }
        self.calls[label] += 1
        started = time.perf_counter()
        outcome: object = "no reply"
        try:
            # The client's timeouts end a call that stands still; this one ends a trickle.
            with trio.fail_after(10 * self._request_timeout):
                response = await self._client.request(
                    method,
                    self.url + path,
                    params=query,
                    data=form,
                    files=parts or None,
                    content=body,
                    headers={"Authorization": f"Bearer {token}", **(headers or {})},
                )
            outcome = response.status_code
        except _NOT_SENT as error:
            raise _NotSent(_reason(error), _is_hopeless(error)) from None
        except (httpx.HTTPError, trio.TooSlowError) as error:
            raise _Lost(_reason(error)) from None
        finally:
            ms = (time.perf_counter() - started) * 1000
            log.debug("%s → %s in %.0f ms", label, outcome, ms)
        lower = {name.lower(): value for name, value in response.headers.items()}
        self.clock.hear(lower)
        if response.status_code == 500 and "x-request-id" not in lower:
            await _let_it_drop(response)
        return Reply(response.status_code, lower, response.content)

    async def _respect_hold(self, label: str, patience: Patience) -> None:
        held = self._held_until - trio.current_time()
        if held > 0 and not await patience.wait(held):
            raise RateLimited(f"{self.url} limits the rate of calls ({label})", held)

    async def _wait_for_rate(self, label: str, reply: Reply, patience: Patience) -> None:
        told = retry_after(reply.headers)
        wait = told
        if wait is None:
            wait = patience.next_backoff(RATE_BACKOFF_FIRST, RATE_BACKOFF_CAP)
        self._held_until = max(self._held_until, trio.current_time() + min(wait, SHARED_HOLD_CAP))
        if not await patience.wait(wait):
            raise RateLimited(f"{self.url} limits the rate of calls ({label})", told)


class Streamed:
    """An answer of the object store whose body is read as it comes."""

    def __init__(self, response: httpx.Response) -> None:
        self._response = response
        self.status = response.status_code
        self.headers = {name.lower(): value for name, value in response.headers.items()}

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """The raw body, in pieces of up to 1 MiB. Raises Unreachable, Stalled."""
        raw = self._response.aiter_raw()
        whole = False
        try:
            with _StorageFaults():
                async for chunk in raw:
                    yield chunk
            whole = True
        finally:
            if not whole:
                await self._cut(raw)

    async def _cut(self, raw: AsyncIterator[bytes]) -> None:
        """End the nest of generators under `raw` in order, by a closed connection: left to the
        garbage collector, each would warn."""
        with trio.CancelScope(shield=True), trio.move_on_after(1):
            stream = self._response.extensions.get("network_stream")
            if stream is not None:
                await stream.aclose()
            try:
                async for _ in raw:
                    pass
            except (httpx.HTTPError, httpx.StreamError):
                pass  # that is the order

    async def text(self, limit: int = 65536) -> str:
        """The beginning of the body, for error documents."""
        found = b""
        async with aclosing(self.chunks()) as chunks:
            async for chunk in chunks:
                found += chunk
                if len(found) >= limit:
                    break
        return found[:limit].decode(errors="replace")


class StorageClient:
    """The object store behind presigned links and forms. Never sends a bearer.

    `stall_timeout`: seconds without a byte in either direction after which a transfer is given up.
    """

    def __init__(self, *, stall_timeout: float = 60.0) -> None:
        self._client = httpx.AsyncClient(
            verify=_tls(),
            timeout=httpx.Timeout(stall_timeout, connect=CONNECT_TIMEOUT, pool=None),
            limits=httpx.Limits(max_connections=None, keepalive_expiry=KEEPALIVE),
            headers={"User-Agent": f"f7tfs/{__version__}", "Accept-Encoding": "identity"},
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with trio.CancelScope(shield=True), trio.move_on_after(1):
            await self._client.aclose()

    @asynccontextmanager
    async def get(self, link: str, headers: Mapping[str, str]) -> AsyncIterator[Streamed]:
        """GET a presigned link; redirects are followed, with `headers` and nothing else."""
        with _StorageFaults():
            request = self._client.build_request("GET", link, headers=headers)
            response = await self._client.send(request, stream=True, follow_redirects=True)
        try:
            yield Streamed(response)
        finally:
            with trio.CancelScope(shield=True), trio.move_on_after(1):
                await response.aclose()

    async def send(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str],
        length: int,
        content: AsyncIterator[bytes],
    ) -> Reply:
        """Send a body of exactly `length` bytes. Raises Unreachable, Stalled."""
        with _StorageFaults():
            response = await self._client.request(
                method,
                url,
                headers={**headers, "Content-Length": str(length)},
                content=content,
            )
        lower = {name.lower(): value for name, value in response.headers.items()}
        return Reply(response.status_code, lower, response.content)


class _StorageFaults:
    """Turns httpx's exceptions into ours, without the URL, which is a secret here."""

    def __enter__(self) -> None:
        return None

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if isinstance(error, (httpx.ReadTimeout, httpx.WriteTimeout)):
            raise Stalled("the object store: no byte moved for too long") from None
        if isinstance(error, (httpx.HTTPError, httpx.InvalidURL)):
            raise Unreachable(f"the object store: {_reason(error)}") from None


async def post_form(url: str, form: Mapping[str, str], *, timeout: float = 30.0) -> Reply:
    """POST an urlencoded form, for token endpoints. Raises Unreachable."""
    try:
        async with httpx.AsyncClient(
            verify=_tls(), timeout=httpx.Timeout(timeout, connect=min(CONNECT_TIMEOUT, timeout))
        ) as client:
            response = await client.post(
                url, data=dict(form), headers={"Accept": "application/json"}
            )
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise Unreachable(f"{url} cannot be reached: {_reason(error)}") from None
    lower = {name.lower(): value for name, value in response.headers.items()}
    return Reply(response.status_code, lower, response.content)


async def _let_it_drop(response: httpx.Response) -> None:
    """v2 drops the connection after a fault that nobody caught, told by what its reply lacks (v2
    FACTS §1). Seen in time, the pool does not lose the next call on it."""
    stream = response.extensions.get("network_stream")
    with trio.move_on_after(DROP_GRACE):
        try:
            # Not `wait_readable`: the pool may give the connection to another task meanwhile.
            while stream is not None and not stream.get_extra_info("is_readable"):  # noqa: ASYNC110
                await trio.sleep(DROP_GRACE / 10)
        except (OSError, ValueError):
            pass  # it is closed already


@functools.cache
def _tls() -> ssl.SSLContext:
    """One context for all clients: loading the certificates takes tens of milliseconds."""
    return httpx.create_ssl_context()


def _reason(error: BaseException) -> str:
    return str(error).strip() or type(error).__name__


def _is_from_the_api(status: int) -> bool:
    return status not in _GATEWAY_TROUBLE and status not in _REDIRECTS


def _is_hopeless(error: BaseException) -> bool:
    if isinstance(error, (httpx.UnsupportedProtocol, httpx.InvalidURL)):
        return True
    return "CERTIFICATE_VERIFY_FAILED" in str(error)
