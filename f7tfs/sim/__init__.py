"""A FirecREST v1 server, token endpoint, object store and little scheduler over a local folder.

A second implementation from the recorded facts, never from our client: it imports nothing else of
f7tfs, so that mistakes cannot cancel out. `serve` needs the extra packages of `f7tfs[sim]`;
`SimOptions` does not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from f7tfs.sim.options import SimOptions

if TYPE_CHECKING:
    from f7tfs.sim.server import serve

__all__ = ["SimOptions", "serve"]


def __getattr__(name: str) -> Any:
    if name != "serve":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        from f7tfs.sim.server import serve
    except ModuleNotFoundError as missing:
        if missing.name is None or missing.name.startswith("f7tfs"):
            raise
        raise ImportError(
            f"the simulator needs the package {missing.name!r}: pip install 'f7tfs[sim]'"
        ) from missing
    return serve
