"""A conversation on the terminal: the model is loaded once and answers message by message."""

import contextlib
import json
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from gpt.exchange.models import LoadedModel
from gpt.generation import check_sampling
from gpt.objectives.documents import default_length, generate_ids, with_start
from gpt.run.generate import ANSWER_TOKENS, load, overflow_notice
from gpt.system.files import write_text
from gpt.text.chat import Message, encode_chat, stop_ids
from gpt.text.conversations import read_conversations
from gpt.text.tokenizers import decode_stream

ANSWER_SHARE = 8  # an eighth of the context is kept for an answer: the oldest messages make room for it
HELP = {
    "/help": "this list",
    "/retry": "another answer to the last message",
    "/reset": "forget the conversation",
    "/system TEXT": "instructions for a new conversation; without TEXT none",
    "/temperature X": "0: the most probable token; 1: the model's probabilities; above: more random",
    "/top_k N": "sample from the N most probable tokens; without N from all",
    "/top_p X": "sample from the most probable tokens whose probabilities sum to X; without X from all",
    "/save FILE": "write the conversation, one that prepare_data.py --format messages reads",
    "/load FILE": "go on with a saved conversation",
    "/quit": "or Ctrl-D",
}
NO_TEMPLATE = "the model has no chat template: it was not trained on conversations, and reads no"
KEYS = "Ctrl-C stops an answer. A message that begins with a slash is written with two."


def converse(folder: Path | None, arguments: Namespace) -> None:
    """Answer --prompt, or what is typed, until the input ends. `folder` is a run's, or None for published weights."""
    sampling = {name: getattr(arguments, name) for name in ("temperature", "top_k", "top_p")}
    check_sampling(arguments.max_new_tokens or 0, **sampling)
    loaded = load(folder, arguments)
    chat = Chat(loaded, arguments.system or "", arguments.max_new_tokens, sampling, arguments.seed)
    print(f"{chat.form}; /help lists the commands", file=sys.stderr)
    for line in _lines(arguments.prompt):
        try:
            _print(chat.read(line))
        except (ValueError, OSError) as error:
            print(error, file=sys.stderr)
        if chat.ended:
            return


def _lines(prompts: list[str] | None) -> Iterator[str]:
    """Yield the prompts of the command line, and then what is typed: without a terminal only if there are none."""
    for prompt in prompts or []:
        print(f"> {prompt}")
        yield prompt
    is_terminal = sys.stdin.isatty()
    if prompts and not is_terminal:
        return
    if is_terminal:
        with contextlib.suppress(ImportError):  # Windows has none, but edits lines by itself
            import readline  # noqa: F401 (line editing and history for `input`)
    while True:
        try:
            yield input("> " if is_terminal else "")
        except KeyboardInterrupt:
            print()  # a new line to type
        except EOFError:
            print(end="\n" * is_terminal)
            return


def _print(pieces: Iterator[str]) -> None:
    """Print an answer piece by piece, until it ends or Ctrl-C."""
    with contextlib.closing(pieces), contextlib.suppress(KeyboardInterrupt):
        for piece in pieces:
            print(piece, end="", flush=True)
    print()


class Chat:
    """A conversation with a model, or a text that both write in turn if the model was not trained on conversations.

    `messages` are those of a conversation without the instructions; `text` is all that was written otherwise.
    """

    def __init__(self, loaded: LoadedModel, system: str, max_new_tokens: int | None, sampling: dict, seed: int):
        self.objective, self.tokenizer, self.prepend_eot = loaded.objective, loaded.tokenizer, loaded.prepend_eot
        self.model, self.sampling = loaded.objective.model, sampling
        self.answers = self.tokenizer.chat_template is not None
        if not (self.objective.continues_prompts and self.objective.left_to_right):
            raise ValueError(f"{loaded.name} does not continue a text: scripts/generate.py shows what it writes")
        if system and not self.answers:
            raise ValueError(f"{NO_TEMPLATE} --system")
        self.system, self.max_new_tokens = system, max_new_tokens
        if max_new_tokens is None:
            self.max_new_tokens = ANSWER_TOKENS if self.answers else default_length(self.model, self.prepend_eot)
        self.stop_ids = stop_ids(self.tokenizer) if self.answers else {self.tokenizer.eot_id}
        self.generator = torch.Generator(next(self.model.parameters()).device).manual_seed(seed)
        self.on_overflow, self.left_out, self.ended = overflow_notice(self.model.config), 0, False
        self.messages: list[Message] = []
        self.text, self.begun = "", ""  # `begun`: the text before the last continuation
        self.files: set[Path] = set()  # saved or loaded, so that /save may write them again

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
            command: Callable[[str], Iterator[str]] = getattr(self, f"_{name[1:]}")
            yield from command(value.strip())
            return
        line = line.removeprefix("/") if line.startswith("//") else line
        if not self.answers:
            self.text += line
            yield from self._continue()
        elif line.strip():
            self.messages.append({"role": "user", "content": line})
            yield from self._answer()

    # --- writing ------------------------------------------------------------------------------------------------------

    def _answer(self) -> Iterator[str]:
        """Yield an answer to the last message, and keep it, also if it is stopped; nothing is kept of an empty one."""
        written: list[str] = []
        try:
            for piece in decode_stream(self.tokenizer, self._generate(self._prompt())):
                written.append(piece)
                yield piece
        finally:
            if (answer := "".join(written)).strip():
                self.messages.append({"role": "assistant", "content": answer})
            else:
                self.messages.pop()

    def _continue(self) -> Iterator[str]:
        """Yield what continues the text, and append it. After an end of text the next line begins a new one."""
        self.begun, n = self.text, 0

        def counted(ids: Iterator[int]) -> Iterator[int]:
            nonlocal n
            for i in ids:
                n += 1
                yield i

        ids = with_start(self.objective.encode_prompt(self.text, self.tokenizer), self.tokenizer, self.prepend_eot)
        for piece in decode_stream(self.tokenizer, counted(self._generate(ids))):
            self.text += piece
            yield piece
        if n < self.max_new_tokens:
            self.text = ""
            yield "\n(The text has ended: the next line begins another one.)"

    def _generate(self, ids: list[int]) -> Iterator[int]:
        return generate_ids(
            self.model, ids, self.tokenizer, False, self.max_new_tokens, self.stop_ids,
            on_overflow=self.on_overflow, generator=self.generator, **self.sampling,
        )  # fmt: skip

    def _prompt(self) -> list[int]:
        """Return the ids that the answer follows: of all messages, or without the oldest ones if they leave no room."""
        limit = self.model.config.context_length * (ANSWER_SHARE - 1) // ANSWER_SHARE
        first = 0
        while len(ids := self._encode(first)) > limit and first + 2 < len(self.messages):
            first += 2  # a message and its answer
        if first > self.left_out:
            print(f"the model no longer sees the first {first} messages", file=sys.stderr)
        self.left_out = first
        return ids

    def _encode(self, first: int) -> list[int]:
        return encode_chat(self.tokenizer, self._instructions() + self.messages[first:])

    def _instructions(self) -> list[Message]:
        return [{"role": "system", "content": self.system}] if self.system else []

    # --- commands -----------------------------------------------------------------------------------------------------

    def _help(self, value: str) -> Iterator[str]:
        width = max(map(len, HELP))
        yield "\n".join([*(f"{usage:{width}}   {words}" for usage, words in HELP.items()), KEYS])

    def _retry(self, value: str) -> Iterator[str]:
        if not self.answers:
            self.text = self.begun
            yield from self._continue()
        elif self.messages:
            self.messages.pop()
            yield from self._answer()
        else:
            raise ValueError("there is no message yet")

    def _reset(self, value: str) -> Iterator[str]:
        self.messages, self.text, self.begun, self.left_out = [], "", "", 0
        yield "a new conversation begins" if self.answers else "a new text begins"

    def _system(self, value: str) -> Iterator[str]:
        if not self.answers:
            raise ValueError(f"{NO_TEMPLATE} /system")
        self.system = value
        yield from self._reset("")

    def _temperature(self, value: str) -> Iterator[str]:
        yield self._set("temperature", float, value)

    def _top_k(self, value: str) -> Iterator[str]:
        yield self._set("top_k", int, value)

    def _top_p(self, value: str) -> Iterator[str]:
        yield self._set("top_p", float, value)

    def _set(self, name: str, kind: type, value: str) -> str:
        """Change a sampling setting, and return it in words."""
        try:
            number = kind(value) if value or name == "temperature" else None
        except ValueError:
            raise ValueError(f"/{name} takes a {'whole ' * (kind is int)}number, not {value!r}") from None
        check_sampling(0, **{**self.sampling, name: number})
        self.sampling = {**self.sampling, name: number}
        return f"{name} {'off' if number is None else f'{number:g}'}"

    def _save(self, value: str) -> Iterator[str]:
        path = self._path(value)
        if path.exists() and path.resolve() not in self.files:
            raise ValueError(f"{path} exists: choose another name")
        if not (self.messages if self.answers else self.text):
            raise ValueError("there is nothing to save yet")
        text = self.text
        if self.answers:
            text = json.dumps({"messages": self._instructions() + self.messages}, ensure_ascii=False) + "\n"
        write_text(path, text)
        self.files.add(path.resolve())
        yield f"saved in {path}"

    def _load(self, value: str) -> Iterator[str]:
        path = self._path(value)
        if self.answers:
            *_, last = read_conversations(path, "messages")
            first = last.messages[0]["role"] == "system"
            self.left_out = 0
            self.system, self.messages = last.messages[0]["content"] if first else "", last.messages[first:]
            if self.messages[-1]["role"] == "user":
                self.messages.pop()
            yield f"{len(self.messages)} messages; the last one: {self.messages[-1]['content']}"
        else:
            self.text = self.begun = path.read_text(encoding="utf-8")
            yield f"a text of {len(self.text):,} characters"
        self.files.add(path.resolve())

    def _path(self, value: str) -> Path:
        if not value:
            raise ValueError("name a file")
        return Path(value).expanduser()

    def _quit(self, value: str) -> Iterator[str]:
        self.ended = True
        yield from ()
