"""Recorded v1 replies (tests/data/v1_replies.jsonl) through the error mapper and the parsers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from f7tfs import errors
from f7tfs.api import v1_jobs, v1_poisoned, v1_wire
from f7tfs.api.http import Reply
from f7tfs.api.port import Phase
from f7tfs.api.tasks import Task, normalised
from f7tfs.api.v1_errors import PoisonedListing, error_of, error_of_text
from f7tfs.errors import F7tfsError
from f7tfs.model import JobState, Kind

LINES = (Path(__file__).parent / "data" / "v1_replies.jsonl").read_text().splitlines()
RECORDED: dict[str, dict[str, Any]] = {
    record["name"]: record for record in map(json.loads, LINES[1:])
}


def reply(name: str) -> Reply:
    record = RECORDED[name]
    if "response_json" in record:
        body = json.dumps(record["response_json"], ensure_ascii=False).encode()
    else:
        body = record.get("response_text", "").encode()
    headers = {name.lower(): value for name, value in record["response_headers"].items()}
    return Reply(record["status"], headers, body)


def output(name: str) -> Any:
    return RECORDED[name]["response_json"]["output"]


def task(name: str) -> Task:
    document = RECORDED[name]["response_json"]
    if "task" in document:
        return normalised(document["task"]["hash_id"], document["task"])
    ((task_id, record),) = document["tasks"].items()
    return normalised(task_id, record)


CLASSES = {
    "ls-file-not-found": errors.NotFound,
    "ls-parent-is-file": errors.NotADirectory,
    "ls-no-read-dir": errors.PermissionDenied,
    "ls-dir-r-only-no-x": errors.PermissionDenied,
    "ls-child-of-no-x-dir": errors.PermissionDenied,
    "stat-not-found": errors.NotFound,
    "stat-under-file": errors.NotADirectory,
    "stat-perm-denied-parent": errors.PermissionDenied,
    "stat-loop-dereference": errors.TooManyLinks,
    "file-noread": errors.PermissionDenied,
    "file-not-found": errors.NotFound,
    "checksum-dir": errors.IsADirectory,
    "checksum-timeout-fifo": errors.Stalled,
    "checksum-name-with-backslash-forbidden": errors.NameNotSupported,
    "head-binary": errors.Unsupported,
    "head-utf8-cut-in-char": errors.Unsupported,
    "head-fifo-timeout": errors.Stalled,
    "head-dir": errors.IsADirectory,
    "download-5MiB+1": errors.TooLarge,
    "download-boundary-3932158": errors.TooLarge,
    "download-not-found": errors.NotFound,
    "download-dir": errors.IsADirectory,
    "download-noread": errors.PermissionDenied,
    "download-targetPath-param": errors.ServerError,
    "machine-utilities-unknown": errors.UnknownSystem,
    "machine-compute-unknown": errors.UnknownSystem,
    "machine-storage-unknown": errors.UnknownSystem,
    "machine-utilities-down": errors.Unreachable,
    "machine-compute-down": errors.Unreachable,
    "machine-storage-down": errors.Unreachable,
    "auth-user-unknown-on-cluster-utilities": errors.Unauthorized,
    "auth-user-unknown-on-cluster-compute": errors.Unreachable,
    "gateway-unknown-route": errors.ServerError,
    "service-unknown-route": errors.ServerError,
    "longpath-3034": errors.ServerError,
}
CLASSES_OF_CHANGES = {
    "upload-targetPath-is-file": errors.NotADirectory,
    "upload-filename-names-a-dir": errors.IsADirectory,
    "upload-missing-dir": errors.NotFound,
    "upload-no-permission": errors.PermissionDenied,
    "upload-ro-file": errors.PermissionDenied,
    "upload-filename-quote": errors.NameNotSupported,
    "upload-5MiB+1": errors.TooLarge,
    "mkdir-exists": errors.Exists,
    "mkdir-exists-unicode": errors.Exists,
    "mkdir-missing-parent": errors.NotFound,
    "mkdir-under-file": errors.NotADirectory,
    "mkdir-permission": errors.PermissionDenied,
    "mkdir-name-too-long": errors.NameTooLong,
    "mkdir-forbidden-char": errors.NameNotSupported,
    "rename-dir-onto-file": errors.NotADirectory,
    "rename-not-found": errors.NotFound,
    "rename-target-parent-missing": errors.NotFound,
    "rename-onto-itself": errors.InvalidArgument,
    "rename-into-own-subdir": errors.InvalidArgument,
    "rename-permission-target": errors.PermissionDenied,
    "rename-trailing-slash-file": errors.NotADirectory,
    "misclassify-same-file-with-directory-in-name": errors.InvalidArgument,
    "copy-not-found": errors.NotFound,
    "copy-same-file": errors.InvalidArgument,
    "copy-noread": errors.PermissionDenied,
    "rm-not-found": errors.NotFound,
    "rm-permission": errors.PermissionDenied,
    "chmod-invalid": errors.InvalidArgument,
    "chmod-not-found": errors.NotFound,
    "chmod-not-owner": errors.NotPermitted,
    "chown-group-foreign": errors.NotPermitted,
    "chown-unknown-group": errors.InvalidArgument,
    "chown-unknown-user-posix-locale": errors.InvalidArgument,
    "symlink-exists": errors.Exists,
    "symlink-permission": errors.PermissionDenied,
    "compress-not-found": errors.NotFound,
    "compress-target-missing-parent": errors.NotFound,
    "extract-missing-target": errors.NotFound,
    "extract-unsupported": errors.Unsupported,
    "extract-not-archive": errors.ServerError,
    "xfer-upload-missing-dir": errors.NotFound,
    "xfer-upload-no-permission": errors.PermissionDenied,
    "xfer-upload-target-under-file": errors.NotADirectory,
    "xfer-download-not-found": errors.NotFound,
    "xfer-download-noread": errors.PermissionDenied,
    "xfer-download-dir": errors.IsADirectory,
    "xfer-invalidate-unknown": errors.ServerError,
    "job-submit-upload-too-big": errors.TooLarge,
    "job-submit-path-not-found": errors.NotFound,
}


@pytest.mark.parametrize(("name", "kind"), CLASSES.items())
def test_class_of_recorded_reads(name: str, kind: type[F7tfsError]) -> None:
    assert type(error_of(reply(name), "call", changes=False)) is kind


@pytest.mark.parametrize(("name", "kind"), CLASSES_OF_CHANGES.items())
def test_class_of_recorded_changes(name: str, kind: type[F7tfsError]) -> None:
    assert type(error_of(reply(name), "call", changes=True)) is kind


def test_the_text_is_in_the_message() -> None:
    said = str(error_of(reply("rm-permission"), "rm /etc/hostname", changes=True))
    assert said == "rm /etc/hostname: rm: cannot remove '/etc/hostname': Permission denied"


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("cp: error writing 'a: Permission denied': No space left on device", "QuotaExceeded"),
        ("bash: line 1: /x/No such file or directory: Disk quota exceeded", "QuotaExceeded"),
        ("mkdir: cannot create directory 'Is a directory': Read-only file system", "ReadOnly"),
        ("mv: cannot move 'a' to 'b: Permission denied': Directory not empty", "NotEmpty"),
        ("mv: cannot move 'a' to 'b': Invalid cross-device link", "CrossDevice"),
        ("mv: '/a: Permission denied' and '/b: File exists' are the same file", "InvalidArgument"),
        ("mv: cannot overwrite directory 'a' with non-directory 'b'", "IsADirectory"),
        ("ls: cannot access 'x': Too many levels of symbolic links", "TooManyLinks"),
        ("stat: cannot statx '/x/Connection refused': Permission denied", "PermissionDenied"),
        ("[Errno 113] No route to host", "Unreachable"),
        ("No route to host", "Unreachable"),
        ("Error reading SSH protocol banner", "Unreachable"),
        ("tar: x: Cannot open: Permission deniedtar: Error is not recoverable: exiting now",
         "PermissionDenied"),
    ],
)  # fmt: skip
def test_a_name_does_not_fool_the_mapper(text: str, kind: str) -> None:
    found = error_of_text(text, "call", changes=True)
    assert type(found).__name__ == kind


def test_a_text_that_tells_nothing() -> None:
    assert error_of_text("Welcome to the cluster!", "ls", changes=False) is None
    banner = Reply(400, {"x-error": "Welcome"}, b'{"error": "Welcome", "description": "d"}')
    assert type(error_of(banner, "ls /", changes=False)) is errors.ServerError


def test_what_a_cut_connection_means() -> None:
    """A change may have happened; a read may be asked again."""
    for text in ("Command has finished with timeout signal", "Connection reset by peer"):
        change = error_of_text(text, "mv", changes=True)
        read = error_of_text(text, "ls", changes=False)
        assert isinstance(change, errors.OutcomeUnknown)
        assert read is not None
        assert read.transient
        assert not isinstance(read, errors.OutcomeUnknown)


def test_a_refused_login_on_the_cluster_may_heal() -> None:
    found = error_of(reply("auth-user-unknown-on-cluster-utilities"), "ls", changes=False)
    assert found.transient


# Listings.


def entries(name: str) -> list[v1_wire.Entry]:
    return v1_wire.entries(reply(name).body)


def test_a_directory() -> None:
    found = [v1_wire.listed(entry, entry.name) for entry in entries("ls-dir-showhidden")]
    assert [item.name for item in found if item] == [".hid", "a.txt", "b.txt", "emptysub", "sub"]
    directory = found[3]
    assert directory is not None
    assert (directory.kind, directory.permissions) == (Kind.DIRECTORY, 0o755)
    assert directory.local_mtime == 1795451642  # stat's epoch: this cluster lives in UTC
    assert entries("ls-emptydir") == []
    assert entries("ls-dev-null") == []


def test_a_zone_only_moves_the_wall_clock() -> None:
    (entry,) = entries("ls-file")
    item = v1_wire.listed(entry, "small.txt")
    assert item is not None
    assert item.local_mtime == RECORDED["stat-file"]["response_json"]["output"]["mtime"]


def test_all_types() -> None:
    found = [v1_wire.listed(entry, entry.name) for entry in entries("ls-all-types")]
    by_name = {item.name: item for item in found if item}
    assert by_name["fifo"].kind is Kind.FIFO
    assert by_name["acl.txt"].has_acl
    assert by_name["acl.txt"].permissions == 0o664
    assert by_name["link_odd_target"].target == 'sp ace -> "x'
    assert by_name["small.txt"].target is None
    assert by_name["huge_sparse.dat"].size == 1 << 40
    assert by_name["d_000"].permissions == 0


@pytest.mark.parametrize("locale", ["utf8-locale", "posix-locale-tz-zurich"])
def test_odd_names_in_both_locales(locale: str) -> None:
    found = [v1_wire.listed(entry, entry.name) for entry in entries(f"ls-odd-names-{locale}")]
    names = {item.name: item.ambiguous for item in found if item}
    certain = {" lead", "--help", "a -> b", "back\\slash", 'dq"uote', "two  spaces", "dollar$HOME"}
    assert certain <= set(names)
    assert not any(names[name] for name in certain)
    doubtful = {"new\nline", "tab\tx", "esc\x1b[31m", "del\x7f", "latin1-\udce9"}
    assert doubtful <= set(names)
    assert all(names[name] for name in doubtful)
    assert {"ünïcode-☃", "emoji😀", "nbsp\u00a0x", "\u202ertl"} <= set(names)


def test_a_recursive_listing() -> None:
    found = list(v1_wire.tree(entries("ls-recursive-showhidden"), "/home/test1/fx/dir"))
    assert [(directory, item.name) for directory, item in found] == [
        ("", ".hid"),
        ("", "a.txt"),
        ("", "b.txt"),
        ("", "emptysub"),
        ("", "sub"),
        ("sub", "c.txt"),
        ("sub", "deep"),
        ("sub/deep", "d.txt"),
    ]


@pytest.mark.parametrize("which", ["No-such-file", "cannot-open"])
def test_a_poisoned_listing_is_understood_all_the_same(which: str) -> None:
    found = error_of(
        reply(f"ls-dir-containing-a-file-named-{which}"), "ls /home/test1/w", changes=False
    )
    assert isinstance(found, PoisonedListing)
    items = v1_poisoned.entries_in(found.text)
    assert items is not None
    names = [item.name for item in items]
    assert names == (["No such file", "ok"] if which == "No-such-file" else ["cannot open.log"])
    assert items[0].permissions == 0o644
    assert not items[0].ambiguous


def test_poisoned_names_are_exact() -> None:
    text = (
        'total 4lrwxrwxrwx 1 a b 3 2026-11-23T16:34:02 "No such file\\"\\\\n\\303\\274" -> "x\\ny"'
        'crw-rw-rw- 1 root root 1, 3 2026-11-20T09:26:22 "null"'
        'drwxr-sr-x+ 2 a b 4096 2026-11-23T16:34:02 "-rw-r--r-- 1 a b 0 x \\"y\\""'
    )
    items = v1_poisoned.entries_in(text)
    assert items is not None
    assert [item.name for item in items] == ['No such file"\\nü', '-rw-r--r-- 1 a b 0 x "y"']
    assert items[0].target == "x\ny"
    assert items[1].has_acl
    assert v1_poisoned.entries_in(text + "login banner") is None


def test_replies_that_are_not_firecrests() -> None:
    for body in (b"<html>", b"[1]", b"", b'{"output": 3}', b'{"output": null}', b"\xff"):
        with pytest.raises(errors.Unreachable):
            v1_wire.entries(body)
    with pytest.raises(errors.Unreachable):
        v1_wire.stat_of({"mode": "x"})
    with pytest.raises(errors.Unreachable):
        v1_wire.document(b"null")


# Who and what.


def test_stat() -> None:
    found = v1_wire.stat_of(output("stat-file"))
    assert (found.kind, found.size, found.uid) == (Kind.FILE, 12, 1503)
    assert v1_wire.stat_of(output("stat-prehist")).mtime == -86400
    assert v1_wire.stat_of(output("stat-dir")).kind is Kind.DIRECTORY


def test_whoami() -> None:
    found = v1_wire.identity_of(output("whoami-groups"))
    assert (found.user, found.uid, found.group, found.gid) == ("test1", 1503, "test1", 1503)
    assert found.groups == {"test1": 1503, "f7tproj": 1511}
    old = v1_wire.identity_of(output("whoami"))
    assert (old.user, old.uid) == ("test1", -1)


def test_systems_and_parameters() -> None:
    systems = v1_wire.systems_of(RECORDED["status-systems"]["response_json"]["out"])
    assert {system.name: system.available for system in systems} == {
        "downcluster": False,
        "cluster2": True,
        "cluster": True,
    }
    told = v1_wire.parameters_of(RECORDED["status-parameters"]["response_json"]["out"])
    assert told.systems == ("cluster", "cluster2", "downcluster")
    limits = v1_wire.capabilities_of(told, 4)
    assert limits.version == "1.16.6"
    assert limits.direct_download_limit == 3_932_157
    assert limits.direct_upload_limit == 5 * 2**20 - 65536
    assert limits.staged_upload_limit == 5120 * 2**20
    assert (limits.command_timeout, limits.link_lifetime) == (5.0, 604800.0)
    nothing = v1_wire.capabilities_of(v1_wire.parameters_of(None), 4)
    assert nothing.direct_download_limit == 3_932_157
    assert nothing.staged_upload_limit is None


# Transfers.


def test_an_upload_chain() -> None:
    names = [f"xfer-upload-chain-task-state-{state}" for state in (110, 111, 112, 113, 114)]
    found = [v1_wire.progress_of(task(name)) for name in names]
    assert [progress.phase for progress in found] == [
        Phase.QUEUED,
        Phase.READY,
        Phase.MOVING,
        Phase.MOVING,
        Phase.DONE,
    ]
    assert {progress.path for progress in found} == {"/home/test1/w/x/tight"}
    form = found[1].form
    assert form is not None
    assert (form.method, form.url) == ("POST", "http://staging.example/test1")
    assert [name for name, _ in form.fields] == [
        "key",
        "policy",
        "x-amz-algorithm",
        "x-amz-credential",
        "x-amz-date",
        "x-amz-signature",
    ]
    assert form.file_name == "tight"
    assert all(progress.form is None for progress in found if progress.raw != "111")


def test_the_internal_record_tells_the_same() -> None:
    public = v1_wire.progress_of(task("xfer-upload-chain-task-state-111"))
    internal = v1_wire.progress_of(task("xfer-upload-ok-1MB-tasks-list-at-111"))
    assert public.form is not None
    assert internal.form is not None
    assert internal.form.url == public.form.url
    assert internal.path == "/home/test1/w/x/new1mb.bin"


def test_a_download_chain() -> None:
    base = "xfer-download-ok-1MB-task-state-"
    found = [v1_wire.progress_of(task(f"{base}{state}")) for state in (100, 116, 117)]
    assert [progress.phase for progress in found] == [Phase.QUEUED, Phase.QUEUED, Phase.READY]
    assert (found[2].link or "").startswith("http://staging.example/test1/1136c6be")
    assert found[2].path == "/home/test1/fx/mb1.dat"
    listed = v1_wire.progress_of(task("xfer-invalidate-download-tasks-list-after"))
    assert listed.link == found[2].link


def test_the_bare_link_of_old_servers() -> None:
    """FACTS §7: older than 1.14."""
    old = v1_wire.progress_of(Task("a", "117", data="https://store/o?sig=1"))
    assert (old.phase, old.link) == (Phase.READY, "https://store/o?sig=1")
    none = v1_wire.progress_of(Task("a", "117", data=""))
    assert (none.phase, none.link) == (Phase.FAILED, None)


def test_failures_of_transfers() -> None:
    failed = v1_wire.progress_of(task("xfer-download-name-comma-task-state-118"))
    assert failed.phase is Phase.FAILED
    assert "curl: (26)" in (failed.error or "")
    faltering = v1_wire.progress_of(task("xfer-upload-invalidate-115-task-state-115"))
    assert faltering.phase is Phase.FALTERING  # FACTS §6: not final
    assert (faltering.path, faltering.form) == ("/home/test1/w/x/ro2", None)
    withdrawn = v1_wire.progress_of(task("xfer-upload-invalidate-115-task-state-302"))
    assert withdrawn.phase is Phase.WITHDRAWN


def test_a_swift_form() -> None:
    parameters = {
        "method": "POST",
        "url": "https://swift/v1/AUTH_x/bucket/prefix/",
        "data": {"redirect": "", "max_file_size": 5, "expires": 17, "signature": "s"},
        "headers": {},
        "files": "/local/some.bin",
        "params": {"a": 1},
        "json": {},
    }
    form = v1_wire.upload_form({"parameters": parameters})
    assert form is not None
    assert form.fields[:2] == (("redirect", ""), ("max_file_size", "5"))
    assert (form.params, form.file_name) == ((("a", "1"),), "some.bin")
    assert v1_wire.upload_form({"command": "curl"}) is None
    assert v1_wire.upload_form("Waiting") is None


# Jobs.


def test_active_jobs() -> None:
    (running,) = v1_jobs.active_jobs(task("jobs-list-by-id-task-state-200").data)
    assert (running.id, running.name, running.state) == ("110", "f7tjob", JobState.RUNNING)
    assert (running.started, running.elapsed) == ("2026-11-23T16:46:10", "0:01")
    assert (running.node_list, running.reason) == ("localhost", "")
    assert running.script_path.endswith("/my_script.sh")
    (pending,) = v1_jobs.active_jobs(task("jobs-list-running-task-state-200").data)
    assert (pending.state, pending.started, pending.node_list) == (JobState.PENDING, "", "")
    assert v1_jobs.active_jobs(task("jobs-list-empty-task-state-200").data) == []
    array = v1_jobs.active_jobs(task("jobs-list-with-array-task-state-200").data)[0]
    assert (array.id, array.stdout_path, array.script_path) == ("112_[1-3]", "", "")
    others = v1_jobs.active_jobs(task("jobs-list-userJobs-false-task-state-200").data)
    assert [job.reason for job in others] == [
        "DependencyNeverSatisfied",
        "PartitionTimeLimit",
        "PartitionConfig",
    ]


def test_a_server_that_mends_the_swapped_times() -> None:
    row = {"jobid": 7, "time": "0:01", "start_time": "2026-11-23T16:46:10", "state": "RUNNING"}
    (job,) = v1_jobs.active_jobs({"0": row})
    assert (job.id, job.started, job.elapsed) == ("7", "2026-11-23T16:46:10", "0:01")


def test_accounted_jobs() -> None:
    jobs = {
        job.id: job for job in v1_jobs.accounted_jobs(task("acct-no-filter-task-state-200").data)
    }
    assert jobs["110"].state is JobState.CANCELLED
    assert jobs["110"].state_text == "CANCELLED by 1503"
    assert (jobs["110"].ended, jobs["110"].elapsed) == ("2026-11-23T16:46:21", "00:00:11")
    assert (jobs["115"].state, jobs["115"].exit_code) == (JobState.FAILED, "3:0")
    assert (jobs["116"].started, jobs["116"].node_list) == ("", "")
    (odd,) = v1_jobs.accounted_jobs(task("job-quick-acct-completed-task-state-200").data)
    assert (odd.id, odd.name, odd.user, odd.state) == ("133", "", "", JobState.COMPLETED)
    assert v1_jobs.accounted_jobs(task("acct-unknown-task-state-200").data) == []


@pytest.mark.parametrize(
    "name",
    ["job-submit-upload-sbatch-error-task-state-400", "job-submit-path-no-shebang-task-state-400"],
)
def test_a_refusal_has_the_schedulers_words(name: str) -> None:
    found = v1_jobs.refusal_of(task(name), "submit x")
    assert type(found) is errors.Rejected
    assert str(found).startswith("sbatch: error: ")
    assert "\nsbatch: error: " in str(found)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("sbatch: error: Batch job submission failed: Socket timed out on send/recv operation",
         errors.OutcomeUnknown),
        ("Command has finished with timeout signal", errors.CommandTimeout),
        ("sbatch: error: Unable to contact slurm controller (connect failure)",
         errors.Unreachable),
        ("Connection refused", errors.Unreachable),
        ("mkdir: cannot create directory '/x': Disk quota exceeded", errors.QuotaExceeded),
        ("mkdir: cannot create directory '/x': Permission denied", errors.Rejected),
    ],
)  # fmt: skip
def test_a_refusal_that_is_none(text: str, kind: type[F7tfsError]) -> None:
    assert type(v1_jobs.refusal_of(Task("a", "400", data=text), "submit x")) is kind


def test_wire_entries_are_strings_but_others_are_tolerated() -> None:
    body = msgspec.json.encode(
        {"output": [{"name": "a", "type": "-", "size": 5, "user": 7, "group": None}, "", None]}
    )
    (entry,) = v1_wire.entries(body)
    item = v1_wire.listed(entry, entry.name)
    assert item is not None
    assert (item.size, item.user, item.group, item.local_mtime) == (5, "7", "", 0)
