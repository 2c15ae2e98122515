"""Who is let in: hosts, origins, keys, sizes, and the door scripts/serve.py."""

import concurrent.futures
import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
from runs import change, train
from served import running, tiny

from gpt.run import generate as generating
from gpt.serve import guard as guards
from scripts import run_script

PROJECT = Path(__file__).parent.parent.parent
PROMPT = {"prompt": "a", "max_tokens": 2}


@pytest.fixture(scope="module")
def url():
    with running(tiny(), {"hosts": (*guards.LOOPBACK, "my-pc")}) as (_, url):
        yield url


@pytest.mark.parametrize(
    "host, status",
    [("127.0.0.1:1", 200), ("localhost", 200), ("[::1]:8000", 200), ("my-pc:80", 200), ("evil.example", 403),
     ("evil.example:8000", 403), ("127.0.0.1.evil.example", 403), ("evil@127.0.0.1.nip.io", 403), ("", 403),
     ("[", 403)],
)  # fmt: skip
def test_a_name_that_is_not_this_machines_is_refused(url, host, status):
    """DNS rebinding: the browser believes that it talks to a site of the attacker's."""
    answer = httpx.get(f"{url}/v1/models", headers={"Host": host})
    assert answer.status_code == status
    if status == 403:
        assert answer.json()["error"]["type"] == "permission_error"


@pytest.mark.parametrize(
    "path", ["/", "/v1/models", "/v1/completions", "/playground/model", "/health", "/openapi.json"]
)
def test_pages_of_other_sites_are_refused(url, path):
    post = path == "/v1/completions"

    def status(origin):
        headers = {"Origin": origin, "Content-Type": "text/plain"}  # which a page may send without asking
        return httpx.request("POST" if post else "GET", url + path, headers=headers, json=PROMPT if post else None)

    for origin in (
        "https://evil.example",
        "null",
        "http://[",
        "http://localhost:1",
        url.replace("127.0.0.1", "127.0.0.2"),
    ):
        assert status(origin).status_code == 403, origin
        assert "access-control-allow-origin" not in status(origin).headers
    assert status(url).status_code == 200
    assert httpx.options(url + path, headers={"Origin": "https://evil.example"}).status_code == 403


def test_a_key_is_needed_for_all_but_the_page():
    with running(tiny(), {"hosts": (), "api_key": "söcret"}) as (_, url):
        key = {"Authorization": "Bearer söcret".encode()}
        for path in ("/v1/models", "/openapi.json", "/playground/model", "/v1/models/../models", "/v1/nothing"):
            for wrong in (
                {},
                {"Authorization": "Bearer x"},
                {"Authorization": "söcret".encode()},
                {"X": "söcret".encode()},
            ):
                answer = httpx.get(url + path, headers=wrong)
                right = wrong.get("Authorization") == "söcret".encode()  # without "Bearer", as some clients send it
                assert answer.status_code == 401 or right, (path, wrong)
        assert httpx.get(f"{url}/v1/models", headers=key).status_code == 200
        assert httpx.get(f"{url}/v1/models", headers={**key, "Host": "any.name"}).status_code == 200
        assert httpx.get(f"{url}/").status_code == httpx.get(f"{url}/health").status_code == 200
        assert httpx.get(f"{url}/v1/models").headers["www-authenticate"] == "Bearer"


def test_bodies_that_are_too_large_are_refused_unread(url):
    ten = 10 * 2**20
    for content in (b"x" * ten, (b"x" * 2**16 for _ in range(160))):  # with its length, and in chunks
        with contextlib.suppress(httpx.WriteError, httpx.ReadError):  # the server closes while the client still writes
            answer = httpx.post(f"{url}/v1/completions", content=content)
            assert answer.status_code == 413
            assert "larger than 1,048,576 bytes" in answer.text
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as raw:
        raw.sendall(f"POST /v1/completions HTTP/1.1\r\nHost: {host}\r\nContent-Length: {ten}\r\n\r\n".encode())
        assert b"413" in raw.recv(2**16).split(b"\r\n")[0], "before any of it was sent"
    fits = json.dumps(PROMPT | {"user": "x" * (2**20 - 100)})
    assert httpx.post(f"{url}/v1/completions", content=fits).status_code == 200


def test_a_body_that_does_not_come_is_given_up(url, monkeypatch):
    monkeypatch.setattr(guards, "BODY_SECONDS", 0.2)
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as raw:
        raw.sendall(f"POST /v1/completions HTTP/1.1\r\nHost: {host}\r\nContent-Length: 50\r\n\r\n{{".encode())
        assert b"408" in raw.recv(2**16).split(b"\r\n")[0]


def test_random_bytes_harm_nothing(url):
    host, port = url.removeprefix("http://").split(":")
    for n in range(20):
        with socket.create_connection((host, int(port)), timeout=20) as raw, contextlib.suppress(OSError):
            raw.sendall(os.urandom(50 * n))
    for body in (b"\xff\xfe", b"[" * 5000, b'{"prompt": "\\ud800"}', b"null", b'{"prompt": 1e999}', b""):
        assert httpx.post(f"{url}/v1/completions", content=body).status_code == 400
    assert httpx.post(f"{url}/v1/completions", json=PROMPT).status_code == 200


def test_no_path_leads_to_a_file(url):
    for path in ("/../../etc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "/assets/playground.js",
                 "/v1/models/..%2f..%2fREADME.md", "//etc/passwd", "/README.md"):  # fmt: skip
        assert httpx.get(url + path).status_code == 404
    answer = httpx.post(f"{url}/v1/completions", json=PROMPT | {"model": "../../README.md"})
    assert answer.status_code == 404


def test_a_full_queue_is_429(monkeypatch):
    with running(tiny(), rows=1, queue=1) as (service, url):
        service.engine.call(lambda: time.sleep(1.5))
        with httpx.Client(base_url=url, timeout=20) as client, concurrent.futures.ThreadPoolExecutor(8) as pool:
            found = [*pool.map(lambda _: client.post("/v1/completions", json=PROMPT), range(8))]
    refused = [answer for answer in found if answer.status_code == 429]
    assert len(refused) >= 6 and {answer.status_code for answer in found} == {200, 429}
    assert refused[0].headers["retry-after"] == "1"
    assert refused[0].json()["error"]["type"] == "rate_limit_error"


def test_a_client_that_goes_away_frees_its_row():
    with running(tiny(context_length=4096), rows=1) as (service, url):
        for stream in (True, False):
            given = {"prompt": "a", "max_tokens": 4000, "stream": stream, "logit_bias": {"32": -1000}}
            with httpx.Client(base_url=url) as client:
                if stream:
                    with client.stream("POST", "/v1/completions", json=given) as answer:
                        next(answer.iter_lines())
                else:
                    with pytest.raises(httpx.ReadTimeout):
                        client.post("/v1/completions", json=given, timeout=0.3)
            start = time.monotonic()
            assert httpx.post(f"{url}/v1/completions", json=PROMPT, timeout=20).status_code == 200
            assert time.monotonic() - start < 2
        assert service.engine.n_tokens < 6000, "neither was written to its end"


# --- the door ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def loaded(monkeypatch):
    monkeypatch.setattr(generating, "open_model", lambda *names: tiny())


@pytest.mark.parametrize(
    "options, words",
    [
        ("--host 0.0.0.0", "--host 0.0.0.0 lets other machines in: add --api-key KEY"),
        ("--rows 0", "--rows must be at least 1, not 0"),
        ("--run a", "name either a run (--run NAME) or published weights (--pretrained NAME)"),
        ("--port 99999", "--port must be 0 to 65535, not 99999"),
        ("--host nowhere.invalid --api-key x", "cannot listen on nowhere.invalid:8000"),
    ],
)
def test_mistakes(loaded, capsys, options, words):
    assert run_script(f"serve --pretrained it --device cpu {options}") == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize("missing", ["pydantic", "starlette", "uvicorn"])
def test_the_extra_is_named_where_it_is_missing(monkeypatch, capsys, missing):
    for name in [name for name in sys.modules if name.startswith("gpt.serve") or name.split(".")[0] == missing]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, missing, None)
    assert run_script("serve --pretrained it --device cpu") == 2
    words = 'serve.py: error: serving a model needs uvicorn, starlette, pydantic: pip install -e ".[serve]"'
    assert words in capsys.readouterr().err


def test_a_port_that_is_taken_is_named(loaded, capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert run_script(f"serve --pretrained it --device cpu --port {port}") == 2
    assert f"cannot listen on 127.0.0.1:{port} (Address already in use): name another --port" in capsys.readouterr().err


def test_a_model_that_fills_in_blanks_is_not_served(monkeypatch, capsys):
    found = tiny()
    found.objective.__class__ = type("Blanks", (type(found.objective),), {"continues_prompts": False})
    monkeypatch.setattr(generating, "open_model", lambda *names: found)
    assert run_script("serve --pretrained it --device cpu --port 0") == 2
    assert "a model does not continue a text" in capsys.readouterr().err


@pytest.mark.slow
def test_it_serves_until_ctrl_c(tmp_path, tiny_config):
    """As a program of its own."""
    train(change(tiny_config, max_steps=1), tmp_path / "small")
    command = [sys.executable, PROJECT / "scripts" / "serve.py", "--run", tmp_path / "small", "--port", "0"]
    env = os.environ | {"PYTHONPATH": str(PROJECT)}
    # a shell's background jobs ignore SIGINT, and so would the server
    heed = None if os.name == "nt" else lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=env, preexec_fn=heed) as server:
        lines = []
        while not (lines and lines[-1].startswith("API")):
            lines.append(server.stderr.readline())
            assert lines[-1], lines
        url = re.search(r"http://127.0.0.1:\d+", lines[-1])[0]
        answer = httpx.post(f"{url}/v1/completions", json={"prompt": "a", "max_tokens": 3}, timeout=60).json()
        assert answer["usage"]["total_tokens"] >= 4 and answer["model"] == "small"
        assert httpx.get(url).headers["content-type"].startswith("text/html")
        start = time.monotonic()
        server.send_signal(signal.SIGINT)
        assert server.wait(timeout=20) == 130
        assert time.monotonic() - start < 8
        assert "Traceback" not in server.stderr.read()
