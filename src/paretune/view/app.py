"""The pages: list of runs, a run with live curves, samples, two policies side by side, rating, and chat."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode

from jinja2 import ChoiceLoader, Environment, PackageLoader
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Route

from paretune.core.errors import ParetuneError, ResourceError
from paretune.report.formatting import escape_invisible
from paretune.report.run_page import jinja_environment
from paretune.view.answers import Answers
from paretune.view.chat_page import chat_context, read_question
from paretune.view.curves import Feeds, charts_by_stage
from paretune.view.folders import Folder, find_folders
from paretune.view.rating_page import handle_answer, rating_context
from paretune.view.ratings import RatingsFile, Scale
from paretune.view.reading import TableCache, read_evaluations, read_last_lines, read_status
from paretune.view.rollout_page import ROLLOUTS_FILE, rollouts_context
from paretune.view.sample_page import compare_context, samples_context
from paretune.view.security import MAX_BODY_BYTES, REPORT_POLICY, Guard, form_token, is_form_token

MAX_EVENTS = 30
NAVIGATION = (("/", "Runs"), ("/compare", "Side by side"), ("/rate", "Rate"), ("/chat", "Chat"))
"""Pages that do not belong to one run."""


@dataclass
class Viewer:
    """What the pages are made from."""

    roots: tuple[Path, ...]
    ratings: RatingsFile
    answers: Answers
    token: str
    seed: int = 0
    scale: Scale = field(default_factory=Scale)
    scales: Mapping[str, Scale] = field(default_factory=dict)
    """Objective -> its scale, if it has one of its own."""
    tables: TableCache = field(default_factory=TableCache)
    feeds: Feeds = field(default_factory=Feeds)

    def folders(self) -> dict[str, Folder]:
        """Key -> run, as found now."""
        return {key: folder for key, folder in find_folders(self.roots).items() if folder.kind != "model"}

    def folder(self, query: Mapping[str, str]) -> Folder:
        """The run that a request names.

        Raises:
            HTTPException: There is none.
        """
        folder = self.folders().get(query.get("run", ""))
        if folder is None:
            raise HTTPException(404, "There is no such run.")
        return folder

    def scale_of(self, objective: str) -> Scale:
        """The scale of an objective."""
        return self.scales.get(objective, self.scale)

    def render(self, template: str, context: Mapping[str, Any]) -> HTMLResponse:
        """A page."""
        shared = {"navigation": NAVIGATION, "ratings_path": str(self.ratings.path)}
        return HTMLResponse(page_environment().get_template(template).render({**shared, **context}))


@cache
def page_environment() -> Environment:
    """Jinja with the escaping of the report, and its templates beside those of these pages."""
    loader = ChoiceLoader([PackageLoader("paretune.view", "pages"), PackageLoader("paretune.report", "")])
    environment = jinja_environment().overlay(loader=loader)
    environment.globals["url"] = page_address
    return environment


def page_address(path: str, **query: Any) -> str:
    """The address of a page; empty values are left out."""
    given = {key: value for key, value in query.items() if value not in ("", None)}
    # Names of folders may hold bytes that are no UTF-8.
    text = urlencode(given, errors="surrogateescape")
    return f"{path}?{text}" if text else path


def make_app(viewer: Viewer) -> Guard:
    """The application, behind its guard."""

    def page(make: Callable[[Viewer, Mapping[str, str]], Response]) -> Callable[[Request], Response]:
        return lambda request: make(viewer, dict(request.query_params))

    async def take_rating(request: Request) -> Response:
        return await run_in_threadpool(_take_rating, viewer, await _read_form(viewer, request))

    async def answer(request: Request) -> Response:
        fields = await _read_form(viewer, request)
        question, problem = await run_in_threadpool(lambda: read_question(find_folders(viewer.roots), fields))
        if question is None:
            return JSONResponse({"event": "error", "text": escape_invisible(problem)}, 400)
        return StreamingResponse(viewer.answers.lines(question), media_type="application/x-ndjson")

    routes = [
        Route("/", page(_runs_page), methods=["GET"]),
        Route("/run", page(_run_page), methods=["GET"]),
        Route("/run/live", page(_live), methods=["GET"]),
        Route("/report", page(_report), methods=["GET"]),
        Route("/samples", page(_samples_page), methods=["GET"]),
        Route("/rollouts", page(_rollouts_page), methods=["GET"]),
        Route("/compare", page(_compare_page), methods=["GET"]),
        Route("/rate", page(_rate_page), methods=["GET"]),
        Route("/rate", take_rating, methods=["POST"]),
        Route("/chat", page(_chat_page), methods=["GET"]),
        Route("/chat/answers", answer, methods=["POST"]),
        Route("/chat.js", lambda request: _static(viewer, "chat.js"), methods=["GET"]),
        Route("/view.js", lambda request: _static(viewer, "view.js"), methods=["GET"]),
        Route("/view.css", lambda request: _static(viewer, "view.css"), methods=["GET"]),
    ]

    def refused(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        answer = viewer.render("message.html.j2", {"title": "Not shown", "text": str(error.detail)})
        answer.status_code = error.status_code
        return answer

    def failed(request: Request, error: Exception) -> Response:
        answer = viewer.render("message.html.j2", {"title": "Not shown", "text": str(error)})
        answer.status_code = 500
        return answer

    app = Starlette(routes=routes, exception_handlers={HTTPException: refused, ParetuneError: failed})
    return Guard(app, viewer.token)


async def _read_form(viewer: Viewer, request: Request) -> dict[str, str]:
    """The fields of a form of these pages."""
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY_BYTES:
            raise HTTPException(413, f"The form is larger than {MAX_BODY_BYTES:,} bytes.")
    fields = dict(parse_qsl(body.decode("utf-8", "replace"), keep_blank_values=True))
    if not is_form_token(fields, viewer.token):
        raise HTTPException(403, "Only forms from these pages are accepted.")
    return fields


def _runs_page(viewer: Viewer, query: Mapping[str, str]) -> Response:
    rows = []
    for folder in viewer.folders().values():
        evaluations = read_evaluations(folder, 1)
        status = read_status(folder)[0] if folder.kind == "run" else None
        first = evaluations[0] if evaluations else None
        rows.append(
            {
                "folder": folder,
                "status": status,
                "objectives": first.objectives if first else {},
                "problem": (status.problem if status else "") or (first.problem if first else ""),
                "has_samples": any(evaluation.content for evaluation in evaluations),
                "has_report": _exists(folder, "report.html"),
            }
        )
    return viewer.render("runs.html.j2", {"title": "Runs", "rows": rows, "roots": viewer.roots})


def _exists(folder: Folder, name: str) -> bool:
    try:
        folder.open_file(name).close()
    except OSError:
        return False
    return True


def _run_page(viewer: Viewer, query: Mapping[str, str]) -> Response:
    folder = viewer.folder(query)
    context = _live_context(viewer, folder)
    shown = {"title": folder.key, "folder": folder, "stages": charts_by_stage(context["feed"])}
    return viewer.render("run.html.j2", {**context, **shown})


def _live_context(viewer: Viewer, folder: Folder) -> dict[str, Any]:
    status, info = read_status(folder)
    feed = viewer.feeds.read(folder)
    lines, num_damaged = read_last_lines(folder, "events.jsonl")
    events = [line for line in lines if line.get("type") != "checkpoint"]
    evaluations = read_evaluations(folder)
    problems = [status.problem, *(evaluation.problem for evaluation in evaluations)]
    problems += [f"metrics.jsonl: {feed.num_damaged} damaged lines are left out"] if feed.num_damaged else []
    problems += [f"events.jsonl: {num_damaged} damaged lines are left out"] if num_damaged else []
    return {
        "status": status,
        "info": info,
        "evaluations": evaluations,
        "feed": feed,
        "offset": feed.offset,
        "events": events[-MAX_EVENTS:][::-1],
        "problems": [problem for problem in problems if problem],
        "has_report": _exists(folder, "report.html"),
        "has_rollouts": _exists(folder, ROLLOUTS_FILE),
    }


def _live(viewer: Viewer, query: Mapping[str, str]) -> Response:
    """The parts of a run's page that change, as HTML in JSON; no curves if metrics.jsonl is still as long."""
    folder = viewer.folder(query)
    context = _live_context(viewer, folder)
    module = page_environment().get_template("live.html.j2")

    def part(name: str, **values: Any) -> str:
        return module.render({**context, **values, "folder": folder, "part": name})

    is_new = str(context["offset"]) != query.get("offset", "")
    return JSONResponse(
        {
            "offset": context["offset"],
            "running": context["status"].is_running,
            "status": part("status"),
            "events": part("events"),
            "curves": part("curves", stages=charts_by_stage(context["feed"])) if is_new else None,
        }
    )


def _report(viewer: Viewer, query: Mapping[str, str]) -> Response:
    folder = viewer.folder(query)
    try:
        with folder.open_file("report.html") as file:
            content = file.read()
    except OSError:
        raise HTTPException(404, "This run has no report yet.") from None
    return HTMLResponse(content, headers={"content-security-policy": REPORT_POLICY})


def _samples_page(viewer: Viewer, query: Mapping[str, str]) -> Response:
    folder = viewer.folder(query)
    return viewer.render("samples.html.j2", samples_context(viewer.tables, folder, query))


def _rollouts_page(viewer: Viewer, query: Mapping[str, str]) -> Response:
    return viewer.render("rollouts.html.j2", rollouts_context(viewer.folder(query), query))


def _compare_page(viewer: Viewer, query: Mapping[str, str]) -> Response:
    return viewer.render("compare.html.j2", compare_context(viewer.tables, viewer.folders(), query))


def _rate_page(viewer: Viewer, query: Mapping[str, str], problem: str = "") -> Response:
    context = rating_context(
        viewer.tables, viewer.folders(), viewer.ratings, query, viewer.seed, viewer.scale_of
    )
    shared = {"form_token": form_token(viewer.token), "problem": problem}
    return viewer.render("rate.html.j2", {**context, **shared})


def _chat_page(viewer: Viewer, query: Mapping[str, str]) -> Response:
    context = chat_context(find_folders(viewer.roots), query)
    return viewer.render("chat.html.j2", context | {"form_token": form_token(viewer.token)})


def _take_rating(viewer: Viewer, fields: Mapping[str, str]) -> Response:
    try:
        query, problem = handle_answer(
            viewer.tables, viewer.folders(), viewer.ratings, fields, viewer.seed, viewer.scale_of
        )
    except ResourceError as error:
        query, problem = dict(fields), str(error)
    if problem:
        answer = _rate_page(viewer, query, problem)
        answer.status_code = 400
        return answer
    return RedirectResponse(page_address("/rate", **query), 303)


def _static(viewer: Viewer, name: str) -> Response:
    if name == "view.css":
        text = page_environment().get_template("view.css.j2").render()
        return Response(text, media_type="text/css")
    content = files("paretune.view").joinpath("pages", name).read_bytes()
    return Response(content, media_type="text/javascript")
