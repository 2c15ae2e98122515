"""A conversation on the terminal: the model is loaded once and answers message by message."""

import contextlib
import json
import sys
from argparse import Namespace
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch

from gpt.exchange.models import LoadedModel
from gpt.generation import Sampling
from gpt.objectives.documents import default_length, generate_ids, with_start
from gpt.run.cli import sampling_from
from gpt.run.generate import ANSWER_TOKENS, load, notice_long_prompts, overflow_notice
from gpt.system.files import write_text
from gpt.text.chat import Message, encode_chat, stop_ids
from gpt.text.conversations import read_conversations
from gpt.text.readers import read_chunks
from gpt.text.streams import decode_stream

ANSWER_SHARE = 8  # an eighth of the context is kept for an answer: the oldest messages make room for it
HELP = {
    "/help": "this list",
    "/retry": "write the last answer again; at temperature 0 it is the same",
    "/reset": "forget the conversation",
    "/system TEXT": "instructions for a new conversation; without TEXT the model's own, if it has any",
    "/temperature X": "0: the most probable token; 1: the model's probabilities; above: more random",
    "/top_k N": "sample from the N most probable tokens; without N from all",
    "/top_p X": "sample from the most probable tokens whose probabilities sum to X; without X from all",
    "/min_p X": "sample from tokens at least X times as probable as the likeliest one; without X from all",
    "/repetition_penalty X": "above 1: tokens of the conversation become less probable; without X they do not",
    "/save FILE": "write the conversation to a .jsonl file, which prepare_data.py --format messages reads; or the text",
    "/load FILE": "continue what was saved",
    "/quit": "or Ctrl-D (on Windows Ctrl-Z and Enter)",
}
NUMBERS = {"temperature": float, "top_k": int, "top_p": float, "min_p": float, "repetition_penalty": float}
KEYS = "Ctrl-C stops an answer. A message that begins with a slash is written with two."
NO_TEMPLATE = "the model has no chat template: it was not trained on conversations, and reads no"


def converse(folder: Path | None, arguments: Namespace) -> int:
    """Answer --prompt, or what is typed, until the input ends. `folder` is a run's, or None for published weights.

    Return the exit status: 2 if a line without a terminal was refused.
    """
    sampling = sampling_from(arguments)
    loaded = load(folder, arguments)
    chat = Chat(
        loaded, not arguments.text, arguments.system, arguments.max_new_tokens, sampling, arguments.stop, arguments.seed
    )
    print(f"{chat.form}; /help lists the commands", file=sys.stderr)
    is_terminal, status = sys.stdin.isatty(), 0
    for line in _lines(arguments.prompt, is_terminal):
        try:
            with contextlib.closing(chat.read(line)) as pieces:
                for piece in pieces:
                    print(piece, end="", flush=True)
            print()
        except KeyboardInterrupt:
            if not is_terminal:
                raise
            print()
        except BrokenPipeError:
            raise
        except (ValueError, OSError, FloatingPointError, torch.OutOfMemoryError) as error:
            print(error, file=sys.stderr)
            status = 0 if is_terminal else 2
        if chat.ended:
            break
    return status


def _lines(prompts: list[str] | None, is_terminal: bool) -> Iterator[str]:
    """Yield the prompts of the command line, and then what is typed: without a terminal only if there are none."""
    for prompt in prompts or []:
        print(f"> {prompt}")
        yield prompt
    if prompts and not is_terminal:
        return
    if is_terminal:
        with contextlib.suppress(ImportError):  # Windows has none, but edits lines by itself
            import readline  # noqa: F401 (line editing and history for `input`)
    elif hasattr(sys.stdin, "reconfigure"):
        sys.stdin.reconfigure(encoding="utf-8")
    while True:
        try:
            yield input("> " if is_terminal else "")
        except KeyboardInterrupt:
            if not is_terminal:
                raise
            print()  # a new line to type
        except EOFError:
            print(end="\n" * is_terminal)
            return


class Chat:
    """A conversation with a model, or a text that both write in turn if it has no chat template or `answers` is false.

    `messages` are those of the conversation without the instructions; `text` is what was written otherwise.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        answers: bool,
        system: str | None,
        max_new_tokens: int | None,
        sampling: dict,
        stops: Sequence[str],
        seed: int,
    ):
        self.objective, self.tokenizer, self.prepend_eot = loaded.objective, loaded.tokenizer, loaded.prepend_eot
        self.model, self.sampling, self.stops = loaded.objective.model, sampling, stops
        self.answers = answers and self.tokenizer.chat_template is not None
        if not (self.objective.continues_prompts and self.objective.left_to_right):
            raise ValueError(f"{loaded.name} does not continue a text: scripts/generate.py shows what it writes")
        if system is not None and not self.answers:
            raise ValueError(f"{NO_TEMPLATE} --system" if answers else "--text continues a text: leave out --system")
        self.system, self.max_new_tokens = system, max_new_tokens
        if max_new_tokens is None:
            self.max_new_tokens = ANSWER_TOKENS if self.answers else default_length(self.model, self.prepend_eot)
        self.stop_ids = stop_ids(self.tokenizer) if self.answers else {self.tokenizer.eot_id}
        self.generator = torch.Generator(next(self.model.parameters()).device).manual_seed(seed)
        self.on_overflow, self.left_out, self.ended = overflow_notice(self.model.config), 0, False
        self.messages: list[Message] = []
        self.text, self.begun = "", ""  # `begun`: the text before the last continuation
        self.text_ended = False
        self.files: set[Path] = set()  # those that /save may write again

    @property
    def form(self) -> str:
        """What the model does with a line, in words."""
        return "it answers messages" if self.answers else "it continues a text: a line is appended to it as it is"

    def read(self, line: str) -> Iterator[str]:
        """Yield what a line brings, piece by piece: an answer, or what a command says. ValueError for a mistake."""
        if line.startswith("/") and not line.startswith("//"):
            name, _, value = line.partition(" ")
            if name not in {usage.split()[0] for usage in HELP}:
                raise ValueError(f"no command {name}: /help lists them; a message may begin with two slashes")
            if name[1:] in NUMBERS:
                yield self._set(name[1:], value.strip())
                return
            command: Callable[[str], Iterator[str]] = getattr(self, f"_{name[1:]}")
            yield from command(value.strip())
            return
        line = line.removeprefix("/") if line.startswith("//") else line
        if not self.answers:
            yield from self._continue(line if self.text_ended else self.text + line)
        elif line.strip():
            yield from self._answer([*self.messages, {"role": "user", "content": line}])

    # --- writing ------------------------------------------------------------------------------------------------------

    def _answer(self, messages: list[Message]) -> Iterator[str]:
        """Yield an answer to the last of some messages, and keep all of them, also if it is stopped.

        An empty answer is not kept, nor is its question. ValueError for a message that the tokenizer cannot encode.
        """
        ids: list[int] = []
        prompt = self._prompt(messages)
        try:
            yield from decode_stream(self.tokenizer, self._generate(prompt, ids), self.stops)
        finally:
            answer = self._decode(ids)
            if answer.strip():
                self.messages = [*messages, {"role": "assistant", "content": answer}]
            else:
                print("no answer: nothing is kept of this message", file=sys.stderr)

    def _continue(self, text: str) -> Iterator[str]:
        """Yield what continues a text, and keep both. After the end of a text the next line begins another one."""
        ids: list[int] = []
        prompt = self.objective.encode_prompt(text, self.tokenizer)
        prompt = with_start(prompt, self.tokenizer, self.prepend_eot)
        notice_long_prompts([len(prompt)], self.model.config.context_length)
        self.begun, self.text, self.text_ended = text, text, False
        try:
            yield from decode_stream(self.tokenizer, self._generate(prompt, ids), self.stops)
            # a text that ends at a stop string has not ended: the next line continues it
            self.text_ended = len(ids) < self.max_new_tokens and not self._stopped(ids)
        finally:
            self.text += self._decode(ids)
        if self.text_ended:
            print("\nthe text has ended: the next line begins another one", file=sys.stderr)

    def _generate(self, prompt: list[int], ids: list[int]) -> Iterator[int]:
        """Yield the ids that continue a prompt, and append each to `ids`."""
        for i in generate_ids(
            self.model, prompt, self.tokenizer, False, self.max_new_tokens, self.stop_ids,
            on_overflow=self.on_overflow, generator=self.generator, **self.sampling,
        ):  # fmt: skip
            ids.append(i)
            yield i

    def _decode(self, ids: list[int]) -> str:
        """Return what is kept of written ids: the text without special tokens, and without half a character at its
        end, where it was stopped, up to a stop string."""
        special = set(self.tokenizer.special_tokens.values())
        text = self.tokenizer.decode([i for i in ids if i not in special]).removesuffix("\ufffd")
        return min((text.partition(stop)[0] for stop in self.stops), key=len, default=text)

    def _stopped(self, ids: list[int]) -> bool:
        """Return whether the text of written ids contains a stop string."""
        return any(stop in self.tokenizer.decode(ids) for stop in self.stops)

    def _prompt(self, messages: list[Message]) -> list[int]:
        """Return the ids that an answer follows: of all messages, or without the oldest ones if they leave no room."""
        context_length = self.model.config.context_length
        limit = context_length * (ANSWER_SHARE - 1) // ANSWER_SHARE
        pairs = range(len(messages) // 2)  # a message and its answer are left out together
        first = 2 * bisect_left(pairs, True, key=lambda pair: len(self._encode(messages[2 * pair :])) <= limit)
        if first > self.left_out:
            print(f"the model no longer sees the first {first} messages", file=sys.stderr)
        self.left_out, ids = first, self._encode(messages[first:])
        notice_long_prompts([len(ids)], context_length)
        return ids

    def _encode(self, messages: list[Message]) -> list[int]:
        return encode_chat(self.tokenizer, self._instructions() + messages)

    def _instructions(self) -> list[Message]:
        return [] if self.system is None else [{"role": "system", "content": self.system}]

    # --- commands -----------------------------------------------------------------------------------------------------

    def _help(self, value: str) -> Iterator[str]:
        width = max(map(len, HELP))
        yield "\n".join([*(f"{usage:{width}}   {words}" for usage, words in HELP.items()), KEYS])

    def _retry(self, value: str) -> Iterator[str]:
        if not self.answers:
            yield from self._continue(self.begun)
        elif self.messages:
            yield from self._answer(self.messages[:-1])
        else:
            raise ValueError("there is no message yet")

    def _reset(self, value: str) -> Iterator[str]:
        self.messages, self.left_out = [], 0
        self.text, self.begun, self.text_ended = "", "", False
        yield "a new conversation begins" if self.answers else "a new text begins"

    def _system(self, value: str) -> Iterator[str]:
        if not self.answers:
            raise ValueError(f"{NO_TEMPLATE} /system")
        self.system = value or None
        yield from self._reset("")

    def _set(self, name: str, value: str) -> str:
        """Change a sampling setting, and return it in words."""
        kind, off = NUMBERS[name], {"repetition_penalty": 1.0}.get(name)
        try:
            number = kind(value) if value or name == "temperature" else off
        except ValueError:
            raise ValueError(f"/{name} takes a {'whole ' * (kind is int)}number, not {value!r}") from None
        sampling = {**self.sampling, name: number}
        Sampling(**sampling)  # ValueError for a number outside its range
        self.sampling = sampling
        return f"{name} {'off' if number == off else f'{number:g}'}"

    def _save(self, value: str) -> Iterator[str]:
        path = _path(value)
        if not (self.messages if self.answers else self.text):
            raise ValueError("there is nothing to save yet")
        if self.answers and path.suffix != ".jsonl":
            raise ValueError(f"a conversation is saved as a line of JSON: choose a name in .jsonl, not {path}")
        if path.exists() and path.resolve() not in self.files:
            raise ValueError(f"{path} exists: choose another name")
        if not path.parent.is_dir():
            raise ValueError(f"there is no folder {path.parent}")
        text = self.text
        if self.answers:
            text = json.dumps({"messages": self._instructions() + self.messages}, ensure_ascii=False) + "\n"
        write_text(path, text)
        self.files.add(path.resolve())
        yield f"saved in {path}"

    def _load(self, value: str) -> Iterator[str]:
        path = _path(value)
        if not self.answers:
            text = "".join(read_chunks(path, "utf-8"))
            self.objective.encode_prompt(text, self.tokenizer)  # ValueError if it cannot be read
            self.text, self.begun, self.text_ended = text, text, False
            yield f"a text of {len(text):,} characters"
            return
        numbered = deque(enumerate(read_conversations(path, "messages"), start=1), maxlen=1)
        if not numbered:
            raise ValueError(f"{path} holds no conversation")
        n, (first, *others) = numbered[0][0], numbered[0][1].messages
        has_system = first["role"] == "system"
        messages = others if has_system else [first, *others]
        self._encode(messages)  # ValueError if they cannot be read
        self.system = first["content"] if has_system else None
        self.messages, self.left_out = messages[: len(messages) // 2 * 2], 0  # a last question has no answer
        if n == 1:
            self.files.add(path.resolve())
        which = f"the last of {n:,} conversations: " if n > 1 else ""
        yield f"{which}{len(self.messages)} messages; the last one: {self.messages[-1]['content']}"

    def _quit(self, value: str) -> Iterator[str]:
        self.ended = True
        yield from ()


def _path(value: str) -> Path:
    if not value:
        raise ValueError("name a file")
    with contextlib.suppress(RuntimeError):  # ~ of a user who is not known
        return Path(value).expanduser()
    return Path(value)
