"""What the jobs of transfer/mv, cp, rm, compress and extract do (v2 FACTS §8).

A failed command still ends COMPLETED: the script's `exit $?` follows an echo.
"""

from __future__ import annotations

import html
import os
from dataclasses import dataclass

from f7tfs.sim.scheduler import Job
from f7tfs.sim.v2.joblog import JobLog, NoHome
from f7tfs.sim.v2.shell import Shell, fill
from f7tfs.sim.v2.writing import COMPRESSION


@dataclass(frozen=True)
class Work:
    """`template` has `{0}`, `{1}` between single quotes for the paths."""

    job: str
    title: str
    past: str
    verb: str
    template: str
    tool: str


MOVE = Work("MoveFiles", "Move", "moved", "move", "mv -- {0} {1}", "mv")
COPY = Work("CopyFiles", "Copy", "copied", "copy", "cp -R --preserve=all -- {0} {1}", "cp")
COPY_DEREFERENCED = Work(
    "CopyFiles", "Copy", "copied", "copy", "cp -R -L --preserve=all -- {0} {1}", "cp"
)
DELETE = Work("DeleteFiles", "Delete", "deleted", "delete", "rm -R -- {0}", "rm")


def compress(kind: str, pattern: str | None, dereference: bool) -> Work:
    letter = COMPRESSION[kind]
    links = "h" if dereference else ""
    template = f"tar -c{letter}{links}f {{1}} -C {{0}} -- {{2}}"
    if pattern is not None:
        quoted = escaped(pattern)
        template = (
            f"find {{0}}/{{2}} -type f -regex '{quoted}' -printf '%P\\0' | "
            f"tar -cz{links}f {{1}} -C {{0}}/{{2}} --null --no-recursion --files-from=-"
        )
    return Work("CompressFiles", "Compress", "compressed", "compress", template, "tar")


def extract(kind: str) -> Work:
    template = f"tar -x{COMPRESSION[kind]}f {{0}} -C {{1}}"
    return Work("ExtractFiles", "Extract", "extracted", "extract", template, "tar")


def escaped(path: str) -> str:
    """jinja's autoescape, which spells two characters otherwise than Python does."""
    return html.escape(path).replace("&#x27;", "&#39;").replace("&quot;", "&#34;")


class Moving:
    def __init__(self, shell: Shell) -> None:
        self._shell = shell

    async def do(self, job: Job, work: Work, *paths: str) -> int:
        """Names come HTML-escaped between single quotes: a quote in them does no harm here."""
        try:
            log = JobLog(job, self._shell.cluster.account)
        except NoHome:
            return -53
        log.said(f"{work.title} Files Job (id:{job.id})")
        names = tuple(escaped(path) for path in paths)
        if work.tool == "tar" and len(paths) == 2 and "-c" in work.template:
            folder, name = os.path.split(names[0].rstrip("/"))
            names = (folder, names[1], name)
        outside = [path for path in names if not self._shell.inside(job.user, path)]
        if outside:
            code, complaint = 1, f"{work.tool}: cannot access '{outside[0]}': Permission denied\n"
        else:
            command = fill(work.template, names)
            result = await self._shell.job_command(job.system, job.user, command)
            code, complaint = result.code, result.stderr
        log.complain(complaint)
        if code == 0:
            log.said(f"Files were successfully {work.past}.")
        else:
            text = f"Unable to {work.verb} files exit code:0 error: "
            log.complain(f"{log.date()} {text}\n")
        return 0
