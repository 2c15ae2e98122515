"""Continuous batching: one thread writes all texts together, token by token; a new text joins at the next token.

    engine = Engine(model, tokenizer)
    engine.submit(Request(prompt=[1, 2, 3], max_new_tokens=20, sink=print))

Orca (Yu et al. 2022, OSDI) introduced the idea as iteration-level scheduling. A prompt is read in parts, between which
the other texts get their next tokens. Each row has its own sampling settings, random generator and ends, so that a
text does not depend on its neighbours, except by rounding.
"""

import threading
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from gpt.generation import Sampling, sample_token, seen_tokens
from gpt.model import KVCache
from gpt.serve.slots import Slots
from gpt.text.streams import TextStream
from gpt.tokenizer import Tokenizer

PART_TOKENS = 256  # of a prompt, read between two steps of the other texts
NOT_FINITE = "the model's logits are not finite: its weights have diverged"


class BusyError(Exception):
    """Raised by `Engine.submit` if too many requests wait."""


class ScoredToken(NamedTuple):
    """A token and its natural log-probability, None for the first token of a prompt, and the likeliest in its place."""

    id: int
    logprob: float | None
    likeliest: list[tuple[int, float]]


class Piece(NamedTuple):
    """Text that a row has written, and its tokens if the request asks for scores: of those that end it, no text."""

    text: str
    tokens: list[ScoredToken]


class End(NamedTuple):
    """The end of a row: "stop" at a token or string that ends it, "length" if it is cut; tokens written by the row."""

    reason: str
    n_tokens: int


class Failure(NamedTuple):
    """The end of a row by an error, in words."""

    message: str


Event = list[ScoredToken] | Piece | End | Failure  # the list: the scored prompt


@dataclass(eq=False)
class Request:
    """A prompt to continue n times. `sink(row, event)` is called from the engine's thread; it must not block.

    Row i has the seed `seed` + i. n_likeliest: None for no log-probabilities, otherwise the number of likeliest
    tokens reported at each position. With `echo` the first event of each row is the prompt, scored if they are wanted.
    """

    prompt: list[int]
    max_new_tokens: int
    sink: Callable[[int, Event], None]
    sampling: Sampling = field(default_factory=Sampling)
    seed: int = 0
    n: int = 1
    stop_ids: Collection[int | None] = ()
    stops: Sequence[str] = ()
    n_likeliest: int | None = None
    echo: bool = False
    cancelled: bool = False  # set by whoever no longer wants it: its rows end without an event


class _Row:
    """A text that is being written."""

    def __init__(self, request: Request, number: int, tokenizer: Tokenizer, seen: Tensor | None, device: torch.device):
        self.request, self.number, self.seen = request, number, seen  # (1, V) or None
        self.generator = torch.Generator(device).manual_seed(request.seed + number)
        self.stream = TextStream(tokenizer, request.stops)
        self.n_tokens = self.n_characters = 0  # written; characters with those that are held back
        self.n_sent = 0  # characters
        self.pending: list[tuple[int, ScoredToken]] = []  # tokens whose text is not sent yet, with where it begins

    def write(self, token: int, scored: ScoredToken | None) -> bool:
        """Append a token, send what is certain, and return whether the text has ended."""
        request = self.request
        self.n_tokens += 1
        if scored:
            self.pending.append((self.n_characters, scored))
        if token in request.stop_ids:
            self._send(self.stream.finish())
            return self._end("stop")
        text = self.stream.push(token)
        self.n_characters = self.n_sent + len(text) + len(self.stream.held)
        self._send(text)
        if self.stream.stopped:
            return self._end("stop")
        if self.n_tokens == request.max_new_tokens:
            self._send(self.stream.finish())
            return self._end("stop" if self.stream.stopped else "length")
        return False

    def _send(self, text: str) -> None:
        """Send text, with the tokens that begin in it; those after the beginning of a stop string are never sent."""
        self.n_sent += len(text)
        is_certain = not self.stream.held and not self.stream.stopped
        ready = [scored for start, scored in self.pending if is_certain or start < self.n_sent]
        self.pending = self.pending[len(ready) :]
        if text or ready:
            self.request.sink(self.number, Piece(text, ready))

    def _end(self, reason: str) -> bool:
        self.request.sink(self.number, End(reason, self.n_tokens))
        return True


@dataclass(eq=False)
class _Reading:
    """A prompt that is being read."""

    request: Request
    cache: KVCache
    scores: list[ScoredToken]


class Engine:
    """The thread that owns a model, and the queue before it.

    `thread` should be the one that has loaded the model: a second thread that computes has its own OpenMP pool, and
    with more pool threads than cores each of them sleeps between two operations, which halves the speed.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Tokenizer,
        max_rows: int = 16,
        max_waiting: int = 64,
        thread: ThreadPoolExecutor | None = None,
    ):
        if model.config.backbone != "gpt":
            raise ValueError("an LSTM reads no padded batches: scripts/chat.py talks to it")
        self.model, self.tokenizer = model.eval(), tokenizer
        self.max_rows, self.max_waiting = max_rows, max_waiting
        self.n_steps = self.n_tokens = 0  # done so far
        self._waiting: deque[Request] = deque()
        self._calls: deque[tuple[Callable[[], Any], Future]] = deque()
        self._reading: _Reading | None = None
        self._rows: list[_Row] = []
        self._last: list[int] = []  # the last token of each row
        self._slots = Slots(model, max_rows)
        self._closed, self._condition = False, threading.Condition()
        self._ended = (thread or ThreadPoolExecutor(1, "engine")).submit(self._run)

    # --- from other threads -------------------------------------------------------------------------------------------

    def submit(self, *requests: Request) -> None:
        """Queue requests, all or none. BusyError if the queue is full, ValueError for more rows than fit at once."""
        if any(request.n > self.max_rows for request in requests):
            raise ValueError(f"n must be at most {self.max_rows}, the texts that are written together")
        if len(requests) > self.max_waiting:
            raise ValueError(f"there must be at most {self.max_waiting} prompts, as many as may wait")
        with self._condition:
            self._waiting = deque(request for request in self._waiting if not request.cancelled)
            if self._closed or len(self._waiting) + len(requests) > self.max_waiting:
                raise BusyError
            self._waiting.extend(requests)
            self._condition.notify()

    def call(self, function: Callable[[], Any]) -> Future:
        """Run a function of the model between two steps; BusyError if too many wait. Return its future result."""
        future: Future = Future()
        with self._condition:
            if self._closed or len(self._calls) >= self.max_waiting:
                raise BusyError
            self._calls.append((function, future))
            self._condition.notify()
        return future

    def close(self) -> None:
        """End all texts with a Failure, and the thread."""
        with self._condition:
            self._closed = True
            self._condition.notify()
        self._ended.result()

    # --- the engine's thread ------------------------------------------------------------------------------------------

    @torch.no_grad()
    def _run(self) -> None:
        while self._wait():
            try:
                self._call()
                self._read()
                self._step()
            except Exception as error:  # such as no memory left: these texts end, the engine does not
                self._fail_all(_in_words(error))
        self._fail_all("the server is shutting down")

    def _wait(self) -> bool:
        """Wait for something to do; return whether the engine is open."""
        with self._condition:
            while not (self._closed or self._waiting or self._calls or self._reading or self._rows):
                self._condition.wait()
            return not self._closed

    def _call(self) -> None:
        """Run one function: the texts get their next tokens before another."""
        if self._calls:
            function, future = self._calls.popleft()
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(function())
                except Exception as error:  # the caller's
                    future.set_exception(error)

    def _read(self) -> None:
        """Read a part of a long prompt, or several short prompts, of at most PART_TOKENS tokens in all."""
        room = PART_TOKENS
        while room > 0:
            if self._reading is None:
                with self._condition:
                    while self._waiting and self._waiting[0].cancelled:
                        self._waiting.popleft()
                    if not self._waiting or len(self._rows) + self._waiting[0].n > self.max_rows:
                        return
                    request = self._waiting.popleft()
                cache = KVCache(self.model.config.n_layers, len(request.prompt))
                is_scored = request.echo and request.n_likeliest is not None
                scored = [ScoredToken(request.prompt[0], None, [])] if is_scored else []
                self._reading = _Reading(request, cache, scored)
            reading = self._reading
            try:
                room -= self._read_part(reading, room)
            except Exception as error:
                self._reading, reading.request.cancelled = None, True  # the rows that have begun end too
                self._fail(reading.request, range(reading.request.n), error)

    def _read_part(self, reading: _Reading, room: int) -> int:
        """Read at most `room` tokens of a prompt, and return their number. After the last one its texts begin."""
        request, cache = reading.request, reading.cache
        if request.cancelled:
            self._reading = None
            return 0
        start, device = cache.length, next(self.model.parameters()).device
        part = torch.tensor([request.prompt[start : start + room]], device=device)
        x = self.model.hidden_states(part, cache=cache)  # (1, T, D)
        end = cache.length
        if reading.scores and start + 1 < len(request.prompt):
            targets = request.prompt[start + 1 : end + 1]
            reading.scores += self._score(self.model.out_head(x[0, : len(targets)]), targets, request.n_likeliest)
        if end == len(request.prompt):
            self._reading = None
            self._begin(reading, self.model.out_head(x[:, -1]))
        return end - start

    def _begin(self, reading: _Reading, logits: Tensor) -> None:
        """Begin the texts of a request whose prompt has been read, with the logits (1, V) of their first tokens."""
        request = reading.request
        for number in range(request.n * request.echo):
            request.sink(number, reading.scores)
        if not request.max_new_tokens:
            for number in range(request.n):
                request.sink(number, End("length", 0))
            return
        seen = None
        if request.sampling.repetition_penalty != 1:
            seen = seen_tokens([torch.tensor(request.prompt)], self.model.config.vocab_size).to(logits.device)
        rows = [
            _Row(request, number, self.tokenizer, None if seen is None else seen.clone(), logits.device)
            for number in range(request.n)
        ]
        for row, token in self._write(rows, logits.expand(len(rows), -1)):
            self._slots.join(reading.cache)
            self._rows.append(row)
            self._last.append(token)

    def _step(self) -> None:
        """Write the next token of each text."""
        for number in reversed(range(len(self._rows))):
            if self._rows[number].request.cancelled:
                self._remove(number)
        if not self._rows:
            return
        device = next(self.model.parameters()).device
        logits = self._slots.step(torch.tensor(self._last, device=device))  # (B, V)
        self.n_steps += 1
        unfinished = dict(self._write(self._rows, logits))
        for number in reversed(range(len(self._rows))):
            if self._rows[number] in unfinished:
                self._last[number] = unfinished[self._rows[number]]
            else:
                self._remove(number)

    def _remove(self, number: int) -> None:
        """Remove a row; the last one takes its place, as in the slots."""
        self._slots.leave(number)
        self._rows[number], self._last[number] = self._rows[-1], self._last[-1]
        self._rows.pop()
        self._last.pop()

    def _write(self, rows: list[_Row], logits: Tensor) -> Iterator[tuple[_Row, int]]:
        """Choose and write a token of each row by logits (B, V); yield the rows that have not ended, each with it."""
        finite = logits.amax(-1).isfinite().tolist()
        tokens: dict[int, int] = {}
        for number, row in enumerate(rows):
            if finite[number] and number not in tokens:  # with all rows of the same settings
                group = [
                    n
                    for n in range(number, len(rows))
                    if finite[n] and rows[n].request.sampling == row.request.sampling and n not in tokens
                ]
                seen = None if row.seen is None else torch.cat([rows[n].seen for n in group])
                generators = [rows[n].generator for n in group]
                chosen = sample_token(logits[group], row.request.sampling, seen, generators)
                tokens |= zip(group, chosen.tolist(), strict=True)
        self.n_tokens += len(tokens)
        for number, row in enumerate(rows):
            if number not in tokens:
                self._fail(row.request, [row.number], FloatingPointError(NOT_FINITE))
                continue
            token, k, scored = tokens[number], row.request.n_likeliest, None
            if row.seen is not None:
                row.seen[0, token] = True
            if k is not None:
                (scored,) = self._score(logits[number : number + 1], [token], k)
            if not row.write(token, scored):
                yield row, token

    def _score(self, logits: Tensor, tokens: list[int], k: int) -> list[ScoredToken]:
        """Return tokens with their log-probabilities and those of the k likeliest, for logits (T, V)."""
        logprobs = logits.float().log_softmax(-1)
        if not logprobs.amax(-1).isfinite().all():
            raise FloatingPointError(NOT_FINITE)
        own = logprobs.gather(1, torch.tensor(tokens, device=logits.device)[:, None])[:, 0].tolist()
        values, ids = (found.tolist() for found in logprobs.topk(min(k, logits.size(1))))
        likeliest = [list(zip(*row, strict=True)) for row in zip(ids, values, strict=True)]
        return [ScoredToken(*scored) for scored in zip(tokens, own, likeliest, strict=True)]

    def _fail(self, request: Request, numbers: Collection[int], error: Exception) -> None:
        for number in numbers:
            request.sink(number, Failure(_in_words(error)))

    def _fail_all(self, message: str) -> None:
        """End every text that is being written; once closed, those that wait too."""
        for row in self._rows:
            row.request.sink(row.number, Failure(message))
        self._rows, self._last, self._slots = [], [], Slots(self.model, self.max_rows)
        if self._closed:
            reading = [self._reading.request] if self._reading else []
            for request in (*reading, *self._waiting):
                for number in range(request.n):
                    request.sink(number, Failure(message))
            self._waiting.clear()
            for _, future in self._calls:
                future.cancel()


def _in_words(error: Exception) -> str:
    text = str(error).splitlines()
    return text[0] if text else type(error).__name__
