"""The page's endpoints as tools for MCP clients, on request."""

from __future__ import annotations

import importlib.util
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

from bdh.errors import ConfigError

TOOLS = ("/generate", "/score", "/models", "/merge_plan")
"""The endpoints that become tools. Gradio calls them for all MCP clients in one session, so none may have a memory:
/chat would tell one what another said."""


def only_tools() -> Callable[[Any], AbstractAsyncContextManager[None]]:
    """What the app is to do when it starts: leave no other endpoint among the tools, whatever Gradio offers.

    Raises:
        ConfigError: what MCP takes is not installed.
    """
    if importlib.util.find_spec("mcp") is None:
        raise ConfigError("BDH_MCP is true, but the package for it is not here; pip install 'gradio[mcp]'")

    @asynccontextmanager
    async def start(app: Any) -> AsyncIterator[None]:
        page = app.get_blocks()
        if (server := page.mcp_server_obj) is None:
            raise RuntimeError(f"the MCP server did not start: {page.mcp_error}")
        server.tool_to_endpoint = {
            name: endpoint for name, endpoint in server.tool_to_endpoint.items() if endpoint in TOOLS
        }
        if set(server.tool_to_endpoint.values()) != set(TOOLS):
            raise RuntimeError(f"MCP tools are {sorted(server.tool_to_endpoint)}, and should be {TOOLS}")
        yield

    return start
