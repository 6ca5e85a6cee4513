"""Slurm's words, on both wires."""

from __future__ import annotations

import re

from f7tfs.errors import InvalidArgument

OVER = re.compile(r"already completing or completed|Invalid job id specified", re.IGNORECASE)
MAY_BE_SUBMITTED = re.compile(r"Socket timed out|Zero Bytes were transmitted", re.IGNORECASE)
NOT_SUBMITTED = re.compile(r"Unable to contact slurm controller", re.IGNORECASE)

_JOB_ID = re.compile(r"(\d+)(?:[_+.]\S*)?")
_NO_VALUE = {"", "N/A", "Unknown", "None assigned", "Not available", "None", "(null)", "(None)"}


def said(value: object) -> str:
    """A field's text; "" for the many ways in which Slurm says nothing."""
    text = "" if value is None else str(value).strip()
    return "" if text in _NO_VALUE else text


def base_of(job_id: str) -> str:
    """The number of a job, without array indices. Raises InvalidArgument."""
    found = _JOB_ID.fullmatch(job_id)
    if found is None:
        raise InvalidArgument(f"not a job id: {job_id!r}")
    return found[1]
