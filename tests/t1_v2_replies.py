"""Recorded v2 replies (tests/data/v2_replies.jsonl) through the error mapper and the parsers."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from f7tfs import errors
from f7tfs.api import v2_jobs, v2_wire
from f7tfs.api.http import Reply, Verdict
from f7tfs.api.v1_errors import SpeaksV2
from f7tfs.api.v1_errors import error_of as v1_error_of
from f7tfs.api.v2_errors import error_of, is_scheduler_failure, judge, kind_of
from f7tfs.api.wire import listed, stat_of
from f7tfs.errors import F7tfsError
from f7tfs.model import JobState, Kind

LINES = (Path(__file__).parent / "data" / "v2_replies.jsonl").read_text().splitlines()
RECORDED: dict[str, dict[str, Any]] = {
    record["name"]: record for record in map(json.loads, LINES[1:])
}


def reply(name: str) -> Reply:
    record = RECORDED[name]
    if "response_json" in record:
        body = json.dumps(record["response_json"], ensure_ascii=False).encode()
    elif "response_base64" in record:
        body = base64.b64decode(record["response_base64"])
    else:
        body = record.get("response_text", "").encode()
    return Reply(record["status"], record["response_headers"], body)


def answer(name: str) -> Any:
    return RECORDED[name]["response_json"]


def words(status: int, message: str) -> Reply:
    return Reply(status, {}, json.dumps({"errorType": "error", "message": message}).encode())


def remote(status: int, stderr: str) -> Reply:
    return words(status, f"Remote process failed with exit status:1 and error message:{stderr}")


def test_the_recording_names_its_origin() -> None:
    assert "FirecREST v2 2.5.7" in json.loads(LINES[0])["origin"]


ASKING = {
    "userinfo.unknown_system": errors.UnknownSystem,
    "auth.expires_in_20s": errors.Unauthorized,
    "auth.user_without_ssh_key": errors.Unauthorized,
    "unknown_route": errors.Unsupported,
    "wrong_method": errors.Unsupported,
    "ssh_unreachable.ls": errors.Unreachable,
    "ssh_down_unnoticed.stat": errors.Unreachable,
    "ls.missing": errors.NotFound,
    "ls.missing_under_file": errors.NotADirectory,
    "ls.perm_denied": errors.PermissionDenied,
    "ls.outside_filesystems": errors.NotPermitted,
    "ls.path_with_nul": errors.Unreachable,
    "ls.path_with_quote": errors.ServerError,
    "stat.missing": errors.NotFound,
    "stat.under_file": errors.NotADirectory,
    "stat.perm_denied": errors.PermissionDenied,
    "stat.name_too_long": errors.NameTooLong,
    "stat.symlink_loop_dereference": errors.TooManyLinks,
    "stat.maxsessions_exceeded": errors.Unreachable,
    "checksum.dir": errors.IsADirectory,
    "checksum.noread": errors.PermissionDenied,
    "checksum.sparse40G_timeout": errors.Stalled,
    "head.dir": errors.IsADirectory,
    "head.missing": errors.NotFound,
    "head.6MiB_all": errors.TooLarge,
    "tail.dir": errors.IsADirectory,
    "download.3932158": errors.TooLarge,
    "download.6MiB": errors.Stalled,
    "download.sparse1G": errors.Stalled,
    "download.dir": errors.IsADirectory,
    "download.broken": errors.NotFound,
    "xfer.download.missing": errors.NotFound,
    "xfer.download.account_required": errors.InvalidArgument,
    "xfer.upload.wrong_method": errors.Unsupported,
    "xfer.upload.name_newline": errors.ServerError,
    "xfer.streamer.s3_requested": errors.Unsupported,
    "jobs.get.unknown": errors.NotFound,
}
CHANGING = {
    "mkdir.exists": errors.Exists,
    "mkdir.missing_parent": errors.NotFound,
    "mkdir.perm_denied": errors.PermissionDenied,
    "mkdir.under_file": errors.NotADirectory,
    "mkdir.name_too_long": errors.NameTooLong,
    "mkdir.outside": errors.NotPermitted,
    "mkdir.nonutf8_surrogate": errors.OutcomeUnknown,
    "upload.5MiB+1": errors.TooLarge,
    "upload.missing_dir": errors.NotFound,
    "upload.perm_denied": errors.PermissionDenied,
    "upload.path_is_file": errors.NotADirectory,
    "upload.target_is_dir": errors.IsADirectory,
    "upload.empty_timing": errors.CommandTimeout,
    "chmod.bad_mode": errors.InvalidArgument,
    "chmod.not_owner": errors.NotPermitted,
    "chmod.broken_symlink": errors.NotFound,
    "chown.bad_group": errors.InvalidArgument,
    "chown.bad_user": errors.InvalidArgument,
    "chown.owner_denied": errors.NotPermitted,
    "symlink.exists": errors.Exists,
    "symlink.perm": errors.PermissionDenied,
    "compress.missing": errors.NotFound,
    "compress.denied": errors.PermissionDenied,
    "extract.missing_target_dir": errors.NotFound,
    "extract.not_an_archive": errors.ServerError,
    "rm.missing": errors.NotFound,
    "rm.under_file": errors.NotADirectory,
    "rm.dir_with_foreign_nonempty_dir": errors.PermissionDenied,
    "mv.ops_does_not_exist": errors.Unsupported,
    "xfer.mv.account_required": errors.InvalidArgument,
    "ls.path_with_nul": errors.OutcomeUnknown,
    "stat.maxsessions_exceeded": errors.Unreachable,
    "ssh_down_unnoticed.stat": errors.Unreachable,
    "ssh_unreachable.ls": errors.Unreachable,
}


@pytest.mark.parametrize("name", ASKING)
def test_errors_of_questions(name: str) -> None:
    found = error_of(reply(name), "try", changes=False)
    assert type(found) is ASKING[name], found
    assert str(found).startswith("try: ") or "jobs.account" in str(found)


@pytest.mark.parametrize("name", CHANGING)
def test_errors_of_changes(name: str) -> None:
    assert type(error_of(reply(name), "try", changes=True)) is CHANGING[name]


@pytest.mark.parametrize(
    ("stderr", "kind"),
    [
        ("bash: line 1: /h/f: Disk quota exceeded", errors.QuotaExceeded),
        ("base64: write error: No space left on device", errors.QuotaExceeded),
        ("mkdir: cannot create directory '/r/x': Read-only file system", errors.ReadOnly),
        ("tar: x: Cannot hard link to 'y': Invalid cross-device link", errors.CrossDevice),
    ],
)
def test_what_500_hides(stderr: str, kind: type[F7tfsError]) -> None:
    assert type(error_of(remote(500, stderr), "x", changes=True)) is kind


def test_a_file_name_does_not_choose_the_error() -> None:
    """The server guesses from the whole text (FACTS §2); the end of it is coreutils' own."""
    text = "stat: cannot statx '/h/Permission denied/x': No such file or directory"
    assert type(error_of(remote(403, text), "x", changes=False)) is errors.NotFound
    assert kind_of("rm: cannot remove '/h/No such file or directory': Is a directory") is (
        errors.IsADirectory
    )


def test_old_timeouts() -> None:
    old = words(500, "Remote process failed with exit status:124 and error message:")
    assert type(error_of(old, "x", changes=True)) is errors.CommandTimeout
    assert type(error_of(old, "x", changes=False)) is errors.Stalled


@pytest.mark.parametrize("status", [400, 404, 500])
def test_a_stranger_says_nothing_about_files(status: int) -> None:
    for body in (b"<html>", b'{"message": "no Route matched"}'):
        found = error_of(Reply(status, {}, body), "stat /a", changes=False)
        assert type(found) is errors.ServerError


def test_verdicts() -> None:
    expected = {
        "stat.missing": None,
        "stat.under_file": Verdict.FINAL,
        "checksum.sparse40G_timeout": Verdict.FINAL,
        "ls.path_with_nul": Verdict.PASSING,
        "stat.maxsessions_exceeded": Verdict.NOT_EXECUTED,
        "ssh_unreachable.ls": Verdict.NOT_EXECUTED,
        "ssh_down_unnoticed.stat": Verdict.NOT_EXECUTED,
        "jobs.submit.no_script": Verdict.FINAL,
        "jobs.list.default": Verdict.FINAL,
    }
    assert {name: judge(reply(name)) for name in expected} == expected
    assert judge(Reply(408, {}, b"<html>")) is None
    assert judge(Reply(503, {}, b'{"message": "upstream"}')) is None
    assert judge(words(500, "(104, 'Connection reset by peer')")) is Verdict.PASSING


def test_v1_recognises_v2s_words() -> None:
    assert isinstance(v1_error_of(reply("unknown_route"), "x", changes=False), SpeaksV2)
    assert isinstance(v1_error_of(words(404, "Not Found"), "x", changes=False), SpeaksV2)


# Listings, stat, content.


def names(record: str) -> dict[str, Any]:
    found = v2_wire.entries(reply(record).body)
    items = [listed(entry, entry.name) for entry in found]
    return {item.name: item for item in items if item is not None}


def test_a_listing() -> None:
    special = names("ls.special")
    assert special["acl"].has_acl
    assert special["fifo"].kind is Kind.FIFO
    assert special["epochneg"].local_mtime == -86400
    assert special["setgid"].permissions == 0o2755
    numeric = names("ls.numericUid")
    assert (numeric["d.txt"].user, numeric["d.txt"].size) == ("1501", 2)
    assert v2_wire.entries(reply("ls.empty_dir").body) == []


def test_links_in_a_listing() -> None:
    links = names("ls.symlinks")
    assert links["rel"].target == "target"
    assert links["arrow"].target == "a -> b"
    assert links["nl"].target == "x\ny"
    assert links["hard"].target is None


def test_both_locales_give_the_same_names() -> None:
    posix, utf8 = names("ls.odd_names"), names("ls.utf8_locale.odd_names")
    assert set(posix) == set(utf8)
    assert {"日本", "e\u0301nfd", "\x1b[31mesc", "new\nline", "back\\slash", "it's"} <= set(utf8)
    assert posix["new\nline"].ambiguous
    assert not posix["back\\slash"].ambiguous


@pytest.mark.parametrize("body", [b"{}", b"[]", b"<html>", b'{"output": {"x": 1}}'])
def test_what_is_no_listing(body: bytes) -> None:
    with pytest.raises(errors.Unreachable):
        v2_wire.entries(body)


def test_stat() -> None:
    stat = stat_of(answer("stat.file")["output"])
    assert (stat.size, stat.ino, stat.kind) == (12, 1475111, Kind.FILE)
    assert stat_of(answer("stat.mtime_before_1970")["output"]).mtime == -86400


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("head.bytes7", b"line 1\n"),
        ("head.empty", b""),
        ("head.nul", b"ab\0cd\0\r\nef"),
        ("tail.skipHeading", b"lo world\n"),
        ("head.binary", None),
        ("head.latin1", None),
        ("tail.utf8_cut", None),
    ],
)
def test_exact_or_not_at_all(name: str, content: bytes | None) -> None:
    if content is not None:
        assert v2_wire.exact(answer(name), "x") == content
        return
    with pytest.raises(errors.Unsupported):
        v2_wire.exact(answer(name), "x")


# Who and what.


def test_userinfo() -> None:
    me = v2_wire.user_of(answer("userinfo"))
    assert (me.user, me.uid, me.group, me.gid) == ("fireuser", 1501, "fireuser", 1501)
    assert me.groups == {"fireuser": 1501, "project1": 1510}


def test_userinfo_of_2_6() -> None:
    """The primary group moved into the list (FACTS §11)."""
    new = {
        "user": {"id": "7", "name": "u"},
        "groups": [
            {"id": "1", "name": "a", "default": False},
            {"id": "2", "name": "b", "default": True},
        ],
    }
    assert (v2_wire.user_of(new).group, v2_wire.user_of(new).gid) == ("b", 2)
    with pytest.raises(errors.Unreachable):
        v2_wire.user_of({"out": 1})


def test_systems() -> None:
    found = {one.name: one for one in v2_wire.systems_of(reply("systems").body)}
    plain = found["cluster"]
    assert plain.file_systems == ("/home", "/scratch")
    assert (plain.transfer_method, plain.wants_account, plain.healthy) == ("s3", False, True)
    assert found["cluster-acct"].wants_account
    assert found["cluster-streamer"].transfer_method == "streamer"
    down = found["cluster-down"]
    assert not down.healthy
    assert "ssh" in v2_wire.status_of(down).description
    limits = v2_wire.capabilities_of(plain, "2.x.x", 20)
    assert (limits.direct_download_limit, limits.direct_upload_limit) == (3_932_157, 5_242_880)
    assert (limits.parallel_calls, limits.command_timeout) == (6, 5.0)
    assert not limits.renames


def test_systems_of_other_versions() -> None:
    """Below 2.5 the directives stand at the top; 2.6 renames kinds of services (FACTS §12)."""
    old = {
        "name": "old",
        "datatransfer_jobs_directives": ["#SBATCH -A {account}"],
        "servicesHealth": [{"serviceType": "filesystems", "healthy": False, "path": "/h"}],
        "fileSystems": [{"path": "/a"}, {"path": "/b", "default_work_dir": True}],
    }
    new = {
        "name": "new",
        "dataOperation": {
            "maxOpsFileSize": 1000,
            "dataTransfer": None,
            "datatransferJobsDirectives": [],
        },
        "servicesHealth": [
            {"serviceType": "external_storage", "healthy": False, "message": "gone\nfar"}
        ],
    }
    first, second, bare = v2_wire.systems_of(
        json.dumps({"systems": [old, new, {"name": "bare"}]}).encode()
    )
    assert first.wants_account and not first.healthy and first.transfer_method is None
    assert first.file_systems == ("/b", "/a")
    assert second.healthy and second.troubles == ("s3: gone",)
    assert (second.transfer_method, second.file_limit) == ("", 1000)
    assert bare.healthy and bare.file_limit == 5 << 20


# Jobs.


def rows(name: str) -> list[v2_jobs.Row]:
    return v2_jobs.rows_of(reply(name).body)


def test_a_running_job_that_the_accounting_calls_pending() -> None:
    (row,) = rows("jobs.get.running")
    assert row.job.state is JobState.RUNNING
    assert row.provisional
    assert (row.job.name, row.job.partition) == ("", "")
    assert row.job.started == "2026-11-23T16:39:35Z"


def test_states() -> None:
    expected = {
        "jobs.get.immediately_after_submit": JobState.PENDING,
        "jobs.get.pending": JobState.PENDING,
        "jobs.get.completed": JobState.COMPLETED,
        "jobs.get.just_cancelled": JobState.CANCELLED,
        "jobs.get.cancelled_pending": JobState.CANCELLED,
        "jobs.get.killed_by_signal": JobState.FAILED,
    }
    for name, state in expected.items():
        (row,) = rows(name)
        assert row.job.state is state, name
        assert row.is_over == (state is not JobState.PENDING)
    (held,) = rows("jobs.get.pending")
    assert held.job.reason == "JobHeldUser"
    assert rows("jobs.get.cancelled")[0].job.state_text == "CANCELLED by 1501"
    assert rows("jobs.get.killed_by_signal")[0].job.exit_code == "0:9"


def test_arrays_and_lists() -> None:
    assert [row.job.id for row in rows("jobs.get.array")] == ["92_1", "92_2", "92_3"]
    found = {row.job.id: row for row in rows("jobs.list.cut")}
    assert found["77"].job.name == "hello"
    assert found["1"].is_transfer and found["51"].is_transfer and not found["78"].is_transfer
    assert is_scheduler_failure(reply("jobs.list.default"))


def test_ids_that_are_numbers_and_fields_that_are_missing() -> None:
    body = json.dumps({"jobs": [{"jobId": 7, "status": {"state": "BOOT_FAIL"}}, {}, 3]}).encode()
    (row,) = v2_jobs.rows_of(body)
    assert (row.job.id, row.job.state, row.is_over) == ("7", JobState.OTHER, False)
    with pytest.raises(errors.Unreachable):
        v2_jobs.rows_of(b'{"error": 1}')


def test_outputs() -> None:
    told = v2_jobs.outputs_of(reply("jobs.metadata.just_completed").body, "77")
    assert told == ("/home/fireuser/t/jobs/out_77.txt", "/home/fireuser/t/jobs/err_77.txt")
    assert v2_jobs.outputs_of(reply("jobs.metadata.other_users_job").body, "100") == ("", "")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("jobs.submit.no_shebang", "does not look like a batch script"),
        ("jobs.submit.bad_partition", "invalid partition specified: nosuch"),
        ("jobs.submit.bad_constraint", "Invalid feature specification"),
        ("jobs.submit.crlf_script", "DOS line breaks"),
    ],
)
def test_refusals_hold_the_schedulers_words(name: str, said: str) -> None:
    found = v2_jobs.refusal_of(reply(name), "submit x")
    assert type(found) is errors.Rejected
    assert said in str(found)
    assert "exit_status" not in str(found)


@pytest.mark.parametrize(
    ("answered", "kind"),
    [
        (reply("jobs.submit.no_script"), errors.CommandTimeout),
        (reply("ssh_down_unnoticed.jobs"), errors.OutcomeUnknown),
        (reply("ls.path_with_nul"), errors.OutcomeUnknown),
        (reply("ssh_unreachable.ls"), errors.Unreachable),
        (words(500, "('Expecting value: line 1',)"), errors.OutcomeUnknown),
        (Reply(500, {}, b"<html>"), errors.OutcomeUnknown),
        (words(403, "Job violates accounting/QOS policy"), errors.Rejected),
        (
            words(
                500,
                "Unexpected Slurm command response. exit_status:1 std_err:sbatch: error: Batch job"
                " submission failed: Socket timed out on send/recv operation",
            ),
            errors.OutcomeUnknown,
        ),
    ],
)
def test_what_leaves_a_submission_open(answered: Reply, kind: type[F7tfsError]) -> None:
    """Unreachable is sent again by the caller: only where no job can exist."""
    assert type(v2_jobs.refusal_of(answered, "submit x")) is kind
