"""The bulk data process: moves bytes between files and the object store, at the speed of the link.

Run by `mover.Mover` as `python -m f7tfs.api.mover_worker FD`, with a socket of whole messages
(SOCK_SEQPACKET) as descriptor FD; its end is the end of the process. It has no state, no bearer and
no event loop: a thread per order moves what its socket gets or takes inside the kernel
(docs/decisions/0010 and 0012 have the figures).

    → {"id": 1, "link": …, "start": 0, "end": 8388608, "timeout": 60}    with the file's descriptor
    → {"id": 2, "send": {"method": …, "url": …, "headers": [[…, …], …], "start": 0, "length": …,
                         "head": base64, "tail": base64}, "timeout": 60}  likewise
    → {"cancel": 1}
    ← {"id": 0}                                      it runs
    ← {"id": 1, "at": 1048576}                       bytes up to here are in the file, or sent
    ← {"id": 1, "done": true, "status": 206, …}      the last word of an order; see `Outcome`
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
from typing import Any

from f7tfs.api.mover_fetch import Range
from f7tfs.api.mover_order import Connections, Order
from f7tfs.api.mover_send import Body


class _Worker:
    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._connections = Connections()
        self._orders: dict[int, Order] = {}

    def run(self) -> None:
        self.say({"id": 0})  # it runs
        while True:
            try:
                message, fds, _, _ = socket.recv_fds(self._channel, 1 << 17, 1)
            except ConnectionResetError:  # the daemon was killed with words of ours unread
                return
            if not message:
                return
            words = json.loads(message)
            if "cancel" in words:
                known = self._orders.get(words["cancel"])
                if known is not None:
                    known.cancel()
                continue
            kind = Body if "send" in words else Range
            order = self._orders[words["id"]] = kind(self.say, self._connections, words, fds[0])
            threading.Thread(target=self._carry, args=(order,), daemon=True).start()

    def _carry(self, order: Order) -> None:
        order.run()
        self._orders.pop(order.id, None)

    def say(self, words: dict[str, Any]) -> None:
        """Told or dead: an order whose last word is lost would be waited for for ever."""
        try:
            self._channel.send(json.dumps(words).encode())
        except OSError:
            os._exit(1)


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is for the daemon
    with socket.socket(fileno=int(sys.argv[1])) as channel:
        _Worker(channel).run()
    os._exit(0)  # threads may hang in a socket


if __name__ == "__main__":
    main()
