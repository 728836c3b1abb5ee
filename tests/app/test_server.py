"""The page answers with what was asked for, says the guarantee, refuses nonsense, and is for this machine alone."""

import csv
import io
import re
import shutil
import signal
import socket
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from dpldm.app.gallery import Released
from dpldm.app.server import HEADERS, Pages, application, is_open
from dpldm.cli import main
from dpldm.config import RunConfig
from dpldm.errors import UserError
from dpldm.releasing import privacy_statement, release
from dpldm.report.wording import guarantee_sentence, odds_sentence
from dpldm.sampling import load_synthetic
from hostile import hostile_texts

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def both(finished: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A release of images and model: look, do not touch."""
    output = tmp_path_factory.mktemp("both")
    shutil.copytree(finished.runtime.output, output, dirs_exist_ok=True)
    moved = finished.model_copy(update={"runtime": finished.runtime.model_copy(update={"output": output})})
    return release(moved, "both")


@pytest.fixture(scope="module")
def client(both: Path) -> TestClient:
    return TestClient(application(both, ["127.0.0.1"]), base_url="http://127.0.0.1")


def pictures(page: str) -> int:
    return page.count('src="data:image/png;base64,')


def test_it_shows_the_released_images_and_the_guarantee(client: TestClient, finished: RunConfig) -> None:
    answer = client.get("/")
    statement = privacy_statement(finished)
    assert str(answer.url).endswith("/images")
    assert guarantee_sentence(statement) in answer.text
    assert odds_sentence(statement["guarantee"]["epsilon"], "image") in answer.text
    assert pictures(answer.text) == 24
    assert "synthetic images of dark" in answer.text


def test_it_draws_when_it_is_asked_to_and_not_before(client: TestClient) -> None:
    assert pictures(client.get("/draw").text) == 0
    page = client.get("/draw?kind=1&number=5&guidance=2&seed=3").text
    assert pictures(page) == 5
    assert "5 synthetic images of light" in page
    assert page == client.get("/draw?kind=1&number=5&guidance=2&seed=3").text
    assert page != client.get("/draw?kind=1&number=5&guidance=2&seed=4").text
    assert page.index('role="status"') < page.index("data:image/png"), "that it is drawing is said first"


def unzipped(content: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return {name: archive.read(name) for name in archive.namelist() if not name.endswith("/")}


def test_the_archive_holds_the_images_that_are_shown(client: TestClient, finished: RunConfig) -> None:
    answer = client.get("/images.zip?number=2&first=1")
    assert answer.headers["content-disposition"].startswith("attachment")
    files = unzipped(answer.content)
    drawn, rows = load_synthetic(finished), list(csv.DictReader(io.StringIO(files["metadata.csv"].decode())))
    assert [row["label"] for row in rows] == ["dark", "dark", "light", "light"]
    for row, place in zip(rows, (2, 4, 3, 5), strict=True):
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(files[row["file_name"]]))), drawn.images[place, ..., 0])
    card = files["README.md"].decode()
    assert guarantee_sentence(privacy_statement(finished)) in card
    assert len(files) == 6


def test_the_archive_of_a_drawing_is_what_the_page_shows(client: TestClient) -> None:
    files = unzipped(client.get("/draw.zip?kind=0&number=3&seed=7").content)
    assert sorted(files) == ["README.md", "dark/000000.png", "dark/000001.png", "dark/000002.png", "metadata.csv"]
    assert "seed 7" in files["README.md"].decode()


@pytest.mark.parametrize(
    ("query", "sentence"),
    [
        ("number=0", "number is not valid: input should be greater than or equal to 1"),
        ("number=many", "number is not valid"),
        ("number=999999999999", "number is not valid"),
        ("kind=7", "There is no such class in this release"),
        ("guidance=nan", "guidance is not valid"),
        ("seed=-1", "seed is not valid"),
        ("colour=red", "colour is not a setting"),
        ("<script>=1", "is not a setting"),
    ],
)
def test_nonsense_is_refused_in_one_sentence(query: str, sentence: str, client: TestClient) -> None:
    for path in ("/draw", "/draw.zip"):
        answer = client.get(f"{path}?{query}")
        assert answer.status_code == 400
        assert sentence in answer.text
        assert "<script>" not in answer.text or answer.headers["content-type"].startswith("text/plain")
        assert pictures(answer.text) == 0


def test_a_page_may_load_nothing_and_is_kept_nowhere(client: TestClient) -> None:
    for path in ("/images", "/draw", "/draw?number=1"):
        answer = client.get(path)
        policy = answer.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; style-src 'sha256-")
        assert policy.endswith("img-src data:; base-uri 'none'; form-action 'self'")
        assert HEADERS.items() <= {key.title(): value for key, value in answer.headers.items()}.items()
        assert not re.search(r"<script|style=|https?://", answer.text)


def test_a_name_of_others_for_this_machine_gets_nothing(client: TestClient) -> None:
    answer = client.get("/images", headers={"host": "example.org"})
    assert answer.status_code == 400
    assert "dark" not in answer.text
    assert client.post("/images").status_code == 405
    assert client.get("/privacy.json").status_code == 404


def test_only_what_the_release_holds_is_offered(finished_copy: RunConfig) -> None:
    offered = TestClient(application(release(finished_copy, "model"), ["testserver"]))
    assert str(offered.get("/").url).endswith("/draw")
    assert offered.get("/images").status_code == 404
    assert offered.get("/report").status_code == 404
    assert "Full report" not in offered.get("/draw").text


def test_a_release_that_was_changed_is_not_shown(finished_copy: RunConfig) -> None:
    target = release(finished_copy)
    (target / "synthetic.npz").write_bytes(b"")
    with pytest.raises(UserError, match="is not what it says"):
        application(target, ["127.0.0.1"])


def test_class_names_are_text(finished: RunConfig, tmp_path: Path) -> None:
    texts = hostile_texts()[:30]
    statement = privacy_statement(finished)
    statement["declared_constants"]["labels"] = texts
    np.savez(tmp_path / "x.npz", x=np.zeros((30, 4, 4, 1), np.uint8), y=np.arange(30))
    shelf = Released(tmp_path / "x.npz", texts)
    pages = Pages(statement, [shelf], full_report=False)
    page = "".join(pages._text(shelf, shelf.asked(), shelf.rows(shelf.asked()), ""))
    assert pictures(page) == 30
    assert not re.search(r"<(script|iframe|svg|base|object|embed|meta http-equiv=refresh)", page)


@pytest.mark.parametrize(("host", "open_"), [("127.0.0.1", False), ("localhost", False), ("::1", False)])
def test_this_machine_is_told_from_others(host: str, open_: bool) -> None:
    assert is_open(host) is open_
    assert is_open("0.0.0.0")
    assert is_open("192.168.1.5")
    assert is_open("my-machine")


def test_it_is_served_until_it_is_interrupted(both: Path) -> None:
    code = "import sys; from dpldm.cli import main; sys.exit(main())"
    words = [sys.executable, "-c", code, "app", str(both), "--port", "0"]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "checking the release\n"
        address = process.stdout.readline().split()[0]
        host, _, port = address.removeprefix("http://").rstrip("/").partition(":")
        assert host == "127.0.0.1"
        with socket.create_connection((host, int(port)), 10) as line:
            line.sendall(f"GET /draw HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
            assert b" 200 OK" in line.recv(100)
        process.send_signal(signal.SIGINT)
        _, complaints = process.communicate(timeout=20)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0
    assert complaints == ""


def test_an_address_that_is_taken_is_refused_in_one_sentence(both: Path, capsys: Capture) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert main(["app", str(both), "--port", str(taken.getsockname()[1])]) == 2
    assert re.fullmatch(r"dpldm: Nothing can be served at [^\n]+\.\n", capsys.readouterr().err)
    assert main(["app", str(both), "--port", "-1"]) == 2
    assert main(["app", str(both), "--port", "99999"]) == 2


def test_other_addresses_are_warned_of(both: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[str] = []
    monkeypatch.setattr("dpldm.app.server.serve", lambda release, host, port, say: called.append(host))
    assert main(["app", str(both), "--host", "0.0.0.0"]) == 0
    assert "whoever reaches this machine sees the page" in capsys.readouterr().err
    assert main(["app", str(both)]) == 0
    assert capsys.readouterr().err == ""
    assert called == ["0.0.0.0", "127.0.0.1"]
