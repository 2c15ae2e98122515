"""Texts of the engine as the objects of OpenAI's API: whole or in chunks, with log-probabilities and counts."""

import codecs
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

from gpt.serve.engine import End, Event, Piece, ScoredToken
from gpt.serve.protocol import ApiError, ChatBody, CompletionBody
from gpt.serve.service import Service, Ticket
from gpt.text.chat import stop_ids
from gpt.tokenizer import Tokenizer

DEFAULT_TOKENS = 16  # of a completion, as in OpenAI's API


class Answer:
    """How the events of a request become OpenAI's objects; a subclass for each kind of request."""

    kind = chunk_kind = ""

    def __init__(self, service: Service, prefix: str, body: CompletionBody | ChatBody):
        self.service, self.body, self.stream = service, body, bool(body.stream)
        self.include_usage = bool(body.stream_options and body.stream_options.include_usage)
        self.id, self.created = f"{prefix}-{secrets.token_hex(12)}", int(time.time())
        self.n_prompt = self.n_written = 0

    def envelope(self, kind: str, choices: list[dict]) -> dict[str, Any]:
        """Return an object of this answer with some choices."""
        found = {"id": self.id, "object": kind, "created": self.created, "model": self.service.name, "choices": choices}
        return found | ({"usage": None} if self.stream and self.include_usage else {})

    def begin(self, choice: int) -> dict | None:
        """Return what a stream sends before the first text of a choice, if anything."""

    def part(self, choice: int, event: Event) -> dict | None:
        """Return an event as a choice of a chunk, or None if it says nothing."""
        raise NotImplementedError

    def whole(self, parts: list[dict]) -> dict:
        """Return one choice from all its parts."""
        raise NotImplementedError

    async def chunks(self, ticket: Ticket) -> AsyncIterator[dict]:
        """Yield the objects of a stream."""
        begun: set[int] = set()
        async for choice, event in ticket.events():
            if choice not in begun and (first := self.begin(choice)):
                yield self.envelope(self.chunk_kind, [first])
            begun.add(choice)
            if isinstance(event, End):
                self.n_written += event.n_tokens
            if part := self.part(choice, event):
                yield self.envelope(self.chunk_kind, [part])
        if self.include_usage:
            yield self.envelope(self.chunk_kind, []) | {"usage": usage(self.n_prompt, self.n_written)}

    async def all(self, ticket: Ticket) -> dict[str, Any]:
        """Return the object of a whole answer."""
        parts: dict[int, list[dict]] = {}
        async for choice, event in ticket.events():
            if isinstance(event, End):
                self.n_written += event.n_tokens
            if part := self.part(choice, event):
                parts.setdefault(choice, []).append(part)
        choices = [self.whole(parts[choice]) for choice in sorted(parts)]
        return self.envelope(self.kind, choices) | {"usage": usage(self.n_prompt, self.n_written)}


class CompletionAnswer(Answer):
    """Text completions."""

    kind = chunk_kind = "text_completion"

    def __init__(self, service: Service, body: CompletionBody):
        super().__init__(service, "cmpl", body)
        self.prompts: list[tuple[str, int]] = []  # the text, and how many tokens come before it
        self.logprobs: dict[int, CompletionLogprobs] = {}

    def add_to(self, ticket: Ticket) -> None:
        """Add a request for each prompt. ApiError 400 for a prompt that the model cannot read."""
        body, service = self.body, self.service
        for prompt in body.prompts:
            if isinstance(prompt, str):
                (ids, n_start), text = service.encode(prompt), prompt
            else:
                ids, n_start, text = prompt, 0, ""
                try:
                    text = service.tokenizer.decode(ids)
                except ValueError as error:
                    raise ApiError(400, f"prompt: {error}", param="prompt") from None
            self.n_prompt += len(ids)
            self.prompts.append((text, n_start))
            ticket.add(
                prompt=ids,
                max_new_tokens=service.room(ids, body.max_tokens, DEFAULT_TOKENS),
                sampling=body.sampling(),
                seed=_seed(body.seed),
                n=body.n or 1,
                stop_ids={service.tokenizer.eot_id, *(body.stop_token_ids or ())},
                stops=body.stops,
                n_likeliest=body.logprobs,
                echo=bool(body.echo),
            )

    def part(self, choice: int, event: Event) -> dict | None:
        """See `Answer.part`. With echo the prompt comes first; its scores come with the first of its texts."""
        text, scored, reason = "", [], None
        prompt, n_start = self.prompts[choice // (self.body.n or 1)]
        if isinstance(event, list):  # the prompt
            text, scored = prompt, event[n_start:]
        elif isinstance(event, Piece):
            text, scored = event.text, event.tokens
        else:
            reason = event.reason
        logprobs = None
        if self.body.logprobs is not None:
            writer = self.logprobs.setdefault(choice, CompletionLogprobs(self.service.tokenizer))
            logprobs = writer.lists(scored)
        return {"text": text, "index": choice, "logprobs": logprobs, "finish_reason": reason}

    def whole(self, parts: list[dict]) -> dict:
        """See `Answer.whole`."""
        logprobs = None
        if self.body.logprobs is not None:
            names = parts[0]["logprobs"]
            logprobs = {name: [x for part in parts for x in part["logprobs"][name]] for name in names}
        return parts[-1] | {"text": "".join(part["text"] for part in parts), "logprobs": logprobs}


class ChatAnswer(Answer):
    """Chat completions."""

    kind, chunk_kind = "chat.completion", "chat.completion.chunk"

    def __init__(self, service: Service, body: ChatBody):
        super().__init__(service, "chatcmpl", body)
        self.ends = stop_ids(service.tokenizer)

    def add_to(self, ticket: Ticket) -> None:
        """Add the request. ApiError 400 without a chat template, or for messages that it refuses."""
        body, service = self.body, self.service
        ids = service.encode_chat(body.messages)
        self.n_prompt = len(ids)
        given = [limit for limit in (body.max_completion_tokens, body.max_tokens) if limit is not None]
        ticket.add(
            prompt=ids,
            max_new_tokens=service.room(ids, min(given, default=None)),
            sampling=body.sampling(),
            seed=_seed(body.seed),
            n=body.n or 1,
            stop_ids=self.ends,
            stops=body.stops,
            n_likeliest=(body.top_logprobs or 0) if body.logprobs else None,
        )

    def begin(self, choice: int) -> dict:
        """See `Answer.begin`."""
        return self._choice(choice, {"role": "assistant", "content": ""}, None, None)

    def part(self, choice: int, event: Event) -> dict:
        """See `Answer.part`."""
        if isinstance(event, End):
            return self._choice(choice, {}, None, event.reason)
        if not self.body.logprobs:
            return self._choice(choice, {"content": event.text}, None, None)
        said = [token for token in event.tokens if token.id not in self.ends]  # not the token that ends the answer
        scored = chat_logprobs(self.service.tokenizer, said)
        return self._choice(choice, {"content": event.text}, scored, None)

    def _choice(self, choice: int, delta: dict, logprobs: dict | None, reason: str | None) -> dict:
        return {"index": choice, "delta": delta, "logprobs": logprobs, "finish_reason": reason}

    def whole(self, parts: list[dict]) -> dict:
        """See `Answer.whole`."""
        text = "".join(part["delta"].get("content", "") for part in parts)
        message = {"role": "assistant", "content": text, "refusal": None}
        logprobs = None
        if self.body.logprobs:
            content = [entry for part in parts if part["logprobs"] for entry in part["logprobs"]["content"]]
            logprobs = {"content": content, "refusal": None}
        last = parts[-1]
        return {
            "index": last["index"],
            "message": message,
            "logprobs": logprobs,
            "finish_reason": last["finish_reason"],
        }


def _seed(seed: int | None) -> int:
    """Return the seed of a request, drawn if it is left out."""
    return secrets.randbits(62) if seed is None else seed % 2**62


# --- log-probabilities ------------------------------------------------------------------------------------------------


def token_text(tokenizer: Tokenizer, token: int) -> str:
    """Return the text of one token; or, for bytes that are no whole character, "bytes:" and their values."""
    raw = tokenizer.decode_bytes([token])
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)


class CompletionLogprobs:
    """Log-probabilities in the form of completions: lists over tokens. `offset` is that of the next token's text."""

    def __init__(self, tokenizer: Tokenizer, offset: int = 0):
        self.tokenizer, self.offset = tokenizer, offset
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def lists(self, scored: Sequence[ScoredToken]) -> dict[str, list]:
        """Return tokens, token_logprobs, top_logprobs and text_offset.

        Additions are the ids, and lists of the likeliest tokens: of two with the same text, top_logprobs keeps one.
        """
        offsets = []
        for token in scored:
            offsets.append(self.offset)
            self.offset += len(self._decoder.decode(self.tokenizer.decode_bytes([token.id])))
        likeliest = [
            None if token.logprob is None else {token_text(self.tokenizer, i): value for i, value in token.likeliest}
            for token in scored
        ]
        return {
            "tokens": [token_text(self.tokenizer, token.id) for token in scored],
            "token_logprobs": [token.logprob for token in scored],
            "top_logprobs": likeliest,
            "text_offset": offsets,
            "token_ids": [token.id for token in scored],
            "top_token_ids": [[i for i, _ in token.likeliest] for token in scored],
            "top_token_logprobs": [[value for _, value in token.likeliest] for token in scored],
        }


def chat_logprobs(tokenizer: Tokenizer, scored: Sequence[ScoredToken]) -> dict[str, list]:
    """Return log-probabilities in the form of chat completions: objects, one for each token."""

    def entry(token: int, logprob: float | None) -> dict[str, Any]:
        text, raw = token_text(tokenizer, token), tokenizer.decode_bytes([token])
        return {"token": text, "logprob": logprob, "bytes": [*raw], "token_id": token}

    content = [
        entry(token.id, token.logprob) | {"top_logprobs": [entry(i, value) for i, value in token.likeliest]}
        for token in scored
    ]
    return {"content": content, "refusal": None}


def usage(n_prompt: int, n_written: int) -> dict[str, int]:
    """Return the counts of tokens."""
    return {"prompt_tokens": n_prompt, "completion_tokens": n_written, "total_tokens": n_prompt + n_written}
