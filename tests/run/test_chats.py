"""A run on conversations from the terminal: prepared, trained, asked and judged."""

import inspect
import io
import json
import os
import re
import select
import signal
import subprocess
import sys

import pytest

from gpt.run import chat as chatting
from gpt.text.chat import CHATML, encode_chat
from gpt.token_files import load_data
from gpt.tokenizer import load_tokenizer
from scripts import SCRIPTS, run_script

CONFIG = """\
max_steps = 250
batch_size = 8
eval_every = 0
sample_every = 0
device = "cpu"
[model]
vocab_size = 0
context_length = 96
emb_dim = 32
n_heads = 2
n_layers = 2
drop_rate = 0.0
[data]
path = "data"
packing = "document"
[objective]
name = "sft"
[optim]
lr = 5e-3
"""
NUMBERS = {"1": "one", "2": "two", "3": "three"}


def chat(*questions):
    """A conversation in which each number is answered by its name."""
    return [
        {"role": role, "content": text}
        for question in questions
        for role, text in (("user", question), ("assistant", NUMBERS[question]))
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the run `chats`, which knows three numbers, and with its data."""
    folder = tmp_path_factory.mktemp("chats")
    chats = [chat(a, b) for a in NUMBERS for b in NUMBERS] * 3
    for name, part in (("all", chats), ("val", chats[-3:])):
        (folder / f"{name}.jsonl").write_text("\n".join(json.dumps({"messages": each}) for each in part))
    (folder / "chats.toml").write_text(CONFIG)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert run_script("prepare_data --input all.jsonl --format messages --tokenizer char --out data") == 0
        assert run_script("train --config chats.toml --run chats") == 0
    return folder


@pytest.fixture
def ask(folder, monkeypatch, capsys):
    """Return a function that runs a script in the folder: what it prints, and what it says on stderr."""
    monkeypatch.chdir(folder)

    def call(command, status=0):
        capsys.readouterr()
        assert run_script(command) == status
        return capsys.readouterr()

    return call


@pytest.mark.parametrize("number", NUMBERS)
def test_it_answers_and_stops(ask, number):
    out, err = ask(f"generate --run chats --chat --temperature 0 --prompt {number}")
    assert out == f"{NUMBERS[number]}\n"
    assert "beyond" not in err


def test_answers_in_a_batch_say_why_they_ended(ask, folder):
    (folder / "prompts.txt").write_text("\n".join(NUMBERS))
    lines = ask("generate --run chats --chat --temperature 0 --prompts prompts.txt --format jsonl").out.splitlines()
    results = [json.loads(line) for line in lines]
    assert [(each["text"], each["finish_reason"]) for each in results] == [(n, "stop") for n in NUMBERS.values()]


def test_the_run_has_the_template(folder):
    tokenizer = json.loads((folder / "runs" / "chats" / "tokenizer.json").read_text())
    assert tokenizer["chat_template"] == CHATML
    assert tokenizer["special_tokens"] == ["<|im_start|>", "<|im_end|>"]


def test_a_test_file_is_judged_like_the_data(ask, folder):
    """The same conversations, once as the run's validation split and once from the file."""

    def figures(command):
        out = ask(command).out
        return re.search(r"text .*: ([\d,]+) tokens predicted", out)[1], re.search(r"loss +([\d.]+)", out)[1]

    own = figures("evaluate --run chats")
    assert own == figures("evaluate --run chats --text val.jsonl --format messages")
    data = load_data(folder / "data")
    assert own[0] == str(int((data.val.flags & 1).sum()))


def test_its_own_answers_are_judged(ask, folder):
    """By exact match, by a rule of one's own that sees prompt, answer and truth, and cut where they do not end."""
    out = ask("evaluate --run chats --text val.jsonl --format messages --reward exact_match").out
    assert "text            val.jsonl: 3 prompts, a greedy answer to each\n" in out
    assert "reward          exact_match: 1.0000, standard error 0.0000\nvalues          1 for 100.0%\n" in out
    assert re.search(r"validation split of data: \d+ prompts", ask("evaluate --run chats --reward exact_match").out)
    lines = [{"messages": chat(number)} for number in NUMBERS] + [{"messages": chat("1")}]
    (folder / "four.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (folder / "my_rule.py").write_text(
        "def short(prompt, completion, answer):\n"
        "    assert answer == completion and prompt.endswith('<|im_start|>assistant\\n')\n"
        "    return len(completion) == 3\n"
    )
    out = ask("evaluate --run chats --text four.jsonl --format messages --reward my_rule:short --batch_size 3").out
    assert "reward          my_rule:short: 0.7500, standard error 0.2500\n" in out
    assert "values          1 for 75.0%, 0 for 25.0%\n" in out
    (folder / "short.jsonl").write_text('{"prompt": "3", "completion": "1"}')  # 2 tokens with its end: at most 4
    out = ask("evaluate --run chats --text short.jsonl --format prompt_completion --reward exact_match").out
    assert out.endswith("values          0 for 100.0%\ncut             1 answers had no end after 4 tokens: reward 0\n")
    assert "standard error" not in out


@pytest.mark.parametrize(("options", "words"), [
    ("--reward exact", "no reward 'exact': it is tales"),
    ("--reward exact_match --context 8", "--context cannot be combined with --reward, which judges whole answers"),
    ("--reward exact_match --weights int8", "--weights cannot be combined with --reward"),
    ("--reward countdown", "the reward 'countdown' raised ValueError"),
    ("--text val.jsonl", "val.jsonl holds conversations: --format messages reads them whole"),
    ("--text val.jsonl --format alpaca", "record 1 of val.jsonl has no field 'instruction'"),
    ("--text all.jsonl --field messages.0.content", "answers prompts: name the fields of pairs, --prompt_field and"),
    ("--format messages", "--format says how a text is read, and none is named"),
])  # fmt: skip
def test_what_cannot_be_judged(ask, options, words):
    assert words in ask(f"evaluate --run chats {options}", status=2).err


def test_a_run_on_text_learns_to_answer(ask, folder):
    """The model of a run without a template gets rows for the template's two tokens."""
    (folder / "text.txt").write_text("systemuserassistant\n123 one two three. " * 40)
    ask("prepare_data --input text.txt --tokenizer char --out text")
    text = CONFIG.replace('"data"', '"text"').replace('"document"', '"packed"').replace('"sft"', '"next_token"')
    (folder / "base.toml").write_text(text.replace("250", "2"))
    ask("train --config base.toml --run base")
    prepare = "prepare_data --input all.jsonl --format messages --tokenizer runs/base/tokenizer.json --out more"
    said = ask(prepare).err
    assert "base/tokenizer.json has no chat template: conversations are written as ChatML" in said
    tuned = CONFIG.replace("max_steps = 250", 'max_steps = 2\ninit_from = "base"').replace('"data"', '"more"')
    (folder / "tuned.toml").write_text(re.sub(r"\[model\].*?\[data\]", "[data]", tuned, flags=re.DOTALL))
    said = ask("train --config tuned.toml --run tuned")
    assert "base has no token <|im_start|> <|im_end|>: a new row starts as the mean" in said.out + said.err
    again = ask(
        "prepare_data --input all.jsonl --format messages --tokenizer runs/tuned/tokenizer.json --out again"
    ).err
    assert "no chat template" not in again
    assert (folder / "again" / "train.bin").read_bytes() == (folder / "more" / "train.bin").read_bytes()


def test_transformers_answers_the_same(ask, folder):
    transformers = pytest.importorskip("transformers", reason="transformers is a development dependency")
    ask("export --run chats --out exported")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "exported")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder / "exported")
    for question, answer in NUMBERS.items():
        ids = tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], add_generation_prompt=True, return_tensors="pt", return_dict=False
        )
        written = model.generate(ids, max_new_tokens=20, do_sample=False)[0, ids.size(1) :]
        assert tokenizer.decode(written).replace(" ", "") == f"{answer}<|im_end|>"


# --- a conversation ---------------------------------------------------------------------------------------------------

NO_TEMPLATE = "the model has no chat template: it was not trained on conversations"
USER_2, USER_3 = ({"role": "user", "content": number} for number in "23")
SYSTEM_1 = {"role": "system", "content": "1"}


@pytest.fixture
def talk(ask, monkeypatch):
    """Return a function that types lines to scripts/chat.py: what it prints, what it says on stderr, and the calls of
    `generate_ids`, each the ids to continue and the settings."""
    generate_ids = chatting.generate_ids

    def call(*lines, options="--run chats --temperature 0", interrupted_after=None, status=0):
        calls = []

        def recorded(model, ids, *args, **settings):
            calls.append((ids, settings))
            for n, i in enumerate(generate_ids(model, ids, *args, **settings)):
                if n == interrupted_after and len(calls) == 1:
                    raise KeyboardInterrupt
                yield i

        with monkeypatch.context() as patch:
            typed = io.StringIO("".join(f"{line}\n" for line in lines))
            typed.isatty = lambda: interrupted_after is not None
            patch.setattr(sys, "stdin", typed)
            patch.setattr(chatting, "generate_ids", recorded)
            return *ask(f"chat {options}", status), calls

    return call


@pytest.fixture
def ids_of(folder):
    """Return a function from messages to the ids that an answer to them continues."""
    tokenizer = load_tokenizer(folder / "runs" / "chats" / "tokenizer.json")
    return lambda *messages: encode_chat(tokenizer, [*messages])


def test_each_message_is_answered_after_the_others(talk, ids_of):
    out, err, calls = talk("1", "", "2")
    assert out == "one\n\ntwo\n"
    assert "it answers messages; /help lists the commands" in err
    assert [ids for ids, _ in calls] == [ids_of(chat("1")[0]), ids_of(*chat("1"), USER_2)]


def test_messages_of_the_command_line_come_first(talk):
    out, _, calls = talk("3", options="--run chats --temperature 0 --prompt 1 --prompt 2")
    assert out == "> 1\none\n> 2\ntwo\n", "without a terminal nothing else is read"
    assert len(calls) == 2


def test_commands_change_the_conversation(talk, ids_of):
    out, err, calls = talk("1", "/reset", "2", "/system 1", "2", "//1", "/retry", "/quit", "3", status=2)
    first, reset, second, again, *_ = out.splitlines()
    assert (first, second) == ("one", "two")
    assert reset == again == "a new conversation begins"
    assert "the character '/' (U+002F) is not among the characters of this tokenizer" in err, "the message is /1"
    assert [ids for ids, _ in calls[1:]] == [ids_of(USER_2), *[ids_of(SYSTEM_1, USER_2)] * 2]


def test_a_stop_string_ends_an_answer_and_is_not_kept(talk, ids_of, tmp_path):
    """The answer to 1 is "one": by its characters the stop lies across tokens."""
    path = tmp_path / "saved.jsonl"
    out, _, _ = talk("1", f"/save {path}", "2", options="--run chats --temperature 0 --stop ne --stop zzz")
    assert out.splitlines()[0] == "o"
    assert json.loads(path.read_text())["messages"][1]["content"] == "o"


def test_sampling_can_be_changed(talk):
    out, _, calls = talk("1", "/temperature 1.5", "/top_k 3", "/top_p 0.5", "2", "/top_k", "3")
    assert "temperature 1.5\ntop_k 3\ntop_p 0.5\n" in out
    assert "top_k off\n" in out
    settings = [tuple(given[name] for name in ("temperature", "top_k", "top_p")) for _, given in calls]
    assert settings == [(0, None, None), (1.5, 3, 0.5), (1.5, None, 0.5)]


def test_a_conversation_is_saved_and_loaded(talk, ids_of, tmp_path):
    path = tmp_path / "saved.jsonl"
    out, _, _ = talk("/system 1", "1", f"/save {path}", "2", f"/save {path}")
    assert out.count(f"saved in {path}") == 2
    messages = json.loads(path.read_text())["messages"]
    assert [message["role"] for message in messages] == ["system", *["user", "assistant"] * 2]
    out, _, calls = talk(f"/load {path}", "3")
    assert out.startswith("4 messages; the last one: ")
    assert calls[0][0] == ids_of(*messages, USER_3)
    prepare = f"prepare_data --input {path} --val_input {path} --format messages --tokenizer char --out {tmp_path}/data"
    assert run_script(prepare) == 0


@pytest.mark.parametrize(("line", "words"), [
    ("/rest", "no command /rest: /help lists them; a message may begin with two slashes"),
    ("/__init__", "no command /__init__"),
    ("/retry", "there is no message yet"),
    ("/save", "name a file"),
    ("/save a.jsonl", "there is nothing to save yet"),
    ("/load nothing.jsonl", "nothing.jsonl"),
    ("/load chats.toml", "chats.toml"),
    ("/top_k half", "/top_k takes a whole number, not 'half'"),
    ("/top_p 2", "top_p must lie in (0, 1], not 2"),
    ("/temperature", "/temperature takes a number, not ''"),
])  # fmt: skip
def test_a_mistake_does_not_end_the_conversation(talk, line, words):
    out, err, _ = talk(line, "1", status=2)
    assert words in err
    assert out == "one\n"


@pytest.mark.parametrize(("name", "words"), [
    ("all.jsonl", "all.jsonl exists: choose another name"),
    ("chat.csv", "choose a name in .jsonl, not chat.csv"),
    ("nowhere/chat.jsonl", "there is no folder nowhere"),
])  # fmt: skip
def test_what_is_not_saved(talk, folder, name, words):
    before = (folder / "all.jsonl").read_bytes()
    _, err, _ = talk("/load all.jsonl", "1", f"/save {name}", status=2)
    assert words in err
    assert (folder / "all.jsonl").read_bytes() == before, "/load read one of its 27 conversations"


def test_help_lists_every_command(talk):
    listed = re.findall(r"^/(\w+)", talk("/help")[0], re.MULTILINE)
    commands = re.findall(r"def _(\w+)\(self, value: str\) -> Iterator", inspect.getsource(chatting.Chat))
    assert sorted(listed) == sorted([*commands, *chatting.NUMBERS])


@pytest.mark.parametrize("n", [0, 3])
def test_a_stopped_answer_is_kept(talk, ids_of, n):
    """Ctrl-C after n characters."""
    out, _, calls = talk("3", "2", interrupted_after=n)
    assert out.startswith(["> \n> two\n> ", "> thr\n> "][n > 0])
    stopped = [USER_3, {"role": "assistant", "content": "thr"}] if n else []
    assert calls[1][0] == ids_of(*stopped, USER_2)


def test_the_oldest_messages_make_room(talk, ids_of, tmp_path):
    """The context holds 96 tokens, of which 84 may be a prompt."""
    path, messages = tmp_path / "long.jsonl", chat(*"12312")
    path.write_text(json.dumps({"messages": messages}))
    _, err, calls = talk(f"/load {path}", "3")
    prompts = [ids_of(*messages[first:], USER_3) for first in range(0, 11, 2)]
    first = next(n for n, ids in enumerate(prompts) if len(ids) <= 84)
    assert 0 < first < 5
    assert calls[0][0] == prompts[first]
    assert f"the model no longer sees the first {2 * first} messages" in err


def test_a_model_without_a_template_continues_a_text(talk, ask, folder, tmp_path):
    (folder / "song.txt").write_text("123 one two three. " * 40)
    ask("prepare_data --input song.txt --tokenizer char --out song")
    text = CONFIG.replace('"data"', '"song"').replace('"document"', '"packed"').replace('"sft"', '"next_token"')
    (folder / "song.toml").write_text(text)
    ask("train --config song.toml --run song")
    options = "--run song --temperature 0 --max_new_tokens 4"
    generated = ask(f"generate {options} --prompt '123 '").out
    assert generated == "123 one \n"
    path = tmp_path / "song.txt"
    out, err, _ = talk("123 ", "", "three", f"/save {path}", "/reset", f"/load {path}", "one", options=options)
    assert "it continues a text: a line is appended to it as it is" in err
    assert out.splitlines()[:2] == ["one ", "two "]
    assert path.read_text() == f"123 one two three{out.splitlines()[2]}"
    assert f"a text of {len(path.read_text())} characters" in out
    assert NO_TEMPLATE in talk("1", options=f"{options} --system 1", status=2)[1]
    assert NO_TEMPLATE in talk("/system 1", options=options, status=2)[1]
    out, err, calls = talk("123 ", "?", "", "/retry", options=options, status=2)
    assert "the character '?'" in err
    assert out == "one \n" + 2 * "two \n", "nothing of the line that was refused is kept"
    assert calls[1][0] == calls[2][0]


def test_a_model_that_fills_in_blanks_has_no_conversation(talk, ask, folder):
    (folder / "blanks.txt").write_text("123 one two three. " * 40)
    ask("prepare_data --input blanks.txt --tokenizer char --out blanks --special_tokens [MASK]")
    text = CONFIG.replace('"data"', '"blanks"').replace('"document"', '"packed"').replace('"sft"', '"masked"')
    (folder / "blanks.toml").write_text(text.replace("250", "2"))
    ask("train --config blanks.toml --run blanks")
    assert "does not continue a text" in talk("1", options="--run blanks", status=2)[1]


def test_a_document_ends(talk, ask, folder, tmp_path):
    """Each line of the text is a document."""
    (folder / "lines.txt").write_text("one two\n" * 60)
    ask("prepare_data --input lines.txt --separator '\\n' --tokenizer char --out lines")
    text = CONFIG.replace('"data"', '"lines"').replace('"sft"', '"next_token"')
    (folder / "lines.toml").write_text(text.replace("250", "150"))
    ask("train --config lines.toml --run lines")
    path = tmp_path / "line.txt"
    out, err, calls = talk("one", f"/save {path}", "one ", "/retry", options="--run lines --temperature 0")
    assert out == f" two\nsaved in {path}\ntwo\ntwo\n"
    assert err.count("the text has ended: the next line begins another one") == 3
    assert path.read_text() == "one two"
    assert len(calls[1][0]) == len(calls[0][0]) + 1, "the second line begins a new text"


def test_text_of_a_model_with_a_template(talk, ask):
    generated = ask("generate --run chats --temperature 0 --max_new_tokens 3 --prompt 1").out
    out, _, _ = talk("1", options="--run chats --text --temperature 0 --max_new_tokens 3")
    assert f"1{out}" == generated


def test_special_tokens_of_an_answer_are_not_kept(talk, ids_of, monkeypatch):
    """The tokenizer could not encode their names in the next prompt."""
    monkeypatch.setattr(chatting, "stop_ids", lambda tokenizer: {tokenizer.special_tokens["<|im_end|>"]})
    tokenizer = load_tokenizer("runs/chats/tokenizer.json")
    start, end = (tokenizer.special_tokens[name] for name in ("<|im_start|>", "<|im_end|>"))
    written = iter([[*tokenizer.encode("on"), start, *tokenizer.encode("e")], tokenizer.encode("two")])
    calls = []
    monkeypatch.setattr(
        chatting, "generate_ids", lambda model, ids, *args, **settings: calls.append(ids) or iter(next(written))
    )
    assert end != start
    monkeypatch.setattr(sys, "stdin", io.StringIO("1\n2\n"))
    assert run_script("chat --run chats") == 0
    assert calls[1] == ids_of(*chat("1"), USER_2)


def test_a_message_longer_than_the_context(talk):
    _, err, _ = talk("1" * 200)
    assert re.search(r"the prompt has 2\d\d tokens; the model sees the last 96 of them", err)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no pseudo-terminals")
def test_on_a_terminal(folder):
    """What is typed is echoed by the terminal; Ctrl-C empties the line, Ctrl-D ends the program."""
    import pty

    ours, theirs = pty.openpty()
    command = [sys.executable, str(SCRIPTS / "chat.py"), "--run", str(folder / "runs" / "chats"), "--temperature", "0"]
    process = subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background job ignores Ctrl-C
    )  # fmt: skip
    os.close(theirs)
    shown = ""

    def read_until(words, seconds=60.0):
        """Whether words are shown in time; what stands before them is dropped."""
        nonlocal shown
        while words not in shown:
            if not select.select([ours], [], [], seconds)[0]:
                return False
            shown += os.read(ours, 1024).decode()
        shown = shown.partition(words)[2]
        return True

    def interrupt():
        """Press Ctrl-C until the prompt is there again: `input` can miss one that comes as it begins to wait."""
        process.send_signal(signal.SIGINT)
        return read_until("> ", 1.0)

    try:
        assert read_until("/help lists the commands")
        assert read_until("> ")
        os.write(ours, b"2")
        assert read_until("2")
        assert any(interrupt() for _ in range(60))
        os.write(ours, b"1\n")
        assert read_until("1\r\none\r\n> ")
        os.write(ours, b"\x04")
        assert process.wait(timeout=60) == 0
    finally:
        process.kill()
        process.wait()
        os.close(ours)
