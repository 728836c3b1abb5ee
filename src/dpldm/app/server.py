"""The page itself: a form, images, and the guarantee, served to a browser on this machine.

Without scripts: a page is HTML that a form asks for, and goes out row by row while a model draws. Its policy lets a
browser load nothing, from here or elsewhere, and send forms to this page alone.
"""

import io
import ipaddress
import socket
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import numpy as np

from dpldm.app.gallery import LARGEST_SEED, MOST_GUIDANCE, MOST_IMAGES, MOST_ROWS, Asked, Painter, Released, Row, Shelf
from dpldm.data.export import export_images
from dpldm.errors import MissingExtra, UserError
from dpldm.loading import validate
from dpldm.report.card import handful_card
from dpldm.report.document import Edition, Recorded, report_of
from dpldm.report.filling import environment, template_text
from dpldm.report.head import head, policy
from dpldm.report.samples import picture
from dpldm.reporting import require_intact
from dpldm.verifying import read_statement

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

HEADERS = {
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}
LIMITS = {"images": MOST_IMAGES, "rows": MOST_ROWS, "guidance": MOST_GUIDANCE, "seed": LARGEST_SEED}
PURPOSE = "Looking at a release in a browser"


def serve(release: Path, host: str, port: int, say: Callable[[str], None]) -> None:
    """Serve the page until it is interrupted.

    Args:
        port: 0 takes any that is free.
        say: is told what happens: that the release is checked, which takes some seconds, then the page's address.

    Raises:
        UserError: it is no release that `verify` accepts, or the address cannot be had.
        MissingExtra: starlette or uvicorn is not installed.
    """
    try:
        import uvicorn
    except ImportError as error:
        raise MissingExtra("uvicorn", "app", PURPOSE) from error
    say("checking the release")
    made = application(release, trusted=["*"] if is_open(host) else [host, "localhost"])
    try:
        listener = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except (OSError, OverflowError) as error:
        raise UserError(f"Nothing can be served at {host}, port {port}: choose another --port or --host.") from error
    with listener:
        name = f"[{host}]" if ":" in host else host
        say(f"http://{name}:{listener.getsockname()[1]}/  (Ctrl+C ends it)")
        uvicorn.Server(uvicorn.Config(made, log_level="warning", access_log=False)).run(sockets=[listener])


def is_open(host: str) -> bool:
    """Whether others than this machine can reach an address."""
    try:
        return not ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host != "localhost"


def application(release: Path, trusted: list[str]) -> "Starlette":
    """The page of a release.

    Args:
        trusted: names by which a browser may call this machine; "*" for all. A page elsewhere could otherwise point a
            name of its own to this machine, and read what is shown.

    Raises:
        UserError: it is no release that `verify` accepts.
        MissingExtra: starlette is not installed.
    """
    try:
        from starlette.applications import Starlette
        from starlette.middleware import Middleware
        from starlette.middleware.trustedhost import TrustedHostMiddleware
        from starlette.responses import FileResponse, RedirectResponse
        from starlette.routing import Route
    except ImportError as error:
        raise MissingExtra("starlette", "app", PURPOSE) from error
    require_intact(release)
    statement, full_report = read_statement(release), release / "report.html"
    shelves = shelves_of(release, statement)
    pages = Pages(statement, shelves, full_report.is_file())
    routes = [Route("/", lambda request: RedirectResponse(shelves[0].path))]
    for shelf in shelves:
        routes += [Route(shelf.path, pages.shown(shelf)), Route(f"{shelf.path}.zip", pages.packed(shelf))]
    if pages.full_report:
        routes.append(Route("/report", lambda request: FileResponse(full_report, headers=HEADERS)))
    hosts = Middleware(TrustedHostMiddleware, allowed_hosts=trusted, www_redirect=False)
    return Starlette(routes=routes, middleware=[hosts])


def shelves_of(release: Path, statement: Mapping[str, Any]) -> list[Shelf]:
    """What a release has to show: images, a model, or both.

    Raises:
        UserError: its model cannot be loaded.
    """
    found: list[Shelf] = []
    declared = statement["declared_constants"]
    if (release / "synthetic.npz").is_file():
        found.append(Released(release / "synthetic.npz", declared["labels"] or declared.get("prompts", [])))
    if (release / "model").is_dir():
        found.append(Painter(release / "model", declared))
    return found


class Pages:
    """Answers to a browser.

    Args:
        statement: the release's privacy.json, verified.
        full_report: whether the release holds a report.
    """

    def __init__(self, statement: Mapping[str, Any], shelves: list[Shelf], full_report: bool) -> None:
        self.statement, self.shelves, self.full_report = statement, shelves, full_report
        self.report = report_of(statement, Edition.RELEASE, Recorded())
        self.style = template_text("report.css") + template_text("app.css")
        self.template = environment().get_template("app.html")
        self.headers = HEADERS | {"Content-Security-Policy": policy(self.style, forms="'self'")}

    def shown(self, shelf: Shelf) -> "Callable[[Request], Response]":
        """The page with the images that an address asks for. A model draws only when it is asked to."""
        from starlette.responses import StreamingResponse

        def answer(request: "Request") -> "Response":
            given, beginning = dict(request.query_params), shelf.beginning()
            refused, rows, asked = "", None, validate(shelf.asked, beginning)
            try:
                asked = validate(shelf.asked, beginning | given)
                rows = shelf.rows(asked) if given or isinstance(shelf, Released) else None
            except UserError as error:
                refused = str(error)
            text = self._text(shelf, asked, rows, refused)
            return StreamingResponse(text, 400 if refused else 200, self.headers, "text/html; charset=utf-8")

        return answer

    def packed(self, shelf: Shelf) -> "Callable[[Request], Response]":
        """The same images as an archive: a folder for each class, a table, and a card with the guarantee."""
        from starlette.responses import PlainTextResponse, Response

        def answer(request: "Request") -> "Response":
            try:
                asked = validate(shelf.asked, shelf.beginning() | dict(request.query_params))
                rows = list(shelf.rows(asked))
            except UserError as error:
                return PlainTextResponse(str(error), 400, HEADERS)
            name = {"Content-Disposition": 'attachment; filename="synthetic-images.zip"'}
            return Response(self._archive(shelf, asked, rows), 200, HEADERS | name, "application/zip")

        return answer

    def _text(self, shelf: Shelf, asked: Asked, rows: Iterator[Row] | None, refused: str) -> Iterator[str]:
        """The page in pieces. Rows come when they are made."""
        yield head(self.style, forms="'self'")
        further = {title: _address(shelf.path, more) for title, more in shelf.neighbours(asked).items()}
        yield from self.template.generate(
            report=self.report,
            full_report=self.full_report,
            shelves=self.shelves,
            shelf=shelf,
            draws=isinstance(shelf, Painter),
            classes=bool(self.statement["declared_constants"]["labels"]),
            prompts=shelf.prompts if isinstance(shelf, Painter) else None,
            asked=asked,
            limits=LIMITS,
            refused=refused,
            rows=None if rows is None else ((row, [picture(image) for image in row.images]) for row in rows),
            further=further,
            archive=_address(f"{shelf.path}.zip", asked.model_dump()),
        )

    def _archive(self, shelf: Shelf, asked: Asked, rows: list[Row]) -> bytes:
        names, sizes = [row.name for row in rows], [len(row.images) for row in rows]
        images, labels = np.concatenate([row.images for row in rows]), np.repeat(np.arange(len(rows)), sizes)
        classes = shelf.names and shelf.names == self.statement["declared_constants"]["labels"]
        meaning = {"label_names": names} if classes else {"label_names": None, "prompts": names if any(names) else []}
        card = handful_card(self.statement, shelf.title, asked.model_dump())
        buffer = io.BytesIO()
        with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
            export_images(Path(folder), images, labels, card=card, **meaning)
            for path in sorted(Path(folder).rglob("*")):
                archive.write(path, path.relative_to(folder))
        return buffer.getvalue()


def _address(path: str, asked: Mapping[str, Any]) -> str:
    return f"{path}?{urlencode(asked)}"
