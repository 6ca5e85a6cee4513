"""The composition root: builds one mount bottom-up, serves it, and takes it down again.

The only place that constructs across floors. The kernel's door opens last and closes first; what
is not on the cluster by then is in the journal.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable

import msgspec
import trio

from f7tfs import __version__
from f7tfs.api.connect import open_cluster, token_source
from f7tfs.api.mover import Mover
from f7tfs.api.port import Cluster
from f7tfs.api.staging import StagingArea
from f7tfs.catalog import Catalog
from f7tfs.config import Config, JobsOptions
from f7tfs.content.cache import Cache
from f7tfs.content.disk import Disk
from f7tfs.content.journal import Journal
from f7tfs.content.spool import Spool, State
from f7tfs.content.times import Times
from f7tfs.control.levers import Levers
from f7tfs.control.report import Report
from f7tfs.control.wing import NAME as CONTROL
from f7tfs.control.wing import ControlWing
from f7tfs.errors import (
    F7tfsError,
)
from f7tfs.jobs.board import JobBoard
from f7tfs.jobs.follow import Outputs
from f7tfs.jobs.script import Wishes
from f7tfs.jobs.shelf import Shelf
from f7tfs.jobs.takedown import Takedowns
from f7tfs.jobs.wing import JobsWing
from f7tfs.model import Identity, RemotePath, remote_path
from f7tfs.operations import Door, Operations
from f7tfs.service import recent_lines, sd_notify
from f7tfs.transfers.aliases import Aliases
from f7tfs.transfers.attempt import Attempts
from f7tfs.transfers.bulk import Bulk
from f7tfs.transfers.checksums import Checksums
from f7tfs.transfers.download import Downloads
from f7tfs.transfers.drops import Drops
from f7tfs.transfers.heads import Heads
from f7tfs.transfers.links import Links
from f7tfs.transfers.namespace import Namespace
from f7tfs.transfers.removal import Removals
from f7tfs.transfers.renames import Renames
from f7tfs.transfers.submit import Submissions
from f7tfs.transfers.unsettled import Unsettled
from f7tfs.transfers.upload import Uploads
from f7tfs.transfers.workplace import Workplace
from f7tfs.tree.handles import Floors
from f7tfs.tree.readers import Readers
from f7tfs.tree.remote import RemoteWing
from f7tfs.tree.sniffing import Sniffing
from f7tfs.tree.temporaries import is_junk
from f7tfs.tree.tree import Tree
from f7tfs.tree.waiting import Callers
from f7tfs.tree.wing import Wing
from f7tfs.view import View, look_around
from f7tfs.zone import ClusterZone

log = logging.getLogger("f7tfs.mount")
CLOSING = 5.0  # seconds


class Mounted:
    """Everything that one mount consists of, without its kernel door."""

    tree: Tree
    complaints: list[str]  # what this start found damaged, and set aside

    def __init__(
        self,
        spool: Spool,
        cache: Cache,
        uploads: Uploads,
        removals: Removals,
        floors: Floors,
        workplace: Workplace,
        levers: Levers,
    ) -> None:
        self.levers = levers
        self.workplace = workplace
        self.floors = floors
        self.spool = spool
        self.cache = cache
        self.uploads = uploads
        self.removals = removals

    async def everything_there(self) -> None:
        """Wait until all that was closed is on the cluster. Raises Stuck."""
        await self.levers.flush("")

    def left(self) -> str:
        """What is not on the cluster yet, in one line for the log; "" if nothing."""
        for entry in self.spool:
            if entry.is_unwritten:
                file = self.spool.file_of(entry.id)
                log.error("%s is not in the journal (%s): %s", entry.path, entry.error, file)
        owed, removals = self.spool.owed(), len(self.removals)
        if not owed and not removals:
            return ""
        stuck = [entry for entry in owed if entry.state is State.STUCK]
        named = ", ".join(entry.path for entry in sorted(owed, key=lambda one: one.created)[:5])
        size = sum(entry.size for entry in owed)
        return (
            f"{len(owed)} uploads ({size} bytes, {len(stuck)} stuck) and {removals} removals stay"
            f" in the journal for the next mount: {named}{', …' if len(owed) > 5 else ''}"
        )

    async def close(self) -> None:
        """The last word to the cluster: our working directory goes, if that is quick."""
        with trio.move_on_after(CLOSING):
            await self.workplace.close()

    def check(self) -> None:
        """Every structure's invariants."""
        self.tree.check()
        self.spool.check()
        self.cache.check()


async def serve(config: Config, *, ready: Callable[[list[str]], None]) -> None:
    """Mount and serve until unmounted or told to stop. `ready` gets what the user must hear at
    once, in sentences. Raises f7tfs.errors before `ready` when it cannot serve, Busy when another
    daemon holds the journal."""
    async with build(config) as mounted:
        door = Door(Operations(mounted.tree, mounted.spool.directory), config.mountpoint)
        door.open(
            source=f"{config.system}:{config.remote_path}",
            subtype=config.subtype,
            allow_other=config.allow_other,
            debug=config.debug_fuse,
        )
        stopped = False
        try:
            async with trio.open_nursery() as nursery:

                async def stop_on_signal() -> None:
                    nonlocal stopped
                    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
                        async for number in signals:
                            log.info("%s: stopping", signal.Signals(number).name)
                            stopped = True
                            nursery.cancel_scope.cancel()
                            return

                async def announce() -> None:
                    # The door itself answers the look at its mountpoint: it serves.
                    mounted.floors.waits_in_open = not await door.raise_background_limit()
                    ready(mounted.complaints)

                nursery.start_soon(stop_on_signal)
                nursery.start_soon(announce)
                await door.serve()
                log.info("unmounted")
                nursery.cancel_scope.cancel()
        except Exception:
            # A mirror job must not see an empty directory and delete everything: stay mounted,
            # dead, until the next start or the user unmounts (FUSE.md).
            door.close(unmount=False)
            raise
        door.close(unmount=True)
        with trio.CancelScope(shield=True):
            await mounted.tree.close()
            await mounted.uploads.write_down(mounted.spool)
        if stopped:
            sd_notify("STOPPING=1")
            with trio.move_on_after(config.drain_timeout):
                try:
                    await mounted.removals.drain(RemotePath("/"))
                except (OSError, F7tfsError) as error:
                    log.error("not everything is on the cluster: %s", error)
        if left := mounted.left():
            log.warning("%s", left)


@contextlib.asynccontextmanager
async def build(config: Config) -> AsyncIterator[Mounted]:
    """Everything below the kernel's door, running."""
    async with open_cluster(
        url=config.url,
        token_source=token_source(**msgspec.structs.asdict(config.credentials)),
        system=config.system,
        api=config.api,
        request_timeout=config.request_timeout,
        patience=config.patience,
        stall_timeout=config.stall_timeout,
        account=config.jobs.account,
    ) as (cluster, storage):
        identity = await cluster.whoami()
        view = await look_around(config, cluster, identity.user)
        if identity.uid < 0 and view.owner is not None:  # an old server tells only the name
            log.info("the server does not tell our ids; those of %s are taken", view.home)
            identity = msgspec.structs.replace(identity, uid=view.owner.uid, gid=view.owner.gid)
        journal_directory = config.journal_directory(identity.user)
        journal = Journal(journal_directory, _journal_key(config, identity))
        try:
            disk = Disk()
            cache = Cache(
                config.cluster_cache / journal_directory.name,
                disk,
                limit=config.cache_size,
                min_free=config.cache_min_free,
                now=cluster.clock.now,
            )
            spool = Spool(journal_directory, journal, disk, is_junk_name=is_junk)
            spool.load(Drops.files_of(journal))
            await spool.set_missing_aside()
            clock = config.cluster_cache / f"{journal_directory.name}.clock"
            zone = ClusterZone.remembered(clock, config.timezone)
            try:
                async with trio.open_nursery() as nursery:
                    mounted = await _assemble(
                        config, view, cluster, storage, identity, journal, disk, cache, spool,
                        zone, nursery,
                    )  # fmt: skip
                    mounted.complaints = journal.aside.sentences
                    yield mounted
                    # What is under way needs its archive: it ends before the directory goes.
                    nursery.cancel_scope.cancel()
                await mounted.close()
            finally:
                zone.remember(clock)
                spool.close()
                cache.close()
        finally:
            journal.close()


def _journal_key(config: Config, identity: Identity) -> str:
    return "\n".join((config.url, config.system, identity.user, config.remote_path))


async def _assemble(
    config: Config,
    view: View,
    cluster: Cluster,
    storage: StagingArea,
    identity: Identity,
    journal: Journal,
    disk: Disk,
    cache: Cache,
    spool: Spool,
    zone: ClusterZone,
    nursery: trio.Nursery,
) -> Mounted:
    root = view.root
    storage = storage.carried_by(Mover(nursery, stall_timeout=config.stall_timeout))
    times = Times(journal)
    catalog = Catalog(
        cluster,
        nursery,
        identity=identity,
        zone=zone,
        ttl=config.listing_ttl,
        stale_max=config.stale_max,
        anchors=view.anchors,
    )
    if view.owner is not None:
        catalog.seed(view.home, view.owner)
    machine = f"{_journal_key(config, identity)}\n{config.hostname}"
    workplace = Workplace(cluster, catalog, journal, root=view.home, key=machine)
    namespace = Namespace(cluster, catalog, workplace, journal)
    unsettled = Unsettled(journal)
    renames = Renames(
        cluster,
        catalog,
        namespace,
        workplace,
        journal,
        unsettled,
        identity,
        stall_timeout=config.stall_timeout,
    )
    downloads = Downloads(
        cluster,
        storage,
        catalog,
        cache,
        workplace,
        Links(cluster, storage, catalog, cache, workplace, stall_timeout=config.stall_timeout),
        nursery,
        parallel=config.parallel_transfers,
        stage_limit=config.stage_limit,
    )
    aliases = Aliases(
        namespace,
        renames,
        unsettled,
        spool,
        cache,
        times,
        journal,
        cluster.breaker,
        hostname=config.hostname,
    )
    attempts = Attempts(
        cluster,
        storage,
        catalog,
        namespace,
        renames,
        aliases,
        workplace,
        spool,
        journal,
        cache,
        times,
        disk,
        identity,
        stall_timeout=config.stall_timeout,
        parallel=config.parallel_transfers,
        keep_both=config.on_conflict == "keep-both",
        hostname=config.hostname,
    )
    uploads = Uploads(
        spool,
        attempts,
        Bulk(cluster, catalog, workplace, attempts, spool, journal, disk),
        unsettled,
        nursery,
        breaker=cluster.breaker,
        delay=config.writeback_delay,
        hold=config.temp_hold,
    )
    removals = Removals(
        namespace,
        unsettled,
        aliases,
        catalog,
        spool,
        uploads,
        journal,
        cluster.breaker,
    )
    submissions = Submissions(
        cluster,
        Drops(journal, spool.directory, disk),
        spool,
        uploads,
        removals,
        nursery,
        barrier=config.jobs.barrier == "all",
    )
    callers = Callers()
    readers = Readers(
        crawlers=config.readers.crawlers,
        indexers=config.readers.indexers,
        noatime=config.readers.noatime,
    )
    sniffing = Sniffing(readers, Heads(cluster, per_minute=config.readers.heads))
    floors = Floors(
        spool, cache, downloads, uploads, disk, callers, config.hostname,
        fsync_waits=config.fsync == "cluster",
    )  # fmt: skip
    remote = RemoteWing(
        catalog,
        namespace,
        renames,
        unsettled,
        removals,
        aliases,
        workplace,
        times,
        floors,
        identity,
        sniffing,
        Checksums(workplace),
        journal,
        root=root,
    )
    await remote.resume()
    await removals.resume()
    about = {
        "system": config.system,
        "remote_path": config.remote_path,
        "mountpoint": str(config.mountpoint),
        "pid": os.getpid(),
        "since": time.time(),
        "version": __version__,
        "dialect": cluster.capabilities.dialect,
        "journal": str(spool.directory.parent),
    }
    report = Report(
        about,
        spool,
        cache,
        downloads,
        removals,
        unsettled,
        submissions,
        lambda: cluster.calls,
        lambda: (cluster.breaker.since, cluster.breaker.reason),
        readers,
        root=root,
    )
    overlays: dict[str, Wing] = {}
    work = [cluster.breaker.watch, uploads.run, removals.run, aliases.run, submissions.search]
    if config.jobs.enabled:
        board = JobBoard(
            cluster,
            submissions,
            nursery,
            interval=config.jobs.poll_interval,
            idle=config.jobs.poll_interval_idle,
            transfers=config.jobs.transfers,
        )
        work.append(board.watch)
        outputs = Outputs(cluster, catalog, downloads, interval=config.jobs.poll_interval)
        takedowns = Takedowns()
        overlays["jobs"] = JobsWing(
            submissions,
            board,
            outputs,
            Shelf(cluster, submissions, board, outputs, takedowns),
            takedowns,
            callers,
            readers,
            mountpoint=config.mountpoint,
            defaults=_defaults(config.jobs, view),
        )
    levers = Levers(root, spool, catalog, uploads, removals, downloads, submissions)
    mounted = Mounted(spool, cache, uploads, removals, floors, workplace, levers)
    overlays[CONTROL] = ControlWing(
        report,
        callers,
        log=recent_lines,
        levers=levers.by_name(),
    )
    mounted.tree = Tree(remote, overlays, callers, readers)
    nursery.start_soon(keep_running, callers.watch)
    for loop in work:
        nursery.start_soon(keep_running, loop)
    await submissions.resume()
    nursery.start_soon(keep_running, lambda: workplace.tidy(attempts.names_in_use))
    return mounted


def _defaults(options: JobsOptions, view: View) -> Wishes:
    """What drops are submitted with where nothing else says it."""
    return Wishes(
        account=options.account or "",
        partition=options.partition or "",
        reservation=options.reservation or "",
        working_directory=remote_path(options.working_directory or view.home),
        name=options.name or "",
    )


async def keep_running(work: Callable[[], Awaitable[None]]) -> None:
    """A loop of the mount: a fault that nobody foresaw is logged, and the mount goes on."""
    while True:
        try:
            await work()
        except Exception:
            log.exception("a background task failed and begins again")
            await trio.sleep(1.0)
        else:
            return
