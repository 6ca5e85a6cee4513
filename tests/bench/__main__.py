"""`python -m bench [ROW…]`: the table, row by row; status 1 if a bar is missed."""

from __future__ import annotations

import argparse
import os
import sys
import time
import traceback

from bench import memory, names, ranges, small, stuck, warm, writing
from bench.figures import Figure, Row

ROWS = (
    Row("offset", "4 KiB at offset 900 MiB of a cold 1 GiB file", ranges.offset_row),
    Row("throughput", "dd of a cold 1 GiB file, staged before, against curl -o",
        ranges.throughput_row),
    Row("first-byte", "open to first byte of a staged file, beyond the server's staging time",
        ranges.first_byte_row),
    Row("reread", "1 GiB again through a new open, against cp on the local disk", warm.reread_row),
    Row("remount", "1 GiB again after a remount, 1 MiB reads, against the local disk",
        warm.remount_row),
    Row("memory", "resident memory while a 10 GiB file is read", memory.memory_row),
    Row("copy-in", "cp of 1 GiB into the mount until close returns, against cp and fsync",
        writing.copy_in_row),
    Row("drain", "that 1 GiB through the staging area, against curl -F of the same form",
        writing.drain_row),
    Row("write-memory", "resident memory while 10 GiB are written and drained",
        writing.memory_row),
    Row("walk", "ls -lR of 200 directories with 50 files each, cold, v1", names.walk_row),
    Row("sniff", "gio list of content types of 200 large files without extension",
        names.sniff_row),
    Row("small-files", "cp -r of 1,000 files of 2 KiB in 20 directories, until verified",
        small.small_files_row),
    Row("stuck", "beside 40 readers that wait for staging", stuck.stuck_row),
    Row("ctrl-c", "Ctrl-C on a cat that waits for staging", stuck.ctrl_c_row),
)  # fmt: skip


def main() -> int:
    known = {row.name: row for row in ROWS}
    parser = argparse.ArgumentParser(
        prog="scripts/bench", description="What reading and writing cost."
    )
    parser.add_argument("rows", nargs="*", metavar="ROW", help="only these rows")
    parser.add_argument("--list", action="store_true", help="the rows, without running them")
    parser.add_argument(
        "--repeat", type=int, default=5, metavar="N", help="rounds of each comparison (5)"
    )
    given = parser.parse_args()
    if unknown := set(given.rows) - known.keys():
        parser.error(f"no such row: {', '.join(sorted(unknown))} (--list shows them)")
    if given.repeat < 1:
        parser.error("--repeat wants at least 1")
    if given.list:
        for row in ROWS:
            print(f"{row.name:12} {row.what}")
        return 0
    missed = 0
    for row in [known[name] for name in given.rows] or ROWS:
        missed += not run(row, given.repeat)
    print(f"{missed} of the rows missed a bar" if missed else "every bar was reached")
    return 1 if missed else 0


def run(row: Row, rounds: int) -> bool:
    """Measure and print it; whether it reached its bars."""
    load, began = os.getloadavg()[0], time.monotonic()
    print(f"{row.name}: {row.what}", flush=True)
    try:
        figures = row.measure(rounds)
    except Exception:
        traceback.print_exc(file=sys.stdout)
        print("    FAIL  not measured", flush=True)
        return False
    for figure in figures:
        show(figure)
    print(f"          ({time.monotonic() - began:.0f} s; load before {load:.1f})", flush=True)
    return all(figure.passes for figure in figures)


def show(figure: Figure) -> None:
    word = "pass" if figure.passes else "FAIL"
    note = f"   [{figure.note}]" if figure.note else ""
    print(f"    {word}  {figure.measured:>10} {figure.wanted:>10}  {figure.what}{note}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
