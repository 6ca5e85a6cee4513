"""From a URL to a `Cluster` and the staging area behind it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Literal

from f7tfs.api import auth
from f7tfs.api.auth import TokenSource
from f7tfs.api.http import ApiClient, StorageClient, post_form
from f7tfs.api.port import Cluster
from f7tfs.api.staging import StagingArea
from f7tfs.api.tasks import TaskBoard
from f7tfs.api.v1 import V1Cluster
from f7tfs.errors import RateLimited, ServerError, Unreachable, Unsupported


def token_source(
    *,
    token_url: str | None = None,
    client_id: str | None = None,
    client_secret: str | None = None,
    token_command: str | None = None,
    token_file: Path | None = None,
) -> TokenSource:
    """The one way to log in that is set. Raises ValueError where there is none."""
    if token_file is not None:
        return auth.token_file(token_file)
    if token_command is not None:
        return auth.token_command(token_command)
    if token_url is None or client_id is None or client_secret is None:
        raise ValueError("no complete way to log in")
    return auth.client_credentials(token_url, client_id, client_secret, post_form)


@asynccontextmanager
async def open_cluster(
    *,
    url: str,
    token_source: TokenSource,
    system: str,
    api: Literal["auto", "v1", "v2"] = "auto",
    parallel_calls: int = 4,
    request_timeout: float = 30.0,
    patience: float = 20.0,
    stall_timeout: float = 60.0,
) -> AsyncIterator[tuple[Cluster, StagingArea]]:
    """A discovered cluster and its staging area. `stall_timeout`: seconds without a byte after
    which a transfer is given up.

    Raises Unreachable with one sentence for a URL behind which is no FirecREST, UnknownSystem,
    Unauthorized, Unsupported for a dialect that is still to come.
    """
    if api == "v2":
        raise Unsupported("FirecREST v2 is planned, but f7tfs does not speak it yet")
    async with (
        ApiClient(
            url,
            token_source,
            parallel_calls=parallel_calls,
            request_timeout=request_timeout,
            patience=patience,
        ) as client,
        StorageClient(stall_timeout=stall_timeout) as storage,
    ):
        cluster = V1Cluster(client, TaskBoard(client), system, parallel_calls=parallel_calls)
        await _discover(cluster, client)
        yield cluster, StagingArea(storage)


async def _discover(cluster: V1Cluster, client: ApiClient) -> None:
    try:
        await cluster.discover()
    except RateLimited:
        raise
    except (ServerError, Unreachable) as error:
        if client.url in str(error):
            raise Unreachable(str(error)) from error
        if await _speaks_v2(client):
            raise Unsupported(
                f"{client.url} speaks FirecREST v2, which is planned, but not spoken yet"
            ) from error
        raise Unreachable(f"{client.url} does not answer as FirecREST: {error}") from error


async def _speaks_v2(client: ApiClient) -> bool:
    """v2 lists its systems with their ssh and scheduler; v1 has `out`."""
    try:
        reply = await client.request("GET", "/status/systems", idempotent=True)
    except (ServerError, Unreachable):
        return False
    return reply.status == 200 and b'"systems"' in reply.body
