"""What makes a dropped file a batch script, and what is added to it. Pure text work."""

from __future__ import annotations

import re

from f7tfs.errors import Rejected
from f7tfs.tree.temporaries import is_temporary

LIMIT = 5 << 20  # bytes; above it v1 answers 413 (v1 FACTS §9)
_BACKUP = re.compile(r".*~|.*\.bak|.*\.orig", re.DOTALL)
_OPTION = re.compile(rb"^#SBATCH\s+(?P<option>-\w|--[\w-]+)", re.MULTILINE)


def is_ordinary(name: str) -> bool:
    """Whether a file of this name is submitted: not hidden, not a temporary, not a backup."""
    if name.startswith(".") or _BACKUP.fullmatch(name):
        return False
    return not is_temporary(name, lambda _: True)


def check(script: bytes) -> None:
    """Refuse what the scheduler would refuse anyway. Raises Rejected with one sentence."""
    if not script.startswith(b"#!"):
        raise Rejected("this is no batch script: its first line must begin with #!")
    if b"\r\n" in script:
        raise Rejected("the script has DOS line ends (CR LF): convert it with dos2unix")
    if len(script) > LIMIT:
        raise Rejected(f"the script has {len(script)} bytes; the limit is {LIMIT}")


def with_defaults(script: bytes, *, directory: str, partition: str | None) -> bytes:
    """Insert what the mount's configuration says, after the shebang, where the script itself says
    nothing. v1 runs an uploaded script in a directory of its own (v1 FACTS §9), hence --chdir."""
    options = {found["option"] for found in _OPTION.finditer(script)}
    lines = []
    if not options & {b"-D", b"--chdir"}:
        lines.append(f"#SBATCH --chdir={directory}\n")
    if partition is not None and not options & {b"-p", b"--partition"}:
        lines.append(f"#SBATCH --partition={partition}\n")
    if not lines:
        return script
    shebang, newline, rest = script.partition(b"\n")
    added = "".join(lines).encode(errors="surrogateescape")
    return shebang + (newline or b"\n") + added + rest
