"""Names on the v1 wire (FACTS §3, §4): what is carried where, and what a listing means."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from f7tfs.api import v1_names
from f7tfs.api.port import Route
from f7tfs.api.v1_names import carries, decoded, is_sound
from f7tfs.api.v1_wire import Entry, listed, mode_of, tree
from f7tfs.model import Kind

EVERYWHERE_OK = [
    "plain",
    " lead",
    "trail ",
    "sp ace",
    "-dash",
    "--help",
    "star*",
    "ques?",
    "dollar$HOME",
    "hash#1",
    "~tilde",
    "per%20cent",
    "plus+",
    "eq=",
    "comma,x",
    "colon:x",
    "at@x",
    "brace{a,b}",
    "brack[1]",
    "excl!",
    "caret^",
    "ünïcode-☃",
    "emoji😀",
    "nbsp\u00a0x",
    "x" * 255,
    "del\x7f",
]
REFUSED = [
    *(f"a{character}b" for character in "<>|;\"'&\\()`"),
    "new\nline",
    "tab\tx",
    "esc\x1b[31m",
    "two  spaces",
    "latin1-\udce9",
]
STAGED_OK = ["star*", "hash#1", "eq=", "plus+", "per%20", "excl!", "~t", "-dash", "ünï☃", "x" * 255]


@pytest.mark.parametrize("name", EVERYWHERE_OK)
def test_carried_by_commands(name: str) -> None:
    assert carries(f"/home/{name}", Route.COMMAND)
    assert carries(f"/home/{name}", Route.STAGED_UPLOAD)


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("route", Route)
def test_carried_by_nothing(name: str, route: Route) -> None:
    assert not carries(f"/home/{name}", route)
    assert not carries(f"/home/{name}/below", route)


@pytest.mark.parametrize("name", ["sp ace", "comma,x", "dollar$HOME", "brace{a,b}", "del\x7f"])
def test_not_carried_by_staged_downloads(name: str) -> None:
    """The server leaves the source unquoted: these end as 118 (FACTS §3)."""
    assert not carries(f"/home/{name}", Route.STAGED_DOWNLOAD)


@pytest.mark.parametrize("name", STAGED_OK)
def test_carried_by_staged_downloads(name: str) -> None:
    assert carries(f"/home/{name}", Route.STAGED_DOWNLOAD)


def test_two_spaces_across_a_slash_are_two_components() -> None:
    assert carries("/a / b", Route.COMMAND)


def test_long_paths() -> None:
    """FACTS §3: 2833 bytes work, 3034 do not; bytes count, not characters."""
    assert carries("/" + "x/" * 1300, Route.COMMAND)
    assert not carries("/" + "x/" * 1400, Route.COMMAND)
    assert not carries("/" + "☃" * 1000, Route.COMMAND)
    assert v1_names.carries_text("/" + "x" * 1300, "/" + "y" * 1300)
    assert not v1_names.carries_text("/" + "x" * 1400, "/" + "y" * 1400)


@pytest.mark.parametrize(
    ("shown", "meant"),
    [
        (r"new\nline", "new\nline"),
        (r"tab\tx", "tab\tx"),
        (r"esc\033[31m", "esc\x1b[31m"),
        (r"del\177", "del\x7f"),
        (r"latin1-\351", "latin1-\udce9"),
        (r"\303\274n\303\257code-\342\230\203", "ünïcode-☃"),
        (r"\a\b\f\r\v", "\a\b\f\r\v"),
        (r"\001\006", "\x01\x06"),
    ],
)
def test_escapes_are_decoded_and_doubtful(shown: str, meant: str) -> None:
    assert decoded(shown) == (meant, True)


@pytest.mark.parametrize(
    "name", [r"back\slash", r"a\101b", r"a\012b", r"a\000", r"\777", "\\", "x"]
)
def test_what_ls_never_escapes_so_is_literal(name: str) -> None:
    assert decoded(name) == (name, False)


def as_ls_shows(name: bytes, posix: bool) -> str:
    """ls --quoting-style=c, then the server's shlex: quote and backslash come back bare."""
    letters = {7: "a", 8: "b", 9: "t", 10: "n", 11: "v", 12: "f", 13: "r"}
    shown = b""
    text = name.decode("utf-8", "surrogateescape")
    for character in text:
        raw = os.fsencode(character)
        printable = character.isprintable() and not (posix and raw[0] > 126)
        if printable and not 0xDC80 <= ord(character) <= 0xDCFF:
            shown += raw
        else:
            for byte in raw:
                shown += b"\\" + (letters[byte].encode() if byte in letters else b"%03o" % byte)
    return shown.decode()


@given(
    st.binary(min_size=1, max_size=40).filter(lambda b: not set(b) & {0, 0x2F, 0x5C}), st.booleans()
)
def test_every_name_without_a_backslash_survives(name: bytes, posix: bool) -> None:
    assert os.fsencode(decoded(as_ls_shows(name, posix))[0]) == name


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a\0b"])
def test_a_server_cannot_make_the_mount_escape(name: str) -> None:
    """SEMANTICS "Names"."""
    assert not is_sound(name)
    assert listed(Entry(name=name, type="-"), name) is None


def test_recursive_names() -> None:
    names = [
        "a",
        "sub",
        "sub/c",
        r"s\303\274b/\303\274",
        "../up",
        "sub/../x",
        "/etc/passwd",
        "s//x",
    ]
    found = list(tree([Entry(name=name, type="-") for name in names], "/home/me"))
    assert [(directory, item.name) for directory, item in found] == [
        ("", "a"),
        ("", "sub"),
        ("sub", "c"),
        ("süb", "ü"),
    ]
    absolute = list(tree([Entry(name="/home/me/sub/c", type="-")], "/home/me"))
    assert [(directory, item.name) for directory, item in absolute] == [("sub", "c")]


@pytest.mark.parametrize(
    ("shown", "mode", "has_acl"),
    [
        ("rw-r--r--", 0o644, False),
        ("rwxr-xr-x", 0o755, False),
        ("rw-rw-r--+", 0o664, True),
        ("rwsr-xr-x", 0o4755, False),
        ("rwSr-Sr-T", 0o7644, False),
        ("rwxrwxrwt", 0o1777, False),
        ("rwxr-sr-x", 0o2755, False),
        ("---------", 0, False),
        ("rw-r--r--.", 0o644, False),
        ("", 0, False),
    ],
)
def test_permissions(shown: str, mode: int, has_acl: bool) -> None:
    assert mode_of(shown) == (mode, has_acl)


def test_an_entry() -> None:
    entry = Entry(
        name="link",
        type="l",
        size="12",
        permissions="rwxrwxrwx",
        last_modified="1969-12-31T00:00:00",
        link_target=r"sp ace -> \303\274",
        user="me",
        group="us",
    )
    item = listed(entry, entry.name)
    assert item is not None
    assert (item.kind, item.size, item.local_mtime) == (Kind.SYMLINK, 12, -86400)
    assert (item.target, item.user, item.group) == ("sp ace -> ü", "me", "us")
    bare = listed(Entry(name="x", type="-"), "x")
    assert bare is not None
    assert (bare.size, bare.permissions, bare.target) == (0, 0, None)
    assert listed(Entry(name="x", type="?"), "x") is None
