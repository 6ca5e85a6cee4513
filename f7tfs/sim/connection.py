"""A TCP connection as hypercorn's server sees it, with bigger reads."""

from __future__ import annotations

import trio

_READ = 1 << 19
"""hypercorn reads 64 KiB at a time; a gigabyte of upload wants fewer, larger messages."""


class Connection:
    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self.socket = stream.socket

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        return bytes(await self._stream.receive_some(_READ))

    async def send_all(self, data: bytes) -> None:
        await self._stream.send_all(data)

    async def send_eof(self) -> None:
        await self._stream.send_eof()

    async def aclose(self) -> None:
        await self._stream.aclose()
