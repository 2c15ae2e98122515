"""gpt/text/conversations.py: the forms of conversations, every bad record named, the flags in the files."""

import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

import gpt.text.encode
import gpt.text.readers
from gpt.text.chat import encode_conversation
from gpt.text.conversations import FORMATS, read_conversations
from gpt.text.prepare import describe, prepare_data
from gpt.text.sources import Corpus
from gpt.token_files import COUNTED, START, load_data
from scripts import run_script

SYSTEM, USER, ANSWER = "Be brief.", "1+1?", "It's 2."
ASKED = [{"role": "user", "content": USER}]
ANSWERED = [*ASKED, {"role": "assistant", "content": ANSWER}]
INSTRUCTED = [{"role": "system", "content": SYSTEM}, *ANSWERED]
WRONG = [*ASKED, {"role": "assistant", "content": "3"}]
GOOD = {"role": "assistant", "content": ANSWER}
BAD = {"role": "assistant", "content": "3"}


def sharegpt(messages, user="human", assistant="gpt"):
    names = {"user": user, "assistant": assistant}
    return [{"from": names.get(m["role"], m["role"]), "value": m["content"]} for m in messages]


def in_parts(text):
    return [{"type": "text", "text": part} for part in (text[:1], text[1:])]


def write(path, *records):
    """Write records in the form that the suffix says; several conversations are told apart by their questions."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pyarrow = pytest.importorskip("pyarrow", reason="the extra parquet is not installed")
        parquet = pytest.importorskip("pyarrow.parquet")
        parquet.write_table(pyarrow.Table.from_pylist(list(records)), path)
    else:
        lines = map(json.dumps, records)
        path.write_text("\n".join(lines) if path.suffix == ".jsonl" else f"[{', '.join(lines)}]", encoding="utf-8")
    return path


def conversation(n, turns=1):
    """A conversation of so many turns, with a number in each message."""
    return [
        {"role": role, "content": f"{said} {n}.{turn}, é😀"}
        for turn in range(turns)
        for role, said in (("user", "Question"), ("assistant", "The answer is"))
    ]


def corpus_of_chats(path, *conversations, name="chats"):
    return Corpus(name, [write(path, *({"messages": each} for each in conversations))], format="messages")


# --- forms ------------------------------------------------------------------------------------------------------------

PICTURE = {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}

FORMS = {  # form, record, its conversations, each with the first message that counts
    "messages": ("messages", {"messages": INSTRUCTED}, [(INSTRUCTED, 0)]),
    "messages with more keys": (
        "messages", {"id": 1, "messages": [{**message, "name": None} for message in ANSWERED]}, [(ANSWERED, 0)]
    ),
    "messages in parts": (
        "messages", {"messages": [{"role": m["role"], "content": in_parts(m["content"])} for m in ANSWERED]},
        [(ANSWERED, 0)],
    ),
    "sharegpt": ("sharegpt", {"id": "a", "conversations": sharegpt(INSTRUCTED)}, [(INSTRUCTED, 0)]),
    "sharegpt, other names": ("sharegpt", {"conversations": sharegpt(ANSWERED, "user", "chatgpt")}, [(ANSWERED, 0)]),
    "sharegpt, one more name": ("sharegpt", {"conversations": sharegpt(ANSWERED, "human", "bing")}, [(ANSWERED, 0)]),
    "sharegpt, the system apart": (
        "sharegpt", {"system": SYSTEM, "conversations": sharegpt(ANSWERED)}, [(INSTRUCTED, 0)]
    ),
    "alpaca": ("alpaca", {"instruction": USER, "input": "", "output": ANSWER}, [(ANSWERED, 0)]),
    "alpaca, no input": ("alpaca", {"instruction": USER, "output": ANSWER}, [(ANSWERED, 0)]),
    "alpaca, with an input": (
        "alpaca", {"instruction": "Add.", "input": "1 and 1", "output": "2", "text": "unused"},
        [([{"role": "user", "content": "Add.\n\n1 and 1"}, {"role": "assistant", "content": "2"}], 0)],
    ),
    "prompt_completion": ("prompt_completion", {"prompt": USER, "completion": ANSWER}, [(ANSWERED, 1)]),
    "prompt_completion, lists": (
        "prompt_completion", {"prompt": [*ANSWERED, *ASKED], "completion": [GOOD]}, [([*ANSWERED, *ASKED, GOOD], 3)]
    ),
    "prompt_completion, a number": (
        "prompt_completion", {"prompt": USER, "completion": 2}, [([*ASKED, {"role": "assistant", "content": "2"}], 1)]
    ),
    "preferences": (
        "preferences", {"prompt": USER, "chosen": ANSWER, "rejected": "3"}, [(ANSWERED, 1), (WRONG, 1)]
    ),
    "preferences, lists": (
        "preferences", {"prompt": ASKED, "chosen": [GOOD], "rejected": [BAD]}, [(ANSWERED, 1), (WRONG, 1)]
    ),
    "preferences, implicit prompt": (
        "preferences", {"chosen": INSTRUCTED, "rejected": [*INSTRUCTED[:2], BAD]},
        [(INSTRUCTED, 2), ([*INSTRUCTED[:2], BAD], 2)],
    ),
    "preferences, the prompt twice": (
        "preferences", {"prompt": USER, "chosen": ANSWERED, "rejected": WRONG}, [(ANSWERED, 1), (WRONG, 1)]
    ),
    "preferences, implicit prompt as strings": (
        "preferences", {"chosen": "The sky is blue.", "rejected": "The sky is black."},
        [([{"role": "user", "content": "The sky is"}, {"role": "assistant", "content": f" {color}."}], 1)
         for color in ("blue", "black")],
    ),
    "several turns": ("messages", {"messages": [*ANSWERED, *ANSWERED]}, [([*ANSWERED, *ANSWERED], 0)]),
    "a last question": ("messages", {"messages": [*ANSWERED, *ASKED]}, [([*ANSWERED, *ASKED], 0)]),
    "a blank system message": (
        "messages", {"messages": [{"role": "system", "content": ""}, *ANSWERED]},
        [([{"role": "system", "content": ""}, *ANSWERED], 0)],
    ),
    "line ends": (
        "messages", {"messages": [{"role": "user", "content": "a\r\nb\rc"}, GOOD]},
        [([{"role": "user", "content": "a\nb\nc"}, GOOD], 0)],
    ),
}  # fmt: skip


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet"])
@pytest.mark.parametrize("name", FORMS)
def test_conversations_in_every_form(tmp_path, name, suffix):
    form, record, expected = FORMS[name]
    found = list(read_conversations(write(tmp_path / f"chats{suffix}", record, record), form))
    assert [(each.messages, each.first) for each in found] == expected * 2
    assert "".join(found[0]) == "".join(message["content"] for message in expected[0][0])
    assert len(found[0]) == sum(map(len, found[0]))


@pytest.mark.parametrize("form", ["alpaca", "prompt_completion", "preferences"])
def test_strings_from_a_table(tmp_path, form):
    record = FORMS[form][1]
    rows = [",".join(f'"{text}"' for text in part) for part in (record, record.values())]
    (tmp_path / "a.csv").write_text("\n".join([*rows, rows[1]]))
    found = list(read_conversations(tmp_path / "a.csv", form))
    assert [(each.messages, each.first) for each in found] == FORMS[form][2] * 2


# --- bad records ------------------------------------------------------------------------------------------------------

BAD_RECORDS = {
    "no assistant": ("messages", {"messages": ASKED}, "has no turn of the assistant"),
    "no messages": ("messages", {"messages": []}, "holds no messages"),
    "no field": ("messages", {"text": "a"}, "has no field 'messages', but: text"),
    "another form": (
        "messages", {"conversations": sharegpt(ANSWERED)}, "no field 'messages', but: conversations; --format sharegpt"
    ),
    "not an object": ("messages", ANSWERED, "is a list of 2 turns, not an object with messages"),
    "text in place of messages": ("messages", {"messages": "Hi"}, "no list of messages in 'messages', but a text"),
    "texts in place of messages": ("messages", {"messages": ["Hi"]}, "in 'messages', but a list of 1 texts"),
    "null in place of messages": ("sharegpt", {"conversations": None}, "in 'conversations', but null"),
    "two questions": ("messages", {"messages": ASKED + ANSWERED}, "message 2 is the user's, where the assistant's is"),
    "two answers": ("messages", {"messages": [*ANSWERED, GOOD]}, "message 3 is the assistant's, where the user's is"),
    "an answer first": ("messages", {"messages": [GOOD, *ANSWERED]}, "message 1 is the assistant's, where the user's"),
    "a late system": ("messages", {"messages": [*ANSWERED, INSTRUCTED[0]]}, "message 3 is the system's, where"),
    "an empty answer": ("messages", {"messages": [*ASKED, {**GOOD, "content": " \n"}]}, "empty content in message 2"),
    "an empty question": ("sharegpt", {"conversations": [{"from": "human", "value": ""}, *sharegpt([GOOD])]},
                          "empty content in message 1, the user's"),
    "null content": ("messages", {"messages": [*ASKED, {**GOOD, "content": None}]}, "no text in message 2, but null"),
    "a number": ("messages", {"messages": [*ASKED, {**GOOD, "content": 2}]}, "no text in message 2, but a number"),
    "a picture": ("messages", {"messages": [{**ASKED[0], "content": [{"type": "text", "text": "a"}, PICTURE]}, GOOD]},
                  "has a part that is no text in message 1, but 'image_url'"),
    "a list of texts": ("messages", {"messages": [*ASKED, {**GOOD, "content": ["a"]}]},
                        "has a part that is no text in message 2, but a text"),
    "no content": ("messages", {"messages": [*ASKED, {"role": "assistant"}]}, "no text in message 2, but null"),
    "half a character": ("messages", {"messages": [*ASKED, {**GOOD, "content": "\ud83d"}]}, "half a character"),
    "an unknown role": ("messages", {"messages": [{"role": "tool", "content": "a"}, GOOD]}, "unknown role 'tool'"),
    "no role": ("messages", {"messages": [{"content": "a"}, GOOD]}, "has no role in message 1"),
    "alpaca without an output": ("alpaca", {"instruction": "a"}, "has no field 'output'"),
    "alpaca with an empty output": ("alpaca", {"instruction": "a", "output": ""}, "empty content in message 2"),
    "alpaca with a list": ("alpaca", {"instruction": "a", "output": ["b"]}, "no text in 'output', but a list of 1 te"),
    "no prompt": ("prompt_completion", {"completion": "a"}, "has no field 'prompt'"),
    "an empty completion": ("prompt_completion", {"prompt": "a", "completion": ""}, "empty content in message 2"),
    "no rejected": ("preferences", {"prompt": "a", "chosen": "b"}, "has no field 'rejected'"),
    "other prompts": ("preferences", {"chosen": [*ASKED, GOOD], "rejected": [INSTRUCTED[0], *WRONG]}, "same prompt"),
    "the same answer": ("preferences", {"prompt": "a", "chosen": "b", "rejected": "b"}, "nothing to prefer"),
    "no common prompt": ("preferences", {"chosen": "a", "rejected": "b"}, "empty content in message 1"),
    "no answers": ("preferences", {"chosen": [*ANSWERED, *ASKED],
                                   "rejected": [*ANSWERED, {"role": "user", "content": "b"}]}, "does not end with"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_RECORDS)
def test_a_bad_record_is_named_by_its_number(tmp_path, capsys, name):
    form, record, words = BAD_RECORDS[name]
    path = write(tmp_path / "chats.jsonl", FORMS[form][1], record)
    out = tmp_path / "out"
    assert run_script(f"prepare_data --input {path} --format {form} --out {out}") == 2
    said = capsys.readouterr().err.strip()
    assert said.startswith(f"prepare_data.py: error: record 2 of {path} ")
    assert words in said
    assert "\n" not in said
    assert not out.exists()


def test_a_record_whose_template_fails_is_named(tmp_path, capsys):
    path = write(tmp_path / "chats.jsonl", *({"messages": each} for each in (ANSWERED, ANSWERED, INSTRUCTED)))
    template = (
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        "{{ m.role + ':' + m.content }}{% endfor %}"
    )
    prepare_data(corpus_of_chats(tmp_path / "a.jsonl", ANSWERED, ANSWERED), "bpe:300", tmp_path / "first", 0.5)
    saved = json.loads((tmp_path / "first" / "tokenizer.json").read_text()) | {"chat_template": template}
    tokenizer = tmp_path / "tokenizer.json"
    tokenizer.write_text(json.dumps(saved))
    run = f"prepare_data --input {path} --format messages --tokenizer {tokenizer} --out {tmp_path / 'o'}"
    assert run_script(run) == 2
    assert f"error: record 3 of {path}: the chat template cannot be used: no system" in capsys.readouterr().err
    assert not (tmp_path / "o").exists()


# --- options ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("options", "words"), [
    ("--field conversations", "has no text in 'conversations', but a list of 2 turns: --format sharegpt reads them"),
    ("", "holds conversations: --format sharegpt reads them whole"),
    ("--format sharegpt --field a", "--format reads whole conversations: it cannot be combined with --field"),
    ("--format sharegpt --separator a", "it cannot be combined with --separator"),
    ("--format sharegpt --special_tokens", "it cannot be combined with --special_tokens"),
    ("--format shareGPT", "error: --format: invalid choice: 'shareGPT'"),
])  # fmt: skip
def test_options_that_do_not_fit(tmp_path, capsys, options, words):
    path = write(tmp_path / "chats.jsonl", *[{"id": 1, "conversations": sharegpt(ANSWERED)}] * 4)
    assert run_script(f"prepare_data --input {path} {options} --out {tmp_path / 'out'}") == 2
    assert words in capsys.readouterr().err


def test_fields_of_conversations_get_advice(tmp_path, capsys):
    path = write(tmp_path / "chats.jsonl", *[{"conversations": sharegpt(conversation(n))} for n in range(12)])
    assert run_script(f"prepare_data --input {path} --field conversations.0.value --out {tmp_path / 'out'}") == 0
    assert "chats.jsonl holds conversations: --format sharegpt reads them whole" in capsys.readouterr().err


def test_text_beside_conversations_is_refused(tmp_path):
    chats = corpus_of_chats(tmp_path / "a.jsonl", ANSWERED, ANSWERED)
    (tmp_path / "b.txt").write_text("words")
    with pytest.raises(ValueError, match="of chats and text one holds conversations, the other does not"):
        prepare_data([chats, Corpus("text", [tmp_path / "b.txt"])], "gpt2", tmp_path / "out")
    with pytest.raises(ValueError, match=r"one conversation cannot be split .*: chats needs two"):
        prepare_data(corpus_of_chats(tmp_path / "a.jsonl", ANSWERED), "gpt2", tmp_path / "out")


def test_a_folder_of_conversations(tmp_path, capsys):
    for n in range(2):
        write(tmp_path / "chats" / f"{n}.jsonl", *({"messages": conversation(n)} for _ in range(2)))
    (tmp_path / "chats" / "README.md").write_text("Conversations.")
    assert run_script(f"prepare_data --input {tmp_path / 'chats'} --format messages --out {tmp_path / 'out'}") == 0
    assert "left out: 1 .md" in capsys.readouterr().err
    assert load_data(tmp_path / "out").train.documents == 3


# --- prepared ---------------------------------------------------------------------------------------------------------


def expected_file(tokenizer, conversations, first=lambda messages: 0):
    """The tokens and flags of conversations, one after the other."""
    tokens, flags = [], []
    for messages in conversations:
        ids, counted = encode_conversation(tokenizer, messages, first(messages))
        tokens += ids
        flags += [COUNTED * counts + START * (n == 0) for n, counts in enumerate(counted)]
    return tokens, flags


@pytest.mark.parametrize("name", ["gpt2", "char", "bpe:300"])
def test_a_round_trip(tmp_path, monkeypatch, name):
    """Twelve conversations: the last one validates, and each comes back as the template writes it."""
    monkeypatch.setattr(gpt.text.encode, "BATCH_CHARACTERS", 100)  # several batches
    chats = [conversation(n, 1 + n % 3) for n in range(12)]
    data = prepare_data(corpus_of_chats(tmp_path / "a.jsonl", *chats), name, tmp_path / "out")
    assert load_data(tmp_path / "out", verify=True).tokenizer.to_dict() == data.tokenizer.to_dict()
    for split, part in ((data.train, chats[:11]), (data.val, chats[11:])):
        tokens, flags = expected_file(data.tokenizer, part)
        assert split.tokens.tolist() == tokens
        assert split.flags.tolist() == flags
        assert split.documents == len(part)
        assert split.characters == sum(len(message["content"]) for each in part for message in each)
        answers = [message["content"] for each in part for message in each if message["role"] == "assistant"]
        assert split.bytes == sum(len(text.encode()) for text in answers)
    written = [
        "".join(f"<|im_start|>{message['role']}\n{message['content']}<|im_end|>\n" for message in each)
        for each in chats
    ]
    assert [*data.documents(data.train), *data.documents(data.val)] == written
    answers = [message["content"] for message in chats[11] if message["role"] == "assistant"]
    n_counted = sum(len(data.tokenizer.encode(text)) + 1 for text in answers)  # with the token that ends it
    assert data.bytes_per_token == sum(len(text.encode()) for text in answers) / n_counted
    assert (data.has_eot, data.paired, data.preferences) == (False, False, False)


def test_the_files_are_as_described(tmp_path):
    """All tokens, then a byte of flags for each; meta.json counts them."""
    data = prepare_data(corpus_of_chats(tmp_path / "a.jsonl", *map(conversation, range(12))), "gpt2", tmp_path / "out")
    meta = json.loads((tmp_path / "out" / "meta.json").read_text())
    content, n = (tmp_path / "out" / "train.bin").read_bytes(), meta["train"]["tokens"]
    assert meta["flagged"] is True
    assert len(content) == 3 * n
    assert np.frombuffer(content[: 2 * n], "<u2").tolist() == data.train.tokens.tolist()
    flags = np.frombuffer(content[2 * n :], np.uint8)
    assert flags.tolist() == data.train.flags.tolist()
    counts = {"documents": 11, "turns": 22, "counted": int(np.count_nonzero(flags & COUNTED))}
    assert {key: meta["train"][key] for key in counts} == counts
    assert "conversations: 11" in describe(data)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "meta.json", "tokenizer.json", "train.bin", "val.bin",
    ]  # fmt: skip


def test_preferences_stay_together(tmp_path):
    records = [{"prompt": [*conversation(n), *ASKED], "chosen": [GOOD], "rejected": [BAD]} for n in range(13)]
    corpus = Corpus("p", [write(tmp_path / "a.jsonl", *records)], format="preferences")
    data = prepare_data(corpus, "gpt2", tmp_path / "out", 0.2, weights=[1.5])
    pairs = [[*record["prompt"], answer] for record in (*records[:10], *records[1:10:2]) for answer in (GOOD, BAD)]
    tokens, flags = expected_file(data.tokenizer, pairs, first=lambda messages: len(messages) - 1)
    assert data.preferences
    assert data.train.tokens.tolist() == tokens
    assert data.train.flags.tolist() == flags
    assert data.val.documents == 6
    assert "preferences: 15" in describe(data)


def test_weights_and_several_inputs(tmp_path):
    a = corpus_of_chats(tmp_path / "a.jsonl", *map(conversation, range(10)), name="a")
    b = corpus_of_chats(tmp_path / "b.jsonl", *map(conversation, range(20, 25)), name="b")
    data = prepare_data([a, b], "gpt2", tmp_path / "out", weights=[1, 2])
    order = [*range(9), *range(20, 24), *range(20, 24)]
    assert data.train.tokens.tolist() == expected_file(data.tokenizer, map(conversation, order))[0]
    assert data.val.tokens.tolist() == expected_file(data.tokenizer, map(conversation, (9, 24)))[0]


def test_memory_does_not_grow_with_the_conversations(tmp_path, monkeypatch):
    monkeypatch.setattr(gpt.text.readers, "CHUNK_BYTES", 1 << 12)
    monkeypatch.setattr(gpt.text.encode, "BATCH_CHARACTERS", 1 << 11)
    peaks = []
    for n in (10, 100, 300):  # the first is a warm-up
        corpus = corpus_of_chats(tmp_path / "a.jsonl", *(conversation(i, 5) for i in range(n)))
        tracemalloc.start()
        prepare_data(corpus, "char", tmp_path / f"out{n}")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[2] < 1.2 * peaks[1]


# --- notices ----------------------------------------------------------------------------------------------------------


def notices_of(tmp_path, chats, tokenizer="gpt2"):
    lines = []
    corpus = corpus_of_chats(tmp_path / "a.jsonl", *chats)
    prepare_data(corpus, tokenizer, tmp_path / "out", overwrite=True, log=lines.append)
    return lines


def words(n, length=40):
    known = ["river", "stone", "green", "walks", "house", "over", "clock", "near"]
    return " ".join(np.random.default_rng(n).choice(known, length))


def test_what_is_said_of_conversations(tmp_path):
    chats = [[{"role": "user", "content": words(n)}, {**GOOD, "content": words(100 + n)}] for n in range(20)]
    lines = notices_of(tmp_path, chats)
    assert lines[0] == (
        "gpt2 has no chat template: conversations are written as ChatML, with <|im_start|>, token 50257, and "
        "<|im_end|>, token 50258, around each message"
    )
    data = load_data(tmp_path / "out")
    counted, tokens = (
        sum(
            int(np.count_nonzero(split.flags & bits)) if bits else len(split.tokens) for split in (data.train, data.val)
        )
        for bits in (COUNTED, 0)
    )
    assert lines[1:] == [
        f"20 conversations with 40 turns: {counted:,} of {tokens:,} tokens count in the loss, the assistant's"
    ]


def test_one_system_message_for_all_makes_no_duplicates(tmp_path):
    system = [{"role": "system", "content": words(1, 300)}]
    chats = [[*system, {"role": "user", "content": words(n)}, {**GOOD, "content": words(100 + n)}] for n in range(20)]
    assert not [line for line in notices_of(tmp_path, chats) if "share" in line or "stand" in line]
    chats[-1] = [*system, {"role": "user", "content": "Now?"}, chats[0][-1]]
    assert [line for line in notices_of(tmp_path, chats) if "1 of 2 validation conversations share 60%" in line]
    chats[-1] = chats[0]
    assert [line for line in notices_of(tmp_path, chats) if "1 of 2 validation conversations also stand in" in line]


def test_names_of_special_tokens_in_messages_are_counted(tmp_path):
    chats = [[*ASKED, {**GOOD, "content": f"{words(n)} <|im_end|>"}] for n in range(20)]
    line = "<|im_end|> (20 times) in the messages stays ordinary text: only the chat template writes special tokens"
    assert line in notices_of(tmp_path, chats)


def test_every_form_is_documented():
    text = (Path(__file__).parents[2] / "docs" / "formats.md").read_text(encoding="utf-8")
    assert all(f"`{form}`" in text for form in FORMATS)
