"""A served model under load: tokens per second with 1, 4 and 16 clients; then many clients that do not behave.

    python benchmarks/serving.py --pretrained smollm2
    python benchmarks/serving.py --run tales-001 --seconds 300
    python benchmarks/serving.py --pretrained smollm2 --quick

It starts scripts/serve.py as a program of its own. Under load, of 64 clients at once most read their answers, whole or
as a stream; a tenth leaves in the middle, others send bodies of 10 MB, read slowly, or send random bytes. Every greedy
answer must be the one that the model gave when nobody else asked; one that leaves it at a token about as likely as
another one, where rounding decides, is counted apart. The memory of the server must not grow.

Exit status 1 if an answer is wrong, the server fails, or its memory grows by more than 2%.
"""

import argparse
import asyncio
import json
import os
import random
import re
import statistics
import subprocess
import sys
import time
from collections import Counter
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import psutil

from gpt.system.device import machine

PROJECT = Path(__file__).parent.parent
PROMPTS = [
    f"{start} {name}" for start in ("Once there was", "Long ago", "In a town") for name in ("Mina", "a cat", "Tom")
]
ROWS, CLIENTS, NEAR_TIE = 16, 64, 1e-3  # nats between two tokens
LENGTH = 48  # tokens of an answer


@contextmanager
def server(options: list[str]):
    """Start scripts/serve.py on a free port; yield its address and its process."""
    command = [sys.executable, PROJECT / "scripts" / "serve.py", *options, "--port", "0", "--rows", str(ROWS)]
    env = os.environ | {"PYTHONPATH": str(PROJECT)}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=env) as process:
        for line in process.stderr:
            if found := re.search(r"^API +(http://[^/]+)", line):
                break
        try:
            yield found[1], psutil.Process(process.pid)
        finally:
            process.terminate()


def body(prompt: str, **settings) -> dict:
    """Return a greedy request with the log-probabilities of the two likeliest tokens."""
    return {"prompt": prompt, "temperature": 0, "max_tokens": LENGTH, "logprobs": 2, **settings}


async def speed(url: str, clients: int, n_tokens: int) -> float:
    """Return tokens per second of some clients, each of which gets n_tokens for a short prompt."""
    async with httpx.AsyncClient(base_url=url, timeout=600) as http:
        model = (await http.get("/playground/model")).json()
        ends = {str(model["eot_id"]): -1000} if model["eot_id"] is not None else {}

        async def ask(prompt: str) -> int:
            given = {"prompt": prompt, "max_tokens": n_tokens, "logit_bias": ends, "seed": 1}
            return (await http.post("/v1/completions", json=given)).json()["usage"]["completion_tokens"]

        await ask(PROMPTS[0])  # warm
        start = time.perf_counter()
        written = await asyncio.gather(*(ask(PROMPTS[n % len(PROMPTS)]) for n in range(clients)))
        return sum(written) / (time.perf_counter() - start)


class Load:
    """Clients that misbehave in their ways, and what came of it."""

    def __init__(self, url: str, process: psutil.Process, expected: dict[str, dict], until: float):
        self.url, self.process, self.expected, self.until = url, process, expected, until
        self.counts: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.memory: list[int] = []  # bytes, once a second

    async def run(self) -> None:
        """Let all clients work until the time is over."""
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(base_url=self.url, timeout=120, limits=limits) as http:
            await asyncio.gather(self._watch(), *(self._client(http, n) for n in range(CLIENTS)))

    async def _watch(self) -> None:
        while time.monotonic() < self.until:
            self.memory.append(self.process.memory_info().rss)
            await asyncio.sleep(1)

    async def _client(self, http: httpx.AsyncClient, number: int) -> None:
        rng = random.Random(number)
        ways = [self._whole, self._stream, self._whole, self._stream, self._sampled, self._leave, self._slow]
        while time.monotonic() < self.until:
            way = rng.choices([*ways, self._large, self._noise], [*[10] * 5, 6, 2, 1, 1])[0]
            try:
                await way(http, rng)
                self.counts[way.__name__.strip("_")] += 1
            except (httpx.HTTPError, OSError) as error:
                self.counts[f"broken by {type(error).__name__}"] += 1

    def _check(self, prompt: str, text: str) -> None:
        wanted = self.expected[prompt]
        if text == wanted["text"]:
            return
        scores, pairs = wanted["logprobs"], zip(text, wanted["text"], strict=False)
        position = next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(text), len(wanted["text"])))
        place = max(n for n, offset in enumerate(scores["text_offset"]) if offset <= position)
        first, second, *_ = sorted(scores["top_logprobs"][place].values(), reverse=True)
        if first - second < NEAR_TIE:
            self.counts["near ties"] += 1
        else:
            self.wrong.append(f"{prompt!r}: {text!r} in place of {wanted['text']!r}")

    async def _whole(self, http: httpx.AsyncClient, rng: random.Random) -> None:
        prompt = rng.choice(PROMPTS)
        answer = await http.post("/v1/completions", json=body(prompt, logprobs=rng.choice([None, 2])))
        if self._answered(answer.status_code):
            self._check(prompt, answer.json()["choices"][0]["text"])

    async def _stream(self, http: httpx.AsyncClient, rng: random.Random, pause: float = 0.0) -> None:
        prompt, text = rng.choice(PROMPTS), ""
        async with http.stream("POST", "/v1/completions", json=body(prompt, stream=True)) as answer:
            if not self._answered(answer.status_code):
                return
            async for line in answer.aiter_lines():
                if line.startswith("data: {"):
                    text += json.loads(line.removeprefix("data: "))["choices"][0]["text"]
                    await asyncio.sleep(pause)
        self._check(prompt, text)

    async def _slow(self, http: httpx.AsyncClient, rng: random.Random) -> None:
        await self._stream(http, rng, pause=0.2)

    async def _sampled(self, http: httpx.AsyncClient, rng: random.Random) -> None:
        given = {"prompt": rng.choice(PROMPTS), "n": 2, "seed": rng.randrange(99), "max_tokens": 20, "top_p": 0.9}
        answer = await http.post("/v1/completions", json=given)
        if self._answered(answer.status_code):
            assert len(answer.json()["choices"]) == 2

    async def _leave(self, http: httpx.AsyncClient, rng: random.Random) -> None:
        if rng.random() < 0.5:
            with suppress(httpx.ReadTimeout):
                await http.post("/v1/completions", json=body(PROMPTS[0], max_tokens=150), timeout=rng.random())
            return
        given = body(PROMPTS[0], stream=True, max_tokens=150)
        async with http.stream("POST", "/v1/completions", json=given) as answer:
            if self._answered(answer.status_code):
                async for _ in answer.aiter_lines():
                    if rng.random() < 0.1:
                        return

    async def _large(self, http: httpx.AsyncClient, rng: random.Random) -> None:
        with suppress(httpx.WriteError, httpx.ReadError, httpx.RemoteProtocolError):  # it is closed in the middle
            answer = await http.post("/v1/completions", content=b"x" * 10 * 2**20)
            assert answer.status_code == 413

    async def _noise(self, http: httpx.AsyncClient, rng: random.Random) -> None:
        host, port = self.url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        with suppress(OSError):
            writer.write(rng.randbytes(rng.randrange(1, 5000)))
            await writer.drain()
            await asyncio.wait_for(reader.read(100), 1)
        writer.close()
        assert (await http.post("/v1/completions", content=rng.randbytes(300))).status_code == 400

    def _answered(self, status: int) -> bool:
        self.counts[f"status {status}"] += 1
        assert status in (200, 429), status
        return status == 200

    @property
    def growth(self) -> float:
        """How much the memory grew from the second fifth of the time to the last one, by their medians."""
        n = max(1, len(self.memory) // 5)
        return statistics.median(self.memory[-n:]) / statistics.median(self.memory[n : 2 * n] or self.memory) - 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", help="a run to serve")
    parser.add_argument("--pretrained", help="or published weights, such as smollm2")
    parser.add_argument("--seconds", type=float, default=300, help="of load (default: 300)")
    parser.add_argument("--quick", action="store_true", help="a few seconds of each, to see that it works")
    arguments = parser.parse_args()
    options = ["--run", arguments.run] if arguments.run else ["--pretrained", arguments.pretrained or "smollm2"]
    seconds, n_tokens = (10, 8) if arguments.quick else (arguments.seconds, 128)
    with server(options) as (url, process):
        print(f"{options[1]} on {machine()['cpu']}, {machine()['threads']} threads")
        for clients in (1, 4, 16):
            print(f"{clients:3} clients  {asyncio.run(speed(url, clients, n_tokens)):8.1f} tokens/s")
        with httpx.Client(base_url=url, timeout=120) as http:
            expected = {p: http.post("/v1/completions", json=body(p)).json()["choices"][0] for p in PROMPTS}
            load = Load(url, process, expected, time.monotonic() + seconds)
            asyncio.run(load.run())
            alive = http.get("/health").status_code == 200 and http.post("/v1/completions", json={"prompt": "a"})
        print(f"{CLIENTS} clients for {seconds:.0f} s: {dict(sorted(load.counts.items()))}")
        print(f"memory  {load.memory[0] / 1e6:.0f} MB, at the end {load.memory[-1] / 1e6:.0f} MB: {load.growth:+.1%}")
    for line in load.wrong[:5]:
        print(f"wrong   {line}")
    # in a few seconds memory has not settled yet
    return 1 if load.wrong or not alive or (load.growth > 0.02 and not arguments.quick) else 0


if __name__ == "__main__":
    sys.exit(main())
