"""The served page in a browser."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from browsing import no_serious_fault, stopped_at
from colours import Colours, film

pytest.importorskip("starlette", reason="needs the extra `serve` (the extra `test` brings it)")
pytest.importorskip("uvicorn", reason="needs the extra `serve` (the extra `test` brings it)")

import uvicorn

from vpgfast.serve import library as library_module
from vpgfast.serve.app import Server
from vpgfast.serve.library import Library
from vpgfast.serve.models import load_model
from vpgfast.serve.run import _listen
from vpgfast.serve.uploads import Uploads

Opened = Callable[..., Any]


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, Server, Path]]:
    """Its address, itself, and its folder, which has two videos."""
    monkeypatch.setattr(library_module, "STILL", 0.0)
    folder = tmp_path / "library"
    folder.mkdir()
    film(folder / "rgb #1.mp4", ["red", "green", "blue"])
    film(folder / "br.mp4", ["blue", "red"])
    model = load_model(Path("colours"))
    served = Server(model, Library(folder, model.encoder, interval=0.05), Uploads(folder, 2**20), 6, 5)
    listening = _listen("127.0.0.1", 0)
    running = uvicorn.Server(uvicorn.Config(served.app([]), log_level="warning", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=running.run, args=([listening],))
    thread.start()
    while not running.started or any(entry.state != "ready" for entry in served.library.entries()):
        time.sleep(0.02)
    yield f"http://127.0.0.1:{listening.getsockname()[1]}/", served, folder
    running.should_exit = True
    thread.join()
    listening.close()


def test_one_types_and_the_moments_come(opened: Opened, server: tuple[str, Server, Path]) -> None:
    page = opened(server[0])
    no_serious_fault(page)
    page.keyboard.type("Something green", delay=15)
    page.locator(".span").first.wait_for()
    assert page.locator(".video").count() == 1  # green is in no other
    assert "rgb #1.mp4" in page.locator(".video").first.text_content()
    page.keyboard.press("Enter")
    page.locator("[aria-current=true]:focus").wait_for()
    page.keyboard.press("Enter")
    assert stopped_at(page, 2.0) == pytest.approx(4.0, abs=0.3)
    no_serious_fault(page)
    with page.expect_download() as waiting:
        page.locator("[data-kind=csv]").click()
    assert waiting.value.suggested_filename == "Something green.csv"
    page.keyboard.press("/")
    page.keyboard.press("Control+a")
    page.keyboard.press("Backspace")
    page.locator(".hint").wait_for()
    assert page.locator(".video").count() == 0


def test_an_older_answer_never_replaces_a_newer_one(opened: Opened, server: tuple[str, Server, Path]) -> None:
    """The first question is held up until the second has been answered, and comes all the same."""
    page = opened(server[0])
    page.evaluate("AbortController.prototype.abort = () => {}")  # so that the late answer really comes
    routes: list[Any] = []

    def hold_up(route: Any) -> None:
        if "red" in (route.request.post_data or ""):
            routes.append(route)
        else:
            route.continue_()

    page.route("**/api/ask", hold_up)
    page.keyboard.type("red")
    page.wait_for_function("question === 1")
    page.keyboard.press("Control+a")
    page.keyboard.type("blue")
    page.locator(".sentence", has_text="blue").first.wait_for()
    with page.expect_response("**/api/ask") as waiting:
        routes[0].continue_()
    assert waiting.value.ok
    page.wait_for_timeout(200)
    assert set(page.locator(".sentence").all_text_contents()) == {"blue"}


def test_choosing_a_video(opened: Opened, server: tuple[str, Server, Path]) -> None:
    page = opened(server[0])
    page.locator("#videos button", has_text="br.mp4").click()
    page.wait_for_function("player.currentSrc.endsWith('videos/br.mp4') && player.readyState > 0")
    page.keyboard.press("/")
    page.keyboard.type("It is blue. It is red.")
    page.locator(".lane").nth(1).wait_for()
    assert page.locator(".video").count() == 1
    page.locator("#all").click()
    page.locator(".video").nth(1).wait_for()


def test_errors_are_text_on_the_page(opened: Opened, server: tuple[str, Server, Path]) -> None:
    page = opened(server[0])
    page.keyboard.type("?!")
    page.locator("#status.problem").wait_for()
    assert "no word" in page.locator("#status").text_content()
    page.keyboard.type(" red")
    page.locator(".span").first.wait_for()
    assert page.locator("#status.problem").count() == 0
    opened.wrong[:] = [text for text in opened.wrong if "400 (Bad Request)" not in text]  # the browser's own line


def test_a_new_video(
    opened: Opened, server: tuple[str, Server, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sent by the button; how far it is encoded is seen; then it answers without a word from the user."""
    address, _, folder = server
    gate, real = threading.Semaphore(2), Colours.encode_clips

    def slow(self: Colours, clips: Any) -> Any:
        gate.acquire()
        return real(self, clips)

    monkeypatch.setattr(Colours, "encode_clips", slow)
    page = opened(address)
    page.keyboard.type("It is green.")
    page.locator(".span").first.wait_for()
    (tmp_path / "note.mp4").write_bytes(b"no video")
    page.locator("#files").set_input_files([tmp_path / "note.mp4", film(tmp_path / "green.mp4", ["green"] * 4)])
    row = page.locator("#videos li", has_text="green.mp4")
    row.locator("progress").wait_for()
    page.wait_for_function("rows.get('green.mp4')?.bar.value > 0 && rows.get('green.mp4').bar.value < 1")
    assert "note.mp4: can't be decoded" in page.locator("#status.problem").text_content()
    no_serious_fault(page)
    gate.release(100)
    page.locator(".video", has_text="green.mp4").wait_for()
    assert (folder / "green.mp4").is_file()
    opened.wrong[:] = [text for text in opened.wrong if "415 (Unsupported" not in text]


def test_dropping_a_file(opened: Opened, server: tuple[str, Server, Path]) -> None:
    page = opened(server[0])
    page.evaluate(
        """() => {
            const dataTransfer = new DataTransfer();
            dataTransfer.items.add(new File(["text"], "my notes.txt"));
            document.body.dispatchEvent(new DragEvent("drop", { dataTransfer, bubbles: true, cancelable: true }));
        }"""
    )
    page.locator("#status.problem").wait_for()
    assert "my notes.txt is not named like a video" in page.locator("#status").text_content()
    opened.wrong[:] = [text for text in opened.wrong if "415 (Unsupported" not in text]


def test_the_server_has_gone(opened: Opened, server: tuple[str, Server, Path]) -> None:
    page = opened(server[0])
    page.route("**/api/ask", lambda route: route.abort())
    page.keyboard.type("red")
    page.locator("#status.problem").wait_for()
    assert "does not answer" in page.locator("#status").text_content()
    opened.wrong[:] = [text for text in opened.wrong if "ERR_FAILED" not in text]
