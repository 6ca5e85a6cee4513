"""The command line before the network: exit codes, one sentence, quick start (HABITS 15)."""

from __future__ import annotations

import json
import os
import re
import select
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from f7tfs import errors, service
from f7tfs.cli import mounts, spawn
from f7tfs.cli import words as people
from f7tfs.cli.exits import Exit, Failure, cause_of, code_of, sentence_of
from f7tfs.cli.mounts import Mount, resolve
from f7tfs.config import check_target, load

ROOT = Path(__file__).parent.parent
COMMANDS = [
    "mount", "umount", "systems", "status", "sync", "uploads", "refresh", "fetch", "demo",
    "simulate",
]  # fmt: skip
CREDENTIALS = {
    "FIRECREST_URL": "http://127.0.0.1:9",
    "AUTH_TOKEN_URL": "http://127.0.0.1:9/token",
    "FIRECREST_CLIENT_ID": "me",
    "FIRECREST_CLIENT_SECRET": "s3cret-canary",
}


def environment(home: Path, **more: str) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("FIRECREST", "F7TFS", "XDG"))}
    return {**kept, "HOME": str(home), "AUTH_TOKEN_URL": "", **more}


def f7tfs(home: Path, *arguments: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "f7tfs", *map(str, arguments)],
        env=environment(home, **variables),
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def refused(done: subprocess.CompletedProcess[str], code: Exit) -> str:
    """The one sentence of a command that ended with `code`."""
    assert done.returncode == code, (done.stdout, done.stderr)
    assert "Traceback" not in done.stderr + done.stdout
    lines = done.stderr.splitlines()
    assert len(lines) == 1 and lines[0].startswith("f7tfs: "), done.stderr
    return lines[0]


needs_fuse = pytest.mark.skipif(
    not os.access("/dev/fuse", os.R_OK | os.W_OK), reason="no usable /dev/fuse"
)


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help(tmp_path: Path, command: str) -> None:
    done = f7tfs(tmp_path, *filter(None, [command]), "--help")
    assert done.returncode == 0 and done.stdout.startswith("Usage: f7tfs")
    assert not done.stderr


def test_version(tmp_path: Path) -> None:
    assert re.fullmatch(r"f7tfs \d+\.\d+\.\d+\n", f7tfs(tmp_path, "--version").stdout)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nonsense"], "No such command"),
        (["mount"], "Missing argument"),
        (["mount", "daint:/x"], "Missing argument"),
        (["mount", "daint:", "/mnt"], "'daint:' is not like SYSTEM or SYSTEM:/REMOTE/PATH"),
        (["mount", "scratch/me", "/mnt"], "'scratch/me' is not like SYSTEM or"),
        (["mount", "", "/mnt"], "'' is not like SYSTEM or"),
        (["mount", "-x", "/mnt"], "No such option"),
        (["systems", "daint"], "unexpected extra argument"),
        (["simulate", "--root", "x", "--api", "v3"], "Invalid value for '--api'"),
        (["demo", "--api", "both"], "Invalid value for '--api'"),
        (["mount", "--frobnicate", "a:/b", "c"], "No such option"),
        (["umount"], "Missing argument"),
        (["sync", "a", "b"], "unexpected extra argument"),
        (["uploads", "empty"], "No such command"),
        (["uploads", "discard"], "say which files, or --all-stuck"),
        (["uploads", "discard", "--yes"], "say which files, or --all-stuck"),
        (["uploads", "save"], "Missing argument 'DIR'"),
        (["uploads", "retry", "--all"], "No such option"),
        (["simulate"], "Missing option"),
    ],
)
def test_usage(tmp_path: Path, arguments: list[str], words: str) -> None:
    assert words in refused(f7tfs(tmp_path, *arguments), Exit.USAGE)


def test_configuration_complaints(tmp_path: Path) -> None:
    done = f7tfs(tmp_path, "mount", "daint:/x", tmp_path, "-o", "cachesize=1", **CREDENTIALS)
    assert "did you mean cache_size?" in refused(done, Exit.CONFIGURATION)
    done = f7tfs(tmp_path, "mount", "daint:/x", tmp_path)
    assert done.returncode == Exit.CONFIGURATION
    assert all(line.startswith("f7tfs: ") for line in done.stderr.splitlines())
    for variable in CREDENTIALS:
        assert variable in done.stderr


def test_no_such_configuration(tmp_path: Path) -> None:
    given = ("mount", "--config", tmp_path / "none.toml", "daint:/x", tmp_path)
    assert "none.toml does not exist" in refused(
        f7tfs(tmp_path, *given, **CREDENTIALS), Exit.CONFIGURATION
    )


def test_systems_before_the_network(tmp_path: Path) -> None:
    done = f7tfs(tmp_path, "systems")
    assert done.returncode == Exit.CONFIGURATION
    for variable in CREDENTIALS:
        assert variable in done.stderr
    assert "FIRECREST_SYSTEM" not in done.stderr
    given = ("systems", "-o", "cachesize=1")
    words = refused(f7tfs(tmp_path, *given, **CREDENTIALS), Exit.CONFIGURATION)
    assert "did you mean cache_size?" in words
    done = f7tfs(tmp_path, "systems", "-o", "patience=1s", **CREDENTIALS)
    assert CREDENTIALS["FIRECREST_CLIENT_SECRET"] not in refused(done, Exit.UNREACHABLE)


def test_targets() -> None:
    def of(spec: str) -> tuple[str, str, bool]:
        config = load(spec, Path("/mnt"), environ=CREDENTIALS | {"F7TFS_CONFIG": os.devnull})
        return config.system, config.remote_path, config.whole_system

    assert of("daint") == ("daint", "/", True)
    assert of("daint:/") == ("daint", "/", False)
    assert of("daint:/a/../b") == ("daint", "/b", False)
    for bad in ("", "daint:", "daint:a", "a/b", "a b"):
        with pytest.raises(ValueError, match="is not like SYSTEM or"):
            check_target(bad)


@needs_fuse
def test_mountpoints(tmp_path: Path) -> None:
    missing, file = tmp_path / "missing", tmp_path / "file"
    file.touch()
    for place, words in (
        (missing, "does not exist"),
        (file, "is not a directory"),
        (file / "below", "Not a directory"),
        ("/proc", "is busy: proc (proc) is mounted there"),
    ):
        done = f7tfs(tmp_path, "mount", "daint:/x", place, **CREDENTIALS)
        assert words in refused(done, Exit.MOUNTPOINT)
        done = f7tfs(tmp_path, "mount", "-f", "daint:/x", place, **CREDENTIALS)
        assert words in refused(done, Exit.MOUNTPOINT)


@needs_fuse
def test_log_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    place = tmp_path / "mnt"
    place.mkdir()
    given = ("mount", "-o", f"log_file={tmp_path}/file/log", "daint:/x", place)
    assert "log_file" in refused(f7tfs(tmp_path, *given, **CREDENTIALS), Exit.CONFIGURATION)


@needs_fuse
def test_no_fusermount(tmp_path: Path) -> None:
    done = f7tfs(tmp_path, "mount", "daint:/x", tmp_path, **CREDENTIALS, PATH=str(tmp_path))
    assert "fusermount3 is not installed" in refused(done, Exit.NO_FUSERMOUNT)


def test_not_a_mount_of_ours(tmp_path: Path) -> None:
    commands = (
        ["umount"], ["status"], ["sync"], ["refresh"], ["fetch"], ["uploads", "list"],
        ["uploads", "retry"], ["uploads", "discard", "--yes"], ["uploads", "save", "saved"],
    )  # fmt: skip
    for place in (tmp_path, tmp_path / "missing", "/", "/proc"):
        for command in commands:
            refused(f7tfs(tmp_path, *command, place), Exit.NOT_F7TFS)
    assert not (ROOT / "saved").exists()


def test_status_without_mounts_is_fine(tmp_path: Path) -> None:
    done = f7tfs(tmp_path, "status", "--json")
    assert done.returncode == 0
    assert isinstance(json.loads(done.stdout), list)


def test_nothing_answers_at_the_url(tmp_path: Path) -> None:
    pytest.importorskip("f7tfs.mount")
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        pytest.skip("no usable /dev/fuse")
    place = tmp_path / "mnt"
    place.mkdir()
    done = f7tfs(tmp_path, "mount", "-o", "patience=1s", "daint:/x", place, **CREDENTIALS)
    refused(done, Exit.UNREACHABLE)
    for log in tmp_path.rglob("*.log"):
        assert CREDENTIALS["FIRECREST_CLIENT_SECRET"] not in log.read_text()


@pytest.mark.parametrize("api", ["v1", "v2", "both"])
def test_simulate(tmp_path: Path, api: str) -> None:
    """One JSON line, then service until SIGTERM."""
    pytest.importorskip("hypercorn")
    with subprocess.Popen(
        [sys.executable, "-m", "f7tfs", "simulate", "--root", str(tmp_path / "disk"), "--api", api],
        env=environment(tmp_path),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    ) as simulator:
        try:
            assert simulator.stdout is not None
            assert select.select([simulator.stdout], [], [], 30)[0]
            ready = json.loads(simulator.stdout.readline())
            for key in ("firecrest_url", "auth_token_url", "client_id", "client_secret", "system"):
                assert ready[key]
            assert Path(ready["root"]) == tmp_path / "disk"
            assert ("firecrest_v2_url" in ready) == (api != "v1")
            simulator.terminate()
            assert simulator.wait(timeout=30) == 0
        finally:
            simulator.kill()


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(tmp_path: Path, shell: str) -> None:
    source = f7tfs(tmp_path, _F7TFS_COMPLETE=f"{shell}_source")
    assert source.returncode == 0 and "_F7TFS_COMPLETE" in source.stdout
    words = {"COMP_WORDS": "f7tfs s", "COMP_CWORD": "s" if shell == "fish" else "1"}
    found = f7tfs(tmp_path, _F7TFS_COMPLETE=f"{shell}_complete", **words)
    assert all(name in found.stdout for name in ("status", "sync", "simulate"))
    assert "umount" not in found.stdout


@pytest.mark.parametrize(
    ("arguments", "banned"),
    [
        ([], "pyfuse3 trio httpx rich msgspec starlette"),
        (["status"], "pyfuse3 trio httpx msgspec starlette"),
        (["status", "--json"], "pyfuse3 trio httpx rich msgspec starlette"),
        (["systems", "-o", "patience=1s"], "pyfuse3 starlette"),
        (["sync", "/"], "pyfuse3 trio httpx rich msgspec starlette"),
        (["umount", "/"], "pyfuse3 trio httpx rich msgspec starlette"),
        (["refresh", "/"], "pyfuse3 trio httpx rich msgspec starlette"),
        (["uploads", "retry", "/"], "pyfuse3 trio httpx rich msgspec starlette"),
        (["uploads", "list"], "pyfuse3 httpx rich starlette"),
        (["mount", "daint:/x", "/proc"], "pyfuse3 trio httpx rich starlette"),
    ],
)
def test_lazy_imports(tmp_path: Path, arguments: list[str], banned: str) -> None:
    program = (
        "import sys\nfrom f7tfs.cli import main\n"
        "try:\n    main(sys.argv[1:])\nexcept SystemExit:\n    pass\n"
        "print('LOADED', *sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        env=environment(tmp_path, **CREDENTIALS),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    loaded = set(done.stdout.splitlines()[-1].split())
    assert "LOADED" in loaded
    assert not loaded & set(banned.split())


@needs_fuse
def test_the_directory_of_the_user_is_not_imported_from(tmp_path: Path) -> None:
    """A trio.py beside the user must not run in the daemon."""
    canary, place = tmp_path / "canary", tmp_path / "mnt"
    place.mkdir()
    for name in ("trio", "json", "msgspec"):
        (tmp_path / f"{name}.py").write_text(f"open({str(canary)!r}, 'w')\n")
    done = subprocess.run(
        [sys.executable, "-P", "-m", "f7tfs", "mount", "-o", "patience=1s", "daint:/x", str(place)],
        env=environment(tmp_path, **CREDENTIALS, PYTHONPATH=str(ROOT)),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stderr.startswith("f7tfs: ") and not canary.exists()


# The tables.


def test_exit_codes_are_documented() -> None:
    page = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| (\d+) \| (.+?) \|$", page, re.MULTILINE))
    assert rows == {str(int(code)): code.meaning for code in Exit}


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.Unauthorized("no"), Exit.CREDENTIALS),
        (errors.UnknownSystem("no", ("a",)), Exit.SYSTEM),
        (errors.Unreachable("no"), Exit.UNREACHABLE),
        (errors.CommandTimeout("no"), Exit.UNREACHABLE),
        (errors.NotFound("no"), Exit.REMOTE_PATH),
        (errors.NotADirectory("no"), Exit.REMOTE_PATH),
        (errors.PermissionDenied("no"), Exit.REMOTE_PATH),
        (errors.Busy("no"), Exit.JOURNAL),
        (errors.F7tfsError("no"), Exit.UNSPECIFIED),
        (ValueError("no"), Exit.INTERNAL),
        (KeyboardInterrupt(), Exit.INTERRUPTED),
    ],
)
def test_codes_of_errors(error: BaseException, code: Exit) -> None:
    assert code_of(error) is code
    group = BaseExceptionGroup("trio", [BaseExceptionGroup("trio", [error])])
    assert cause_of(group) is error
    assert "\n" not in sentence_of(error)


def test_known_systems_are_listed() -> None:
    assert sentence_of(errors.UnknownSystem("no x", ("a", "b"))).endswith("offers: a, b")


# The two sides of a start.


@pytest.mark.parametrize(
    ("line", "code", "words"),
    [
        (b'{"exit": 5, "message": "no system x"}\n', Exit.SYSTEM, "no system x"),
        (b'{"exit": 70, "message": "boom"}\n', Exit.INTERNAL, "boom; see /the/log"),
        (b"", Exit.INTERNAL, "without a word; its log is /the/log"),
        (b'{"exit": 99, "message": "?"}\n', Exit.INTERNAL, "/the/log"),
        (b"[]\n", Exit.INTERNAL, "/the/log"),
    ],
)
def test_what_the_daemon_may_say(line: bytes, code: Exit, words: str) -> None:
    with pytest.raises(Failure) as caught:
        spawn._judge(line, Path("/the/log"))
    assert caught.value.code is code and words in str(caught.value)


def test_ready() -> None:
    spawn._judge(b'{"ready": true, "pid": 1}\n', Path("/the/log"))


def test_systemd_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    assert not service.sd_notify("READY=1")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "s"))
        systemd.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "s"))
        assert service.sd_notify("READY=1")
        assert systemd.recv(100) == b"READY=1"


def test_log(tmp_path: Path) -> None:
    """In a process of its own: pytest has handlers too."""
    program = (
        "import logging, types, pathlib\nfrom f7tfs import service\n"
        f"file = pathlib.Path({str(tmp_path / 'deep' / 'log')!r})\n"
        "service.configure_logging(types.SimpleNamespace(log_file=file, log_level='info'))\n"
        "log = logging.getLogger('f7tfs.x')\n"
        "for i in range(500): log.info('line %d', i)\n"
        "log.debug('hidden'); logging.getLogger('httpx').info('https://signed')\n"
        "lines = service.recent_lines()\n"
        "print(len(lines), lines[0].split(' ', 2)[2], '|', lines[-1].split(' ', 2)[2])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout == "200 INFO    f7tfs.x: line 300 | INFO    f7tfs.x: line 499\n"
    written = (tmp_path / "deep" / "log").read_text().splitlines()
    assert len(written) == 500 and not done.stderr


# Mounts.


def test_resolve(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    assert resolve(tmp_path / "link") == str(tmp_path.resolve() / "real")
    assert resolve("/proc/") == "/proc"


def test_mounts_of_this_machine() -> None:
    (holding,) = [one for one in mounts.all_mounts() if one.mountpoint == "/proc"][-1:]
    assert holding.kind == "proc" and not holding.looks_ours
    assert mounts.find("/proc/self/status") is None
    assert Mount("/mnt", "daint:/scratch", "fuse.f7tfs").looks_ours
    assert not Mount("/mnt", "daint:/scratch", "nfs4").looks_ours
    assert not Mount("/mnt", "/dev/sda", "fuseblk").looks_ours


def test_find_follows_links_outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a path means below a mount is found without touching the mount."""
    place = str(tmp_path.resolve() / "mnt")
    monkeypatch.setattr(mounts, "all_mounts", lambda: [Mount(place, "daint:/x", "fuse.f7tfs")])
    (tmp_path / "mnt").mkdir()
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "link").symlink_to("../mnt/thesis")
    (tmp_path / "absolute").symlink_to(place)
    (tmp_path / "loop").symlink_to("loop")

    def below(path: Path) -> str | None:
        found = mounts.find(str(path))
        return found[1] if found is not None else None

    assert below(tmp_path / "mnt") == ""
    assert below(tmp_path / "mnt" / "a" / "b") == "a/b"
    assert below(tmp_path / "deep" / "link" / "main.tex") == "thesis/main.tex"
    assert below(tmp_path / "absolute" / "a") == "a"
    assert below(tmp_path / "mnt" / ".." / "deep") is None
    assert below(tmp_path / "loop") is below(tmp_path / "mntx") is None


def test_words_for_people() -> None:
    assert [people.lasting(n) for n in (-1, 5, 119, 120, 7200, 864000)] == [
        "0 s", "5 s", "119 s", "2 min", "2 h", "10 d",
    ]  # fmt: skip
    assert people.human(1536) == "1.5 KiB" and people.plural(1, "file") == "1 file"
    assert people.shown("thesis ü.tex") == "thesis ü.tex"
    assert people.shown("a\nb\x1b[31m") == "a\\nb\\x1b[31m"
    assert people.shown(os.fsdecode(b"latin1-\xe9")) == "latin1-\\xe9"
    long = "upload /a/b: /wrapper.sh: line 70: /a/b: Permission denied"
    assert people.reason(long) == "Permission denied"
    log = "d/f: sh: 1: d/f: Permission denied · cat: d/f: No such file or directory"
    assert people.reason(log) == "Permission denied"
    assert people.reason("the checksum on the cluster differs") == (
        "the checksum on the cluster differs"
    )
