"""The uploader: when a dirty file is due, who may run, and what happens when an attempt fails.

One task an attempt, strictly serial per path (an entry is UPLOADING at most once), bounded in
parallel. How one attempt travels is in `attempt`, how many small files travel together in `bulk`.
"""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Awaitable, Callable, Collection, Iterable

import trio

from f7tfs.api.breaker import Breaker
from f7tfs.content.spool import Spool, SpoolEntry, State
from f7tfs.errors import (
    Cancelled,
    F7tfsError,
    RateLimited,
    ServerError,
    StagingFailed,
    Stuck,
    Unauthorized,
    Unreachable,
    errno_of,
)
from f7tfs.faultpoints import reached
from f7tfs.model import RemotePath
from f7tfs.transfers.attempt import Attempts, Superseded
from f7tfs.transfers.bulk import FEW, Bulk
from f7tfs.transfers.unsettled import Unsettled

log = logging.getLogger("f7tfs.upload")
LONGEST_PAUSE = 60.0
LONGEST_DELAYS = 10
ARCHIVES = 2  # at once
AGAIN = 1.0  # seconds until what an archive did not bring is in the next one
BURST = 0.02  # seconds
LOOK_SHARE = 0.1  # of the time, at most, that looks at all dirty files may take
UNCLASSIFIED_TRIES = 10
CANCELLED_TRIES = 3
NO_ROOM = {errno.ENOSPC, errno.EDQUOT}


class Uploads:
    def __init__(
        self,
        spool: Spool,
        attempts: Attempts,
        bulk: Bulk,
        unsettled: Unsettled,
        nursery: trio.Nursery,
        *,
        breaker: Breaker,
        delay: float,
        hold: float,
    ) -> None:
        self._breaker = breaker
        self._spool = spool
        self._attempts = attempts
        self._bulk = bulk
        self._unsettled = unsettled
        self._archives = 0  # on their way
        self._nursery = nursery
        self._delay = delay
        self._hold = hold
        self._wake = trio.Event()

    # What the tree tells.

    async def released(self, entry: SpoolEntry) -> None:
        """A writer let go of it: after the last one, what was written is journaled, and owed from
        then on. Where the local disk has no room for that, close() has told so; the bytes are here,
        and shown, and it is tried until there is. (Not after another error of the disk: that is
        told once, and a second fsync would pass over lost bytes.)"""
        if entry.writers or entry.state is not State.OPEN:
            return
        try:
            await self._write_down(entry)
        except (OSError, F7tfsError) as error:
            is_tried = entry.refused in NO_ROOM
            entry.error, entry.errno = str(error), errno_of(error)
            entry.refused = entry.errno
            log.warning("%s is not in the journal: %s", entry.path, error)
            if not is_tried and entry.refused in NO_ROOM:
                self.later(self._write_down_later, entry)
            raise

    async def _write_down(self, entry: SpoolEntry) -> None:
        await self._spool.commit(entry)
        if not entry.writers and entry.state is State.OPEN:
            self.closed(entry)

    async def _write_down_later(self, entry: SpoolEntry) -> None:
        pause = 1.0
        while not entry.writers and entry.state is State.OPEN:
            await trio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)
            try:
                await self._write_down(entry)
            except (OSError, F7tfsError) as error:
                log.info("%s is not in the journal: %s", entry.path, error)
            else:
                log.info("%s is in the journal now", entry.path)
        entry.refused = 0

    async def write_down(self, entries: Iterable[SpoolEntry]) -> OSError | F7tfsError | None:
        """Of these, what the journal did not take when it was closed; returns why it still does
        not."""
        failed: OSError | F7tfsError | None = None
        for entry in entries:
            if not entry.is_unwritten:
                continue
            if entry.refused and entry.refused not in NO_ROOM:
                failed = OSError(entry.refused, f"{entry.path}: {entry.error}")
                continue
            try:
                await self._write_down(entry)
            except (OSError, F7tfsError) as error:
                log.info("%s is not in the journal: %s", entry.path, error)
                failed = error
        return failed

    def closed(self, entry: SpoolEntry) -> None:
        """The last writer let go of a journaled entry: it is owed from now on. A file that is
        written again and again is sent at the latest ten delays after its first close."""
        if entry.is_gone:
            return
        entry.error, entry.refused = None, 0
        entry.attempts = entry.cancels = entry.archives = 0
        entry.is_alone = False
        now = trio.current_time()
        if entry.owed_since is None:
            entry.owed_since = now
        if entry.hold:
            entry.due = self._hold_until(entry)  # before the move: others see both at once
            self._spool.move(entry, State.HELD)
        else:
            entry.due = min(now + self._delay, entry.owed_since + LONGEST_DELAYS * self._delay)
            if entry.is_hurried:
                entry.due = now
            self._spool.move(entry, State.QUEUED)
        self._poke()

    def _hold_until(self, entry: SpoolEntry) -> float:
        if entry.is_junk:
            return float("inf")
        return trio.current_time() + self._hold

    def renamed(self, entry: SpoolEntry) -> None:
        """A dirty file has a new name: an editor's temporary becomes the file, or the other way."""
        if entry.state in {State.HELD, State.QUEUED, State.STUCK}:
            self.closed(entry)

    async def discard(self, entry: SpoolEntry) -> None:
        """Forget a dirty file that was unlinked before it was published."""
        entry.version += 1  # an attempt under way publishes nothing
        journaled = entry.journaled > 0 or entry.replaced
        self._spool.use(entry)  # its file outlives its record, never the other way round
        try:
            self._spool.unlink(entry)
            reached("discard.unlinked")
            if journaled:
                await self._spool.drop_record(entry)
                reached("discard.record-dropped")
        finally:
            self._spool.leave_when_durable(entry)
        if not entry.is_running:  # else the attempt cleans up once its call is over
            self.later(self._attempts.abandon, entry)

    async def recognise(self, entry: SpoolEntry) -> None:
        """Whether a publishing whose reply was lost went through. The caller holds the turn."""
        await self._attempts.recognise(entry)

    def later(self, work: Callable[..., Awaitable[object]], *arguments: object) -> None:
        """Work that nobody waits for, in the mount's nursery; its faults are only logged."""
        self._nursery.start_soon(self._quietly, work, arguments)

    async def _quietly(
        self, work: Callable[..., Awaitable[object]], arguments: tuple[object, ...]
    ) -> None:
        try:
            await work(*arguments)
        except F7tfsError as error:
            log.info("%s", error)
        except Exception:
            log.exception("in the background")

    def retry(self, entries: Iterable[SpoolEntry]) -> None:
        """Queue stuck files again, now; those that wait for their next try have it now."""
        for entry in entries:
            if entry.state is State.STUCK:
                self._requeue(entry, 0.0)
                entry.attempts = entry.cancels = 0
                self.later(self._spool.save, entry)
            elif entry.state is State.QUEUED and entry.attempts:
                entry.due = trio.current_time()
        self._poke()

    def hurry(self, entries: Collection[SpoolEntry]) -> None:
        """No more delay for these: somebody waits."""
        for entry in entries:
            if not entry.is_owed:
                continue
            entry.is_hurried = True
            if entry.state in {State.OPEN, State.QUEUED, State.HELD}:
                self._spool.move(entry, State.QUEUED)
                if entry.attempts == 0:
                    entry.due = trio.current_time()
        self._poke()

    async def settled(self, entries: Collection[SpoolEntry]) -> list[SpoolEntry]:
        """Wait until what each holds now is on the cluster or stuck; returns the stuck ones. A
        file that somebody has begun to write again is not waited for: its bytes are journaled."""
        waiting = [(one, one.version) for one in entries]
        while True:
            left = []
            for one, version in waiting:  # by and by: a change looks at one of them, not at all
                while _is_awaited(one, version) and one.state is not State.STUCK:
                    await self._spool.changed.wait()
                if _is_awaited(one, version):
                    left.append((one, version))
            waiting = left
            stuck = [one for one, _ in waiting if one.state is State.STUCK]
            if len(stuck) == len(waiting):
                return stuck

    async def drain(self, directory: RemotePath) -> list[SpoolEntry]:
        """Everything at or below `directory` that was closed, to the cluster now, also what is
        held under a temporary name; returns what is stuck. Raises what keeps the journal from
        taking what was closed."""
        failed = await self.write_down(self._spool.within(directory))
        owed = [one for one in self._spool.within(directory) if one.is_owed]
        self.hurry(owed)
        stuck = await self.settled(owed)
        if failed is not None:
            raise failed
        return stuck

    async def bring(self, entry: SpoolEntry) -> None:
        """Wait until the cluster has what the entry holds now, however often it is written to
        meanwhile. Junk stays here. Raises Stuck."""
        version = entry.version
        while not entry.is_gone and entry.published < version:
            if entry.journaled != entry.generation:
                await self._spool.commit(entry)
                continue
            if entry.is_junk:
                return
            if entry.state is State.STUCK:
                raise Stuck(f"{entry.path} is stuck: {entry.error}", entry.errno)
            if entry.state in {State.OPEN, State.HELD} or not entry.is_hurried:
                self.hurry([entry])  # once: it wakes whoever waits
            await self._spool.changed.wait()

    # Running.

    async def run(self) -> None:
        """Start due attempts for ever."""
        for entry in self._spool:  # what an earlier daemon left is due at once
            held = entry.state is State.HELD
            entry.due = self._hold_until(entry) if held else trio.current_time()
        while True:
            await self._breaker.back()  # while the API is offline, nothing is tried
            now, next_due = trio.current_time(), float("inf")
            began = time.perf_counter()
            together = []
            for entry in self._spool:
                if (
                    entry.state not in {State.QUEUED, State.HELD}
                    or entry.is_running
                    or not self._unsettled.is_settled(*entry.names)
                ):
                    continue
                if entry.state is State.QUEUED and self._bulk.fits(entry):
                    together.append(entry)
                elif entry.due > now:
                    next_due = min(next_due, entry.due)
                else:
                    self._begin(entry)
                    self._nursery.start_soon(self._attempt, entry)
            next_due = min(next_due, self._start_archives(together, now))
            self._wake = trio.Event()
            took = time.perf_counter() - began
            with trio.move_on_at(next_due):
                await self._wake.wait()
            # Closes come in bursts; one look serves them all.
            await trio.sleep(max(BURST, took / LOOK_SHARE))

    def _start_archives(self, waiting: list[SpoolEntry], now: float) -> float:
        """Send what is ready to go in archives, or alone where there are not enough for one;
        returns when to look again (trio time)."""
        while waiting and self._archives < ARCHIVES:
            longest = LONGEST_DELAYS * self._delay
            taken = self._bulk.cut(waiting, now=now, longest=longest)
            if not taken:
                return self._bulk.next_cut(waiting, now=now, longest=longest)
            chosen = set(taken)
            waiting = [one for one in waiting if one not in chosen]
            for entry in taken:
                self._begin(entry)
            if len(taken) < FEW:
                for entry in taken:
                    self._nursery.start_soon(self._attempt, entry)
            else:
                self._archives += 1
                self._nursery.start_soon(self._attempt_together, taken)
        return float("inf")

    def _begin(self, entry: SpoolEntry) -> None:
        if entry.state is State.HELD:
            self._spool.move(entry, State.QUEUED)
        self._spool.move(entry, State.UPLOADING)
        entry.is_running = True
        self._spool.use(entry)

    def _poke(self) -> None:
        self._wake.set()

    async def _attempt(self, entry: SpoolEntry) -> None:
        version, path = entry.version, entry.path
        try:
            await self._attempts.run(entry)
            if entry.state is State.UPLOADING:  # written to while the last bytes were published
                self._requeue(entry, self._delay)
        except Superseded:
            self._superseded(entry)
        except (F7tfsError, OSError) as error:
            # Written again, or a directory above it got another name while the call was under way.
            is_moving = not self._unsettled.is_settled(*entry.names)
            if entry.version != version or entry.path != path or is_moving:
                self._superseded(entry)
            else:
                self._failed(entry, error)
        except Exception as error:
            log.exception("upload of %s", entry.path)
            self._failed(entry, ServerError(f"internal error: {error!r}"))
        finally:
            self._end(entry)

    async def _attempt_together(self, entries: list[SpoolEntry]) -> None:
        try:
            await self._bulk.send(entries)
        except (F7tfsError, OSError) as error:
            log.warning("an archive of %d files: %s", len(entries), error)
            for entry in entries:
                self._failed(entry, error, is_told=True)
        except Exception:
            log.exception("an archive of %d files", len(entries))
            for entry in entries:
                entry.is_alone = True
        finally:
            self._archives -= 1
            for entry in entries:
                if entry.state is State.UPLOADING:  # it did not arrive, or its turn was taken
                    self._requeue(entry, 0.0 if entry.is_alone else AGAIN)
                self._end(entry)

    def _end(self, entry: SpoolEntry) -> None:
        entry.is_running = False
        if entry.is_gone:
            self.later(self._attempts.abandon, entry)
        self._spool.leave(entry)
        self._poke()  # it may be due again already

    def _superseded(self, entry: SpoolEntry) -> None:
        log.debug("%s changed during its upload", entry.path)
        if entry.state is State.UPLOADING:
            self._requeue(entry, self._delay)

    def _failed(
        self, entry: SpoolEntry, error: F7tfsError | OSError, *, is_told: bool = False
    ) -> None:
        if entry.is_gone:
            return
        if isinstance(error, Unreachable) and self._breaker.is_offline:
            entry.error = str(error)  # not this file's failure: it goes on when the API is back
            if entry.state is State.UPLOADING:
                self._requeue(entry, 0.0)
            return
        entry.attempts += 1
        entry.cancels += isinstance(error, Cancelled)
        words = " ".join(str(error).split())  # a server's may have several lines
        entry.error, entry.errno = words or type(error).__name__, errno_of(error)
        if entry.state is not State.UPLOADING:
            return  # open again, or moved: closing queues it anew
        if may_pass(error, entry.attempts, entry.cancels):
            pause = min(2.0 ** (entry.attempts - 1), LONGEST_PAUSE)
            if isinstance(error, RateLimited) and error.retry_after is not None:
                pause = max(pause, error.retry_after)
            level = logging.WARNING if entry.attempts in {1, 5} and not is_told else logging.INFO
            log.log(level, "upload of %s: %s; again in %.0f s", entry.path, entry.error, pause)
            self._requeue(entry, pause)
        else:
            log.error("upload of %s is stuck: %s", entry.path, entry.error)
            self._spool.move(entry, State.STUCK)
            self.later(self._spool.save, entry)

    def _requeue(self, entry: SpoolEntry, pause: float) -> None:
        self._spool.move(entry, State.QUEUED)
        entry.due = trio.current_time() + pause
        self._poke()


def _is_awaited(entry: SpoolEntry, version: int) -> bool:
    if entry.is_gone or (entry.state is State.OPEN and entry.version != version):
        return False
    is_ending = entry.state is State.UPLOADING and entry.version == version  # not clean yet
    return entry.published < version or is_ending


def may_pass(error: F7tfsError | OSError, tries: int, cancels: int = 0) -> bool:
    """Whether trying again may help: transient faults and refused logins for ever, unclassified
    ones a few times; what somebody cancels again and again is not wanted."""
    if isinstance(error, Cancelled) and cancels >= CANCELLED_TRIES:
        return False
    if isinstance(error, ServerError | StagingFailed):
        return tries < UNCLASSIFIED_TRIES
    return isinstance(error, Unauthorized) or (isinstance(error, F7tfsError) and error.transient)
