"""Named crash points: where a test may ask the daemon to end as by kill -9.

`F7TFS_FAULT_POINT=upload.proven:2` in the daemon's environment arms one point: the second time it
is reached, the process sends itself SIGKILL. What the next start finds at each point is told in
docs/decisions/0007, and tried by tests/t5_crash_points.py. Unarmed, a point costs one look at an
empty dict.
"""

from __future__ import annotations

import difflib
import os
import signal
from collections.abc import Mapping

from f7tfs.errors import InvalidArgument

VARIABLE = "F7TFS_FAULT_POINT"
POINTS = {
    "spool.created": "a dirty file is made, nothing was flushed",
    "spool.synced": "its bytes are on the disk",
    "spool.named": "it has its lasting name",
    "spool.recorded": "it has its record; flush has not answered",
    "upload.journaled": "the temporary's name is in the journal",
    "upload.private": "an empty temporary has the mode of a private file",
    "upload.sent": "the bytes are under the temporary name, as far as the server tells",
    "upload.ticket-given": "a staged upload was begun, its ticket is not journaled",
    "upload.ticket-recorded": "the ticket is journaled",
    "upload.form-sent": "v1: the bytes are in the object store",
    "upload.part-recorded": "v2: the journal knows of one more part that is there",
    "upload.parts-sent": "v2: all are, as one object",
    "upload.sending-recorded": "the journal knows that they are",
    "upload.proven": "size and checksum on the cluster are right",
    "upload.moded": "the temporary has the file's mode",
    "upload.expected": "the journal knows what the target is going to be",
    "upload.renamed": "the target is published",
    "upload.record-dropped": "the record has ended",
    "upload.adopted": "the cache has taken the file",
    "archive.expected": "the journal knows what the members of an archive are going to be",
    "archive.brought": "the archive is on the cluster, nothing is extracted",
    "archive.extracted": "its members are there, the archive too",
    "archive.removed": "the archive is removed, its members are not proven",
    "conflict.expected": "the entry has the conflict copy's name, and the journal knows",
    "conflict.renamed": "the conflict copy is published",
    "in-place.journaled": "the journal knows that the target itself is written",
    "in-place.sent": "it was written, as far as the server tells",
    "in-place.proven": "size and checksum on the cluster are right",
    "pieces.named": "v2: the pieces' names are in the journal",
    "pieces.sent": "all pieces are on the cluster",
    "pieces.join-recorded": "the job that puts them together is in the journal",
    "pieces.joined": "it is submitted",
    "pieces.forgotten": "it is done, the pieces' records have ended",
    "removal.buried": "the tombstone is journaled, unlink has not answered",
    "removal.removed": "the name is removed on the cluster",
    "removal.ended": "the tombstone has ended",
    "removal.exhumed": "a new file has taken over what a tombstone stood for",
    "rename.submitted": "the job that renames is submitted, and in the record",
    "rename.linked": "the new name is linked, the old one is not removed",
    "rename.moved": "renamed on the cluster, the dirty files below are not retargeted",
    "rename.recorded": "a dirty file's new name is in the journal",
    "alias.journaled": "a backup's name is in the journal, the cluster has the old one",
    "alias.renamed": "the cluster has the backup, the journal does not know",
    "rmdir.marker-journaled": "the name of the mark is in the journal",
    "rmdir.marked": "the mark stands in the directory's place",
    "rmdir.unmarked": "it is removed",
    "discard.unlinked": "an unlinked dirty file is forgotten, its record is not",
    "discard.record-dropped": "its record has ended, its bytes are on the disk",
    "submit.stored": "the script is in the spool",
    "submit.recorded": "it has its record, held",
    "submit.sending": "the record says that it is being sent",
    "submit.sent": "the scheduler has the job",
    "submit.settled": "the journal knows the job",
}

_left: dict[str, int] = {}  # armed points, and how often each is still to be reached


def arm(environment: Mapping[str, str]) -> None:
    """Arm the point that the environment names, if it names one. Raises InvalidArgument."""
    words = environment.get(VARIABLE, "")
    if not words:
        return
    name, colon, times = words.partition(":")
    if name not in POINTS:
        close = difflib.get_close_matches(name, POINTS, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise InvalidArgument(f"{VARIABLE}: there is no fault point {name!r}{hint}")
    if colon and not (times.isdecimal() and int(times) > 0):
        raise InvalidArgument(f"{VARIABLE}: {times!r} is not a number of times, 1 or more")
    _left[name] = int(times) if colon else 1


def reached(name: str) -> None:
    """The process is at the point `name`, one of POINTS."""
    if _left and name in _left:
        _left[name] -= 1
        if _left[name] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
