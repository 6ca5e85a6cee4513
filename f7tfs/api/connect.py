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
from f7tfs.api.v1_errors import SpeaksV2
from f7tfs.api.v2 import V2Cluster
from f7tfs.api.v2_wire import systems_of
from f7tfs.errors import NotFound, RateLimited, ServerError, Unreachable, Unsupported


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
    account: str | None = None,
    parallel_calls: int = 4,
    request_timeout: float = 30.0,
    patience: float = 20.0,
    stall_timeout: float = 60.0,
) -> AsyncIterator[tuple[Cluster, StagingArea]]:
    """A discovered cluster and its staging area. `account`: what v2's transfers are charged to.
    `stall_timeout`: seconds without a byte after which a transfer is given up.

    Raises Unreachable with one sentence for a URL behind which is no FirecREST, or not the dialect
    that was asked for; UnknownSystem, Unauthorized.
    """
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

        def v1() -> Cluster:
            return V1Cluster(client, TaskBoard(client), system, parallel_calls=parallel_calls)

        def v2() -> Cluster:
            return V2Cluster(client, system, account=account, parallel_calls=parallel_calls)

        if api == "v2":
            cluster = v2()
            await _discover(cluster, client, "v2")
        else:
            cluster = v1()
            if not await _discover(cluster, client, api):
                cluster = v2()
                await _discover(cluster, client, "v2")
        yield cluster, StagingArea(storage)


async def _discover(cluster: Cluster, client: ApiClient, api: Literal["auto", "v1", "v2"]) -> bool:
    """Let the cluster ask for its limits, which also tells whether the server understands it.
    False, with "auto" only: the server speaks v2. One call to v1, two to v2: its answer to v1's
    first question is unmistakable (v2 FACTS §1)."""
    try:
        await cluster.discover()
    except RateLimited:
        raise
    except (ServerError, Unreachable, NotFound, Unsupported) as error:
        if client.url in str(error):
            raise Unreachable(str(error)) from error
        if api != "v2" and (isinstance(error, SpeaksV2) or await _speaks_v2(client)):
            if api == "auto":
                return False
            raise Unreachable(f"{client.url} speaks FirecREST v2, not v1 as api says") from error
        version = " v2" if api == "v2" else ""
        raise Unreachable(f"{client.url} does not answer as FirecREST{version}: {error}") from error
    return True


async def _speaks_v2(client: ApiClient) -> bool:
    """v2 lists its systems with their ssh and scheduler; v1 has `out`."""
    try:
        reply = await client.request("GET", "/status/systems", idempotent=True)
        return bool(systems_of(reply.body)) and reply.status == 200
    except (ServerError, Unreachable):
        return False
