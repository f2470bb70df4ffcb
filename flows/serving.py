"""Prefect's server, and beside its pages the reports of one store: `python -m flows.serving STORE PORT`, on loopback.

`flows.server` starts it.  A report is a file that Prefect's pages may link to, on their own port and through their own tunnel.
"""

import base64
import hmac
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from flows.report import ROUTE

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from starlette.requests import Request
    from starlette.responses import Response

_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; img-src data:; frame-ancestors 'self'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
"""a report needs no script and no other file, and gets none, whatever its texts may hold"""


def reports(store: Path) -> "Callable[[Request], Awaitable[Response]]":
    """What answers `/reports/<run>.html` with that file of `store`, and everything else with 404."""
    from starlette.responses import FileResponse, PlainTextResponse

    async def answer(request: "Request") -> "Response":
        if not _may_read(request.headers.get("Authorization", "")):
            return PlainTextResponse("a report asks for what the server asks for\n", 401, {"WWW-Authenticate": "Basic"})
        name = str(request.path_params["name"])
        file = store / ".runs" / name
        if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*\.html", name) and file.is_file():
            return FileResponse(file, media_type="text/html", headers=_HEADERS)
        return PlainTextResponse(f"no report of this name in {store}; `align report RUN` writes it\n", 404)

    return answer


def _may_read(given: str) -> bool:
    """Whether this `Authorization` opens the server; Prefect itself asks for it before its API alone."""
    from prefect.settings import PREFECT_SERVER_API_AUTH_STRING

    if not (wanted := PREFECT_SERVER_API_AUTH_STRING.value()):
        return True
    expected = base64.b64encode(wanted.encode()).decode()
    return hmac.compare_digest(given.encode(), f"Basic {expected}".encode())


def main(store: Path, port: int) -> None:
    """Serve until ended."""
    import uvicorn
    from prefect.server.api.server import create_app
    from prefect.settings import get_current_settings
    from starlette.routing import Route

    api = get_current_settings().server.api
    app = create_app(final=True)
    app.router.routes.insert(0, Route(f"{ROUTE}/{{name}}", reports(store)))  # before Prefect's own pages, which take every path
    uvicorn.run(
        app, host="127.0.0.1", port=port, timeout_keep_alive=api.keepalive_timeout,
        log_level=get_current_settings().server.logging_level.lower(),
    )  # fmt: skip


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
