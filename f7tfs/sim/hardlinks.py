"""A cluster whose file system makes no hard links, or none across directories (TAR.md, cautions).

Only tar makes hard links there. While they are refused, a script named tar stands before the real
one in PATH: all other members are left to the real tar; a hard link fails as observed with GNU tar
1.34, which unlinks the file that stands in the way before it finds that link(2) is refused.
"""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path
from typing import Any

WORDS = ("EPERM", "EXDEV", "EOPNOTSUPP")

# Called as the servers call tar: -x…f ARCHIVE -C DIRECTORY.
_SCRIPT = r"""#!/bin/bash
real=$(PATH=$SIM_PATH type -P tar)
[[ $1 == -x* ]] || exec "$real" "$@"
archive=$2 directory=$4
excluded=() names=() existing=()
member='^h[^ ]+ +[^ ]+ +[0-9]+ +[0-9-]+ +[0-9:]+ (.*) link to (.*)$'
while IFS= read -r line; do
    [[ $line =~ $member ]] || continue
    name=${BASH_REMATCH[1]} link=${BASH_REMATCH[2]}
    if [[ $SIM_ACROSS == 1 && $(dirname -- "$name") == "$(dirname -- "$link")" ]]; then continue; fi
    names+=("$name") existing+=("$link") excluded+=("--exclude=$name")
done < <("$real" -tvf "$archive" --quoting-style=literal 2>/dev/null)
"$real" --anchored --no-wildcards "${excluded[@]}" "$@"
code=$?
[[ ${#names[@]} == 0 ]] && exit $code
opening="'" closing="'"
if [[ $LANG == *UTF-8* ]]; then opening=$'\u2018' closing=$'\u2019'; fi
for i in "${!names[@]}"; do
    name=${names[i]} link=${existing[i]} place=$directory/${names[i]} words=$SIM_WORDS
    if [[ ! -e $directory/$link && ! -L $directory/$link ]]; then
        words='No such file or directory'
    elif [[ -d $place && ! -L $place ]]; then
        rmdir -- "$place" 2>/dev/null || words='File exists'
    else
        rm -f -- "$place"
    fi
    echo "tar: $name: Cannot hard link to $opening$link$closing: $words" >&2
done
[[ $code == 0 ]] && echo 'tar: Exiting with failure status due to previous errors' >&2
exit 2
"""


class HardLinks:
    def __init__(self) -> None:
        self._refuse = ""
        self._across = False
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def order(self, wish: Any) -> None:
        """{"refuse": "EPERM" | "EXDEV" | "EOPNOTSUPP" | null, "across": true for only those
        across directories}. ValueError for anything else."""
        refuse = wish.get("refuse") or ""
        if refuse and refuse not in WORDS:
            raise ValueError(f"links are refused with one of {', '.join(WORDS)}")
        self._refuse, self._across = refuse, bool(wish.get("across"))

    def allow(self) -> None:
        self._refuse = ""

    def environment(self, path: str) -> dict[str, str]:
        """What commands need besides, `path` being their PATH."""
        if not self._refuse:
            return {}
        return {
            "PATH": f"{self._shim()}:{path}",
            "SIM_PATH": path,
            "SIM_WORDS": os.strerror(getattr(errno, self._refuse)),
            "SIM_ACROSS": str(int(self._across)),
        }

    def _shim(self) -> str:
        """A folder with a program named tar, for every user."""
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="f7tfs-sim-tar-")
            program = Path(self._folder.name) / "tar"
            program.write_text(_SCRIPT, encoding="utf-8")
            for place in (program, program.parent):
                place.chmod(0o755)
        return self._folder.name
