"""What the jobs of transfer/upload and transfer/download do (v2 FACTS §7), traps included."""

from __future__ import annotations

import math
import os
import re
import stat
import uuid
from dataclasses import dataclass
from pathlib import Path

import trio

from f7tfs.sim.objects import ObjectStore, Stored
from f7tfs.sim.scheduler import Job
from f7tfs.sim.v2.joblog import JobLog, NoHome
from f7tfs.sim.v2.moving import escaped
from f7tfs.sim.v2.shell import Shell
from f7tfs.sim.v2.systems import Injections, Place

_TRIES = 1440
_FILE_NOT_FOUND = 34
_FAILED = 70
_IS_DIRECTORY = 3
_APPEND_LINE = 54
# $1 target, $2 number, $3 bytes, $4 those for which there is room, $5 why not for more; the part
# comes on stdin. Line 54 says what it cannot do.
_APPEND = (
    "\n" * (_APPEND_LINE - 2)
    + '2>/dev/null head -c "$3" > "$1.$2"\nhead -c "$4" "$1.$2" >> "$1"\nrm "$1.$2"\n'
    + '[ "$3" = "$4" ] || echo "cat: write error: $5" >&2\n'
)
_PREPARE = 'rm -f -- "$1" 2>/dev/null; exit 0'
_ERROR_XML = '{ printf %s "$3" > "$1.$2"; } 2>/dev/null'
_INVALID_RANGE = (
    '<?xml version="1.0" encoding="utf-8"?>\n<Error><Code>InvalidRange</Code>'
    "<Message>The requested range is not satisfiable</Message></Error>"
)
_SAFE = re.compile(r"(?:[A-Za-z0-9_./,:@%+=~-]|[^\x00-\x7f])+")


@dataclass(frozen=True)
class Staging:
    """Work on staged objects, for jobs of the scheduler."""

    shell: Shell
    store: ObjectStore
    injections: Injections

    # -- transfer/upload: from the store to the cluster

    async def ingest(self, job: Job, place: Place, key: str, path: str) -> int:
        account = self.shell.cluster.account
        try:
            log = JobLog(job, account)
        except NoHome:
            return -53
        log.said(f"Ingress File Transfer Job (id:{job.id})")
        target = self._expanded(job, escaped(path))
        if _is_directory(target) and self.shell.inside(job.user, target, follows=True):
            text = "targetPath must point to a file path:  is a directory."
            log.complain(f"{log.date()} {text}\n")
            return _IS_DIRECTORY
        log.said("Waiting till file to tranfer is available...")
        stored = self.store.find(job.user, key)
        for _ in range(_TRIES):
            if stored is not None:
                break
            await trio.sleep(self.shell.cluster.options.ingest_sleep)
            stored = self.store.find(job.user, key)
        if stored is None:
            return 0
        log.said("File to transfer found in S3 bucket")
        log.said(f"Downloading file to: {target} ...")
        return await self._append(job, place, log, stored, target)

    async def _append(
        self, job: Job, place: Place, log: JobLog, stored: Stored, target: str
    ) -> int:
        """Removes the target, then appends part by part, by way of `target.1`, `target.2`, ..."""
        name = f"/var/lib/slurm/slurmd/job{job.id:05}/slurm_script"
        fenced = not self.shell.inside(job.user, target)
        if not fenced:
            await self._bash(job, _PREPARE, name, target)
        if stored.size == 0:
            if not fenced:
                await self._bash(job, _ERROR_XML, name, target, "1", _INVALID_RANGE)
            log.complain(f"{log.date()} Download failed: part 1\n")
            return 1
        with stored.path.open("rb") as content:
            for number in range(1, math.ceil(stored.size / place.part_size) + 1):
                start = (number - 1) * place.part_size
                os.lseek(content.fileno(), start, os.SEEK_SET)
                if fenced:
                    log.complain(
                        f"{name}: line {_APPEND_LINE}: {target}: Permission denied\n"
                        f"rm: cannot remove '{target}.{number}': No such file or directory\n"
                    )
                    continue
                size = min(place.part_size, stored.size - start)
                room = self.shell.cluster.room
                words = (str(number), str(size), str(room.take(size)), room.words)
                result = await self.shell.job_command(
                    job.system, job.user, _APPEND, name, target, *words, stdin=content
                )
                log.complain(result.stderr)
        # told whatever became of it
        log.said(f"Received {stored.size} bytes")
        megabytes = stored.size // 1048576
        log.said(f"File was successfully downloaded (size: {megabytes}.000MB)")
        return 0

    async def _bash(self, job: Job, script: str, *words: str) -> None:
        await self.shell.job_command(job.system, job.user, script, *words)

    def _expanded(self, job: Job, text: str) -> str:
        """A path between double quotes. Variables are expanded; commands are only noted."""
        if "`" in text or "$(" in text:
            self.injections.seen.append(text)
        return self._variables(job, text)

    def _variables(self, job: Job, text: str) -> str:
        known = self.shell.cluster.environment(job.system, job.user)
        return re.sub(
            r"\$(?:\{(\w+)\}|([A-Za-z_]\w*))", lambda m: known.get(m[1] or m[2], ""), text
        )

    # -- transfer/download: from the cluster to the store

    async def outgest(self, job: Job, place: Place, key: str, path: str, size: int) -> int:
        account = self.shell.cluster.account
        try:
            log = JobLog(job, account)
        except NoHome:
            return -53
        log.said(f"Upload File Job (id:{job.id})")
        source, complaint = self._assigned(job, escaped(path))
        log.complain(complaint)
        chunks = math.ceil(size / place.part_size)
        log.out(f"Uploading file:{source} into {chunks} chunks")
        follows = source != "" and self.shell.inside(job.user, source, follows=True)
        if not follows or not _is_file(source):
            log.complain("file_not_found\n")
            return _FILE_NOT_FOUND
        folder = self._folder(job)
        log.out(f"[INFO] Creating temporary folder:tmp/{folder.name}/")
        if chunks == 0:
            log.out("[INFO] Parts upload completed.\n[INFO] Signaling multipart upload completion")
            log.complain(
                f"/var/lib/slurm/slurmd/job{job.id:05}/slurm_script: line 216: (file_size + "
                'num_parts - 1) / num_parts : division by 0 (error token is "num_parts ")\n'
                "curl: (22) The requested URL returned error: 400\n"
            )
            return _FAILED
        return await self._store(job, log, key, source, chunks, folder)

    async def _store(
        self, job: Job, log: JobLog, key: str, source: str, chunks: int, folder: Path
    ) -> int:
        with self.store.blank() as file:
            result = await self.shell.job_command(
                job.system, job.user, 'cat -- "$1"', "bash", source, stdout=file
            )
            if result.code == 0:
                etag = f"{uuid.uuid4().hex}-{chunks}"
                self.store.adopt(job.user, key, file, etag)
            else:
                Path(file.name).unlink()
        if result.code != 0:
            log.out(
                "[INFO] Parts upload completed.\n[INFO] Upload of part 1 failed\n"
                "[INFO] Signaling multipart upload completion"
            )
            reason = result.stderr.strip().rpartition(": ")[2]
            log.complain(
                f"dd: failed to open '{source}': {reason}\nerror_generating_part_file 0\n"
                "upload_failed_part_1curl: (22) The requested URL returned error: 400\n"
            )
            return _FAILED
        folder.rmdir()
        numbers = range(1, chunks + 1)
        for number in numbers:
            log.out(f"[INFO] Uploading part {number}...")
        log.out("[INFO] Parts upload completed.")
        for number in numbers:
            log.out(f"[INFO] Upload of part {number} succeded with ETag: {uuid.uuid4().hex}|")
        log.out("[INFO] Signaling multipart upload completion")
        log.out("[INFO] Multipart file upload successfully completed")
        return 0

    def _folder(self, job: Job) -> Path:
        """`~/tmp/<uuid>`; it stays behind when the job fails, `~/tmp` always."""
        account = self.shell.cluster.account
        folder = self.shell.cluster.home(job.user) / "tmp"
        for path in (folder, folder / str(uuid.uuid4())):
            path.mkdir(exist_ok=True)
            if account.switch:
                os.chown(path, account.uid, account.gid)
        return path

    def _assigned(self, job: Job, text: str) -> tuple[str, str]:
        """What `input_file=text`, unquoted, makes of a name. Nothing is executed."""
        if _SAFE.fullmatch(text):
            return text, ""
        script = f"/var/lib/slurm/slurmd/job{job.id:05}/slurm_script"
        source, complaint, first = "", "", True
        for command, operator in re.findall(r"([^;&\n]*)([;&\n]|$)", text):
            if command.startswith("#"):
                break  # a comment
            words = self._variables(job, command).split()
            if first:
                # alone it is an assignment; before a command, or in the background, it is not
                if len(words) == 1 and operator != "&" and command.strip() == command:
                    source = words[0].replace("\\", "").replace("'", "").replace('"', "")
                words = words[1:]
                first = False
            if words:
                self.injections.seen.append(" ".join(words))
                complaint += f"{script}: line 177: {words[0]}: command not found\n"
        if re.search(r"[`()<>]", text):
            self.injections.seen.append(text)
            source = ""
        return source, complaint


def _is_directory(path: str) -> bool:
    return os.path.isdir(path)


def _is_file(path: str) -> bool:
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except OSError:
        return False
