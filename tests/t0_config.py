"""The configuration: layers, values, complaints (HABITS 15: whole, at start, all at once)."""

from __future__ import annotations

from pathlib import Path

import pytest

from f7tfs.config import BadConfiguration, Config, load, split_target
from f7tfs.config.values import KEYS, parse_duration, parse_size

ENVIRONMENT = {
    "FIRECREST_URL": "https://firecrest.example.org/",
    "AUTH_TOKEN_URL": "https://auth.example.org/token",
    "FIRECREST_CLIENT_ID": "me",
    "FIRECREST_CLIENT_SECRET": "s3cret",
}
PLACE = Path("/mnt/daint")


def config(
    *options: str,
    spec: str = "daint:/scratch/me",
    toml: Path | None = None,
    environ: dict[str, str] | None = None,
    **variables: str,
) -> Config:
    base = ENVIRONMENT if environ is None else environ
    values = {"F7TFS_CONFIG": str(toml or "/dev/null"), **base, **variables}
    return load(spec, PLACE, options=options, environ=values)


def complaints(*options: str, **more: object) -> tuple[str, ...]:
    with pytest.raises(BadConfiguration) as caught:
        config(*options, **more)  # type: ignore[arg-type]
    return caught.value.complaints


@pytest.fixture
def toml(tmp_path: Path) -> Path:
    path = tmp_path / "config.toml"
    path.touch(mode=0o600)
    return path


def test_environment_of_pyfirecrest_is_enough() -> None:
    made = config()
    assert made.url == "https://firecrest.example.org"
    assert made.credentials.client_secret == "s3cret"
    assert (made.system, made.remote_path, made.mountpoint) == ("daint", "/scratch/me", PLACE)
    assert made.api == "auto"
    assert made.cache_directory.name == "f7tfs" and made.state_directory.name == "f7tfs"
    assert made.hostname


def test_secret_is_in_no_repr() -> None:
    assert "s3cret" not in repr(config())


def test_precedence(toml: Path) -> None:
    toml.write_text(
        """
        listing_ttl = "1min"
        cache_size = "1GiB"
        stage_limit = "1TiB"
        api = "v1"
        [jobs]
        account = "top"
        partition = "normal"
        [systems.daint]
        cache_size = "2GiB"
        [systems.daint.jobs]
        account = "g12"
        [systems.eiger]
        cache_size = "3GiB"
        """
    )
    made = config("stage_limit=none", toml=toml, FIRECREST_API_VERSION="2.3.0")
    assert made.listing_ttl == 60
    assert made.cache_size == 2 << 30
    assert made.stage_limit is None
    assert made.api == "v2"
    assert (made.jobs.account, made.jobs.partition) == ("g12", "normal")
    assert config(spec="eiger:/x", toml=toml).cache_size == 3 << 30
    assert config("api=v1", toml=toml, FIRECREST_API_VERSION="2").api == "v1"


def test_all_complaints_at_once(toml: Path) -> None:
    toml.write_text(
        """
        cache_sise = "20GiB"
        stall_timeout = "soon"
        [jobs]
        barier = "all"
        barrier = "some"
        [systems.other]
        listing_ttl = -1
        """
    )
    found = complaints("drain_timeout=x,bogus=1,fsync=never", toml=toml, FIRECREST_URL="ftp://x")
    text = "\n".join(found)
    for key in ["cache_sise", "stall_timeout", "jobs.barier", "jobs.barrier", "listing_ttl"]:
        assert any(line.startswith(key + ":") for line in found), key
    for key in ["drain_timeout", "bogus", "fsync", "url"]:
        assert any(line.startswith(key + ":") for line in found), key
    assert "did you mean cache_size?" in text and "did you mean jobs.barrier?" in text
    assert "[systems.other]" in text and "FIRECREST_URL" in text and str(toml) in text


def test_missing_keys_name_their_variables() -> None:
    found = complaints(environ={})
    assert len(found) == 4
    for variable in ENVIRONMENT:
        assert any(variable in line for line in found)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        (4096, 4096),
        ("4096", 4096),
        ("20GiB", 20 << 30),
        ("20G", 20 << 30),
        ("1.5MiB", 3 << 19),
        ("1MB", 1_000_000),
        ("7 k", 7 << 10),
        ("12B", 12),
    ],
)
def test_sizes(text: object, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "GiB", "-1", -1, True, 1.5, "1QiB", "1e3", "٣"])
def test_bad_sizes(text: object) -> None:
    with pytest.raises(ValueError, match="size"):
        parse_size(text)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [(30, 30), ("30", 30), ("30s", 30), ("5min", 300), ("2h", 7200), ("500ms", 0.5), (0.5, 0.5)],
)
def test_durations(text: object, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "s", "-1s", "5 weeks", -1, True, float("nan"), float("inf")])
def test_bad_durations(text: object) -> None:
    with pytest.raises(ValueError, match="duration"):
        parse_duration(text)


def test_options_of_fstab_are_ignored() -> None:
    made = config("rw,nosuid,nodev,noatime,_netdev,user,x-gvfs-show,x-gvfs-name=a b", "allow_other")
    assert made.allow_other
    assert complaints("ro") == ("ro: read-only mounts are not offered yet",)


def test_option_values() -> None:
    made = config(r"umask=077,jobs.enabled=off,jobs.working_directory=/a\,b", "cache_directory=~/c")
    assert made.umask == 0o077
    assert not made.jobs.enabled
    assert made.jobs.working_directory == "/a,b"
    assert made.cache_directory == Path.home() / "c"
    assert complaints("cache_directory=here")[0].startswith("cache_directory:")
    assert complaints("cache_size")[0].startswith("cache_size: needs a value")
    assert "umask" in complaints("umask=99")[0]


def test_secret_is_refused_on_the_command_line_and_never_repeated(toml: Path) -> None:
    found = complaints("client_secret=hunter2")
    assert len(found) == 1 and "hunter2" not in found[0]
    toml.write_text("client_secret = 12345678")
    assert "12345678" not in "\n".join(complaints(toml=toml))


def test_secret_in_a_file_that_others_read(toml: Path) -> None:
    toml.write_text('client_secret = "x"')
    toml.chmod(0o644)
    assert "chmod 600" in complaints(toml=toml)[0]


def test_one_way_to_a_token() -> None:
    made = config("token_command=oidc-token daint")
    assert made.credentials.token_command == "oidc-token daint"
    assert made.credentials.client_secret is None
    assert "exclude" in complaints(FIRECREST_TOKEN_COMMAND="t")[0]
    only = {"FIRECREST_URL": "https://f", "FIRECREST_TOKEN_COMMAND": "t"}
    assert config(environ=only).credentials.token_command == "t"
    assert config("token_file=/run/token").credentials.token_file == Path("/run/token")


def test_system_from_the_environment() -> None:
    assert config(spec="/scratch", FIRECREST_SYSTEM="daint").system == "daint"
    assert complaints(spec="/scratch")[0].startswith("system: missing")


def test_targets() -> None:
    assert split_target("daint:/a//b/../c/") == ("daint", "/a/c")
    assert split_target("/a:b") == ("", "/a:b")
    assert split_target("daint:/a:b") == ("daint", "/a:b")
    for bad in ("daint", "daint:", "daint:a", "", "-x:/a", "a b:/x", "a/b:/x"):
        with pytest.raises(ValueError):
            split_target(bad)


@pytest.mark.parametrize("text", ["= nonsense", "\udcff"])
def test_broken_files(toml: Path, text: str) -> None:
    toml.write_text(text, errors="surrogateescape")
    assert "is not TOML" in complaints(toml=toml)[0]


def test_missing_file_only_matters_when_it_was_named(tmp_path: Path) -> None:
    assert "does not exist" in complaints(toml=tmp_path / "none.toml")[0]
    environ = {**ENVIRONMENT, "XDG_CONFIG_HOME": str(tmp_path)}
    assert load("daint:/x", PLACE, environ=environ).system == "daint"


def test_journal_is_keyed_by_everything_but_the_mountpoint() -> None:
    one = config()
    elsewhere = load("daint:/scratch/me", Path("/other"), environ=_environ())
    assert elsewhere.journal_directory("me") == one.journal_directory("me")
    others = {
        one.journal_directory("you"),
        config(spec="daint:/scratch").journal_directory("me"),
        config(spec="eiger:/scratch/me").journal_directory("me"),
        config(FIRECREST_URL="https://other").journal_directory("me"),
    }
    assert len(others | {one.journal_directory("me")}) == 5


def _environ() -> dict[str, str]:
    return {**ENVIRONMENT, "F7TFS_CONFIG": "/dev/null"}


def test_every_key_is_documented() -> None:
    page = (Path(__file__).parent.parent / "docs" / "cli.md").read_text(encoding="utf-8")
    missing = [key for key in KEYS if f"`{key}`" not in page]
    assert not missing
