"""Objects made of a file: by one form (v1 FACTS §6), or in parts (v2 FACTS §7).

How a request's bytes get there is the `Sender`'s business.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Awaitable, Callable, Mapping
from urllib.parse import parse_qsl, urlencode, urlsplit
from xml.sax.saxutils import escape

import trio

from f7tfs.api.port import UploadForm, UploadParts
from f7tfs.api.replies import Reply
from f7tfs.api.store import OnSent, Outgoing, Sender, code_of, is_success, refusal
from f7tfs.errors import F7tfsError, LinkExpired, ServerError, Stalled, Unreachable, Unsupported

log = logging.getLogger("f7tfs.api")

PARALLEL_PARTS = 3
TRIES = 4  # of one part, and of the completion
RETRY_PAUSE = 0.5  # seconds before the second try; doubles

OnPart = Callable[[int, str], Awaitable[None]]
"""Gets the number, from 1 on, and the ETag of a part that the store has."""


def _nothing(sent: int) -> None:
    pass


async def no_record(number: int, etag: str) -> None:
    """Nobody resumes this one."""


async def send_form(
    send: Sender, form: UploadForm, fd: int, size: int, *, on_progress: OnSent = _nothing
) -> None:
    """Send the first `size` bytes of the open file `fd` with a form. `on_progress` gets the
    number of bytes of content handed over so far.

    Raises LinkExpired (401, 403, 404), TooLarge, Unreachable for a lost connection: the form
    can be sent again, the object is only ever replaced by the same bytes. Changed when the file
    is shorter than `size`.
    """
    boundary = secrets.token_hex(16)
    head, tail = _frame(form, boundary)
    kind = f"multipart/form-data; boundary={boundary}"
    request = Outgoing(
        form.method,
        _with_parameters(form.url, form.params),
        (*_harmless(form.headers), ("Content-Type", kind)),
        size,
        head=head,
        tail=tail,
    )
    reply = await send(request, fd, on_progress)
    if not is_success(reply.status):
        raise _refusal(reply)


async def send_parts(
    send: Sender,
    parts: UploadParts,
    fd: int,
    size: int,
    *,
    sent: Mapping[int, str] | None = None,
    on_part: OnPart = no_record,
    on_progress: OnSent = _nothing,
) -> None:
    """Send the first `size` bytes of the open file `fd` in parts, a few at once, and complete
    the object. `sent`: numbers and ETags of parts that an earlier try has brought there, of the
    same bytes; they are not sent again. `on_part` gets those of each other one. `on_progress` gets
    the number of bytes handed over so far; it goes back where a part is sent again.

    Raises LinkExpired (401, 403, 404; also where the store does not know the parts in `sent` any
    more), TooLarge, Changed when the file is shorter than `size`, Unreachable or Stalled when a
    part still fails after some tries; the whole can be sent again. ServerError where the parts do
    not fit the file, or are refused.
    """
    if size <= 0 or parts.part_size <= 0:
        raise Unsupported("an empty file cannot be sent in parts")
    if len(parts.urls) * parts.part_size < size:
        raise ServerError(f"the server gave too few parts for {size} bytes")
    work = _Parts(send, parts, fd, size, sent or {}, on_part, on_progress)
    had_all, took_over = not work.missing, bool(work.etags)
    document = _completion(await work.send())
    try:
        await _complete(send, parts.complete_url, document, fd, may_be_complete=had_all)
    except ServerError as error:
        if not took_over:
            raise
        raise LinkExpired(f"parts of an earlier try are not there: {error}") from error


async def _complete(
    send: Sender, url: str, document: bytes, fd: int, *, may_be_complete: bool
) -> None:
    """Completing twice makes the same object of the same parts. `may_be_complete`: an earlier try
    may have gone through, so that the store knows no such upload any more."""
    headers = (("Content-Type", "application/xml"),)
    request = Outgoing("POST", url, headers, 0, head=document)
    for attempt in range(TRIES):
        try:
            reply = await send(request, fd, _nothing)
            text = reply.body.decode(errors="replace")
            # A store that needs long answers 200 before it knows how it ends.
            if is_success(reply.status) and "<Error>" not in text:
                return
            code = code_of(text)
            if code == "NoSuchUpload" and (attempt or may_be_complete):
                return  # an earlier try went through and its reply was lost
            if reply.status == 200 and code in {"InternalError", "SlowDown"}:
                raise Unreachable(f"the object store answered {code} at the end")
            raise refusal(reply.status, text)
        except (Unreachable, Stalled) as error:
            if attempt == TRIES - 1:
                raise
            log.info("completing an upload: %s; once more", error)
            await trio.sleep(RETRY_PAUSE * 2**attempt)


class _Parts:
    """One object on its way in parts, in one call of `send_parts`."""

    def __init__(
        self,
        send: Sender,
        parts: UploadParts,
        fd: int,
        size: int,
        sent: Mapping[int, str],
        on_part: OnPart,
        on_progress: OnSent,
    ) -> None:
        self._send = send
        self._urls = parts.urls
        self._fd = fd
        self._on_part = on_part
        self._on_progress = on_progress
        length = parts.part_size
        self._extents = [(start, min(length, size - start)) for start in range(0, size, length)]
        numbers = range(1, len(self._extents) + 1)
        self.etags = {number: sent[number] for number in numbers if number in sent}
        self.missing = [number for number in numbers if number not in sent]
        self._sent = [
            length if number in sent else 0
            for number, (_, length) in enumerate(self._extents, 1)
        ]  # fmt: skip

    async def send(self) -> dict[int, str]:
        """All parts that are missing, a few at once; the ETags of all. The first failure ends the
        others."""
        failures: list[F7tfsError] = []
        waiting = iter(self.missing)

        async def work(nursery: trio.Nursery) -> None:
            try:
                for number in waiting:
                    await self._persist(number)
            except F7tfsError as error:
                failures.append(error)
                nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            for _ in range(min(PARALLEL_PARTS, len(self.missing))):
                nursery.start_soon(work, nursery)
        if failures:
            raise failures[0]
        return self.etags

    async def _persist(self, number: int) -> None:
        """A part that fails is sent again; the others stay where they are."""
        for attempt in range(TRIES):
            try:
                etag = await self._put(number)
            except (Unreachable, Stalled) as error:
                self._note(number, 0)
                if attempt == TRIES - 1:
                    raise
                log.info("part %d of an upload: %s; it is sent again", number, error)
                await trio.sleep(RETRY_PAUSE * 2**attempt)
            else:
                self.etags[number] = etag
                await self._on_part(number, etag)
                return

    async def _put(self, number: int) -> str:
        start, length = self._extents[number - 1]
        request = Outgoing("PUT", self._urls[number - 1], (), length, start=start)
        reply = await self._send(request, self._fd, lambda sent: self._note(number, sent))
        if not is_success(reply.status):
            raise _refusal(reply)
        etag = reply.headers.get("etag", "")
        if not etag:
            raise ServerError("the object store gave no ETag for a part")
        return etag

    def _note(self, number: int, sent: int) -> None:
        self._sent[number - 1] = sent
        self._on_progress(sum(self._sent))


def _refusal(reply: Reply) -> F7tfsError:
    return refusal(reply.status, reply.body.decode(errors="replace"))


def _completion(etags: Mapping[int, str]) -> bytes:
    """The document that makes one object of the parts; the quotes of the ETags belong to it."""
    parts = "".join(
        f"<Part><PartNumber>{number}</PartNumber><ETag>{escape(etag)}</ETag></Part>"
        for number, etag in sorted(etags.items())
    )
    namespace = "http://s3.amazonaws.com/doc/2006-03-01/"
    return (
        f'<CompleteMultipartUpload xmlns="{namespace}">{parts}</CompleteMultipartUpload>'
    ).encode()


def _with_parameters(url: str, parameters: tuple[tuple[str, str], ...]) -> str:
    """A ticket's own ones replace those of its URL."""
    if not parameters:
        return url
    parts = urlsplit(url)
    query = {**dict(parse_qsl(parts.query, keep_blank_values=True)), **dict(parameters)}
    return parts._replace(query=urlencode(query)).geturl()


def _harmless(headers: tuple[tuple[str, str], ...]) -> list[tuple[str, str]]:
    """What a ticket may set: the frame of the message is ours, and it carries no login."""
    ours = {"content-type", "content-length", "transfer-encoding", "host", "authorization"}
    return [(name, value) for name, value in headers if name.lower() not in ours]


def _frame(form: UploadForm, boundary: str) -> tuple[bytes, bytes]:
    """What stands before and after the content: all fields in their order, the file last."""
    head = b"".join(
        f'--{boundary}\r\nContent-Disposition: form-data; name="{_quoted(name)}"\r\n\r\n'
        f"{value}\r\n".encode()
        for name, value in form.fields
    )
    head += (
        f'--{boundary}\r\nContent-Disposition: form-data; name="{_quoted(form.file_field)}"; '
        f'filename="{_quoted(form.file_name)}"\r\nContent-Type: application/octet-stream\r\n\r\n'
    ).encode()
    return head, f"\r\n--{boundary}--\r\n".encode()


def _quoted(text: str) -> str:
    return text.replace('"', "%22").replace("\r", "%0D").replace("\n", "%0A")
