"""The server's addresses: the page, its questions, its videos."""

from __future__ import annotations

import asyncio
import functools
import json
from collections.abc import AsyncIterator, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any
from urllib.parse import quote

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from vpgfast.data.text import split_sentences, tokenize
from vpgfast.errors import UserError
from vpgfast.page.content import Content
from vpgfast.page.write import page_html
from vpgfast.serve.guard import Guard
from vpgfast.serve.library import Entry, Library
from vpgfast.serve.models import Model
from vpgfast.serve.uploads import Refused, Uploads

TITLE = "Find moments"
MOST_CHARACTERS, MOST_SENTENCES = 10_000, 50
"""Of a question."""


class Server:
    """Answers the page.

    Args:
        model: asked by one thread, one question at a time, so that no answer is another's.
        library: has been started.
        uploads: ``None`` takes none.
        most_videos: in the library; no more are taken.
        top: spans a sentence, or videos.
    """

    def __init__(self, model: Model, library: Library, uploads: Uploads | None, most_videos: int, top: int) -> None:
        self.model, self.library, self.uploads = model, library, uploads
        self.most_videos, self.top = most_videos, top
        self._page = page_html(Content(TITLE).as_dict([]), served=True)
        self._thread = ThreadPoolExecutor(1, "answering")
        self._free = asyncio.Lock()

    def app(self, names: Iterable[str]) -> Starlette:
        """The application; ``names`` are the server's own, beside localhost."""

        @asynccontextmanager
        async def life(_: Starlette) -> AsyncIterator[None]:
            self._thread.submit(self.model.warm_up)
            self.library.start()
            yield
            self._thread.shutdown(wait=False, cancel_futures=True)
            await asyncio.to_thread(self.library.stop)

        return Starlette(
            routes=[
                Route("/", self.page),
                Route("/api/library", self.show_library),
                Route("/api/ask", self.ask, methods=["POST"]),
                Route("/api/videos/{name:path}", self.upload, methods=["PUT"]),
                Route("/videos/{name:path}", self.video),
            ],
            middleware=[Middleware(Guard, names=names)],
            exception_handlers={Refused: _refused, 404: _missing, Exception: _failed},
            lifespan=life,
        )

    async def page(self, request: Request) -> Response:
        return HTMLResponse(self._page, headers={"Cache-Control": "no-cache"})

    async def show_library(self, request: Request) -> Response:
        entries = self.library.entries()
        left = sum(entry.state in ("waiting", "encoding") for entry in entries)
        note = f"{left} of {len(entries)} still to be looked at" if left else ""
        if not entries:
            place = "Add videos, or drop them here." if self.uploads else "Put videos into the folder."
            note = f"There is no video yet. {place}"
        return JSONResponse(
            {
                "videos": [_about(entry) for entry in entries],
                "uploads": self.uploads is not None,
                "about": f"Asks {self.model.name}.",
                "note": note,
            }
        )

    async def ask(self, request: Request) -> Response:
        sentences, name = await _question(request)
        entries = self.library.entries()
        if name is not None and name not in {entry.name for entry in entries}:
            raise Refused(404, f"The library has no video {name!r}.")
        chosen = [entry for entry in entries if name in (None, entry.name)]
        ready = [entry for entry in chosen if entry.state == "ready"]
        if name is not None and not ready:
            raise Refused(
                409, chosen[0].problem or f"{name} is still being looked at; the answer comes when that is done."
            )
        async with self._free:
            if await request.is_disconnected():  # typed on meanwhile: nobody waits for this answer
                return Response(status_code=499)
            work = functools.partial(self.model.answer, ready, sentences, self.top)
            try:
                found = await asyncio.get_running_loop().run_in_executor(self._thread, work)
            except UserError as error:
                raise Refused(400, str(error)) from None
        if left := len(chosen) - len(ready):
            found = replace(found, about=f"{found.about} {left} more can't be asked yet.".strip())
        media = {entry.name: entry.media for entry in ready}
        videos = [video.as_dict(_address(video.name), media[video.name]) for video in found.videos]
        return JSONResponse(found.as_dict(videos))

    async def upload(self, request: Request) -> Response:
        if self.uploads is None:
            raise Refused(403, "This server takes no videos (--no-upload).")
        known = {entry.name for entry in self.library.entries()}
        if len(known) + self.uploads.unseen(known) >= self.most_videos:
            raise Refused(409, f"The library is full: it has {self.most_videos} videos (--most-videos).")
        name = await self.uploads.take(request, request.path_params["name"])
        return JSONResponse({"name": name}, 201)

    async def video(self, request: Request) -> Response:
        entry = await asyncio.to_thread(self.library.file, request.path_params["name"])
        if entry is None:
            raise Refused(404, "The library has no such video.")
        kind = entry.media.type if entry.media else "application/octet-stream"
        return FileResponse(entry.path, media_type=kind, headers={"Cache-Control": "no-cache"})


def _about(entry: Entry) -> dict[str, Any]:
    return {
        "name": entry.name,
        "file": entry.path.name.encode("utf-8", "backslashreplace").decode(),
        "state": entry.state,
        "done": entry.done,
        "problem": entry.problem,
        "duration": entry.video.duration if entry.video else None,
        "unplayable": entry.media.problem if entry.media else "",
        "src": _address(entry.name),
    }


def _address(name: str) -> str:
    return f"videos/{quote(name)}"


async def _question(request: Request) -> tuple[list[str], str | None]:
    """Sentences and the name of a video (``None``: all) of a request's body, JSON."""
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        raise Refused(415, "A question is JSON.")  # which no other site's page can send without asking first
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > 8 * MOST_CHARACTERS:
            raise Refused(413, f"A question has at most {MOST_CHARACTERS} characters.")
    try:
        content = json.loads(body)
        text, name = content["text"], content.get("video")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise Refused(400, 'A question is {"text": "...", "video": NAME or null}.') from None
    if not isinstance(text, str) or not (name is None or isinstance(name, str)):
        raise Refused(400, "text and video of a question are strings.")
    if len(text) > MOST_CHARACTERS:
        raise Refused(413, f"A question has at most {MOST_CHARACTERS} characters, this one has {len(text)}.")
    if not tokenize(text):
        raise Refused(400, "There is no word in it: write what happens.")
    sentences = [sentence for sentence in split_sentences(text) if tokenize(sentence)]
    if len(sentences) > MOST_SENTENCES:
        raise Refused(400, f"A question has at most {MOST_SENTENCES} sentences, this one has {len(sentences)}.")
    return sentences, name


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refused)
    return JSONResponse({"error": str(error)}, error.status)


async def _missing(request: Request, error: Exception) -> Response:
    return JSONResponse({"error": "There is nothing at this address."}, 404)


async def _failed(request: Request, error: Exception) -> Response:
    """The answer after a bug; uvicorn prints its trace."""
    return JSONResponse({"error": f"The server failed ({type(error).__name__}); what it prints says why."}, 500)
