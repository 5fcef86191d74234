"""The dashboard's files, as the build left them in `static/`; they hold no data, so they need no key."""

from pathlib import Path
from typing import Final

from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles

STATIC: Final = Path(__file__).with_name("static")

#: Nothing from elsewhere; styles are set by the charts themselves.
_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "font-src 'self'; connect-src 'self'; manifest-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
_HEADERS: Final = {
    "Content-Security-Policy": _POLICY,
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


class _Assets(StaticFiles):
    """Files whose names change with their contents."""

    def file_response(self, *args: object, **kwargs: object) -> Response:
        response = super().file_response(*args, **kwargs)  # type: ignore[arg-type]
        response.headers["Cache-Control"] = "public, max-age=31536000, immutable"
        return response


def dashboard_routes() -> list[BaseRoute]:
    """The page at `/`, and what it loads."""

    async def page(_: Request) -> Response:
        return FileResponse(STATIC / "index.html", headers=_HEADERS)

    return [
        Route("/", page),
        Mount("/assets", _Assets(directory=STATIC / "assets", check_dir=False)),
    ]
