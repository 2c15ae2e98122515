"""scripts/generate.py: batches against one prompt at a time and against transformers, starts, notices, files."""

import json
import shlex
from dataclasses import replace

import pytest
import torch
from blocks import BLOCKS, GPT2_BLOCK, MODERN_BLOCK

from gpt.config import GPTConfig
from gpt.exchange.models import LoadedModel
from gpt.generation import generate_text_simple
from gpt.model import GPTModel
from gpt.objectives import NextToken, Reverse
from gpt.run import generate as door
from gpt.system.text import escape, unescape
from gpt.text.hf_tokenizer import to_hf
from gpt.tokenizer import CharTokenizer, from_dict, load_tokenizer, with_special_tokens
from gpt.variants.lstm import LSTMModel
from scripts import run_script

LETTERS = "ab cd\\\n日é"
PROMPTS = ["ab", "d\\c", "", "日é cab cab cab", "a", "cab dab"]


@pytest.fixture
def write(tmp_path, monkeypatch, capsys):
    """A function that runs generate.py with a small random model, and returns what it prints and its notices."""
    monkeypatch.chdir(tmp_path)

    def run(options: str, prompts=(), *, kind=NextToken, end_of_text=True, prepend_eot=False, template=None, **block):
        tokenizer = CharTokenizer(LETTERS, end_of_text)
        tokenizer.chat_template = template
        shape = {"vocab_size": tokenizer.vocab_size, "context_length": 16, "emb_dim": 16, "n_heads": 4, "n_layers": 2}
        config = GPTConfig(**{**shape, "drop_rate": 0.0, **block})
        torch.manual_seed(3)
        model = (LSTMModel if config.backbone == "lstm" else GPTModel)(config)
        if "--weights" not in options:
            model.double()  # rounding depends on the batch: in float32 it could change a choice
        for p in model.parameters():
            torch.nn.init.normal_(p, std=0.4)
        loaded = LoadedModel("a model", kind(model).eval(), tokenizer, prepend_eot, None)
        monkeypatch.setattr(door, "open_model", lambda *names: loaded)
        (tmp_path / "prompts.txt").write_text("".join(f"{prompt}\n" for prompt in prompts), encoding="utf-8")
        capsys.readouterr()
        status = run_script(f"generate --pretrained it --device cpu {options}")
        out, err = capsys.readouterr()
        assert status == 0, err
        return out, err, loaded

    return run


def test_an_answer_ends_by_the_template_too(write):
    """A tokenizer whose template does not end an answer with the token that ends a text, as base models have it."""
    *_, loaded = write("--prompt a")
    template = (
        "{% for message in messages %}{{ message.content + ('' if message.role == 'user' else '<end>') }}{% endfor %}"
    )
    tokenizer = from_dict(with_special_tokens(loaded.tokenizer, ["<end>"]).to_dict() | {"chat_template": template})
    loaded = replace(loaded, tokenizer=tokenizer)
    ends = [tokenizer.special_tokens[name] for name in ("<|endoftext|>", "<end>")]
    assert door.Writer(loaded, False, None, None, {}).stop_ids == {ends[0]}
    assert door.Writer(loaded, True, None, None, {}).stop_ids == {*ends}


@BLOCKS
@pytest.mark.parametrize("options", ["--temperature 0", "--temperature 1.5 --top_p 0.9 --seed 5"])
@pytest.mark.parametrize("size", [1, 4, 8])
def test_a_batch_writes_what_each_prompt_gets_alone(write, block, options, size):
    """Unequal lengths, an empty prompt, texts beyond the context; text i alone has the seed i later."""
    options += " --max_new_tokens 20"
    lines = write(f"{options} --prompts prompts.txt --batch_size {size}", PROMPTS, **block)[0].splitlines()
    assert len(lines) == len(PROMPTS)
    seed = 5 if "--seed" in options else 0
    for i, (prompt, line) in enumerate(zip(PROMPTS, lines, strict=True)):
        out, _, loaded = write(f"{options} --seed {seed + i} --prompt={shlex.quote(escape(prompt))}", **block)
        assert out == unescape(line) + "\n", prompt
        if options.startswith("--temperature 0") and prompt and block == GPT2_BLOCK:
            ids = loaded.tokenizer.encode(prompt)
            greedy = generate_text_simple(loaded.objective.model, torch.tensor([ids]), 20, 16)[0].tolist()
            assert loaded.tokenizer.decode(greedy).split("<|endoftext|>")[0] == out[:-1]


@pytest.mark.parametrize(
    "model", [{"backbone": "lstm"}, {"kind": Reverse}, {"prepend_eot": True}], ids=["lstm", "reverse", "documents"]
)
def test_batches_of_other_models(write, model):
    lines = write("--temperature 0 --prompts prompts.txt", PROMPTS, **model)[0].splitlines()
    for prompt, line in zip(PROMPTS, lines, strict=True):
        if "\\" not in prompt:
            assert write(f"--temperature 0 --prompt '{prompt}'", **model)[0] == unescape(line) + "\n"
    assert all(unescape(line).endswith(p) for p, line in zip(PROMPTS, lines, strict=True)) == ("kind" in model)


def test_json_lines_say_why_a_text_ended(write):
    options = "--format jsonl --num_samples 3 --seed 7 --max_new_tokens 9"
    out, _, loaded = write(f"{options} --prompts prompts.txt", PROMPTS)
    rows = [json.loads(line) for line in out.splitlines()]
    assert [row["prompt"] for row in rows] == [prompt for prompt in PROMPTS for _ in range(3)]
    assert [row["seed"] for row in rows] == list(range(7, 7 + len(rows)))
    for row in rows:
        new = loaded.tokenizer.encode(row["text"].removeprefix(row["prompt"]))
        assert row["n_tokens"] == len(new) <= 9
        assert row["finish_reason"] == ("length" if len(new) == 9 else "stop")
    assert {row["finish_reason"] for row in rows} == {"length", "stop"}
    assert len({row["text"] for row in rows}) > len(PROMPTS)
    out, _, _ = write("--format jsonl --prompt ab --seed 8 --max_new_tokens 9")
    assert json.loads(out) == rows[1]


@pytest.mark.parametrize("stop", ["b ", "a", "\\n"], ids=repr)
def test_a_stop_string_ends_a_text(write, stop):
    """As the whole text cut before the first one, prompt by prompt and in a batch, which stops writing there."""
    stop, options = unescape(stop), "--temperature 1.5 --max_new_tokens 30 --format jsonl --prompts prompts.txt"
    prompts = ["ab", "cab a", "d"]
    whole = [json.loads(line) for line in write(options, prompts)[0].splitlines()]
    given = f"--stop {shlex.quote(escape(stop))} --stop never"
    stopped = [json.loads(line) for line in write(f"{options} {given}", prompts)[0].splitlines()]
    found = 0
    for n, (prompt, free, cut) in enumerate(zip(prompts, whole, stopped, strict=True)):
        before, separator, _ = free["text"].removeprefix(prompt).partition(stop)
        assert cut["text"] == prompt + before
        assert cut["finish_reason"] == ("stop" if separator else free["finish_reason"])
        assert cut["n_tokens"] == (len(before) + len(stop) if separator else free["n_tokens"]), "one for a character"
        found += bool(separator)
        alone = f"--temperature 1.5 --max_new_tokens 30 --seed {n} {given} --prompt {shlex.quote(prompt)}"
        assert write(alone)[0] == cut["text"] + "\n"
    assert found


def test_json_lines_with_log_probabilities(write):
    out, _, loaded = write("--max_new_tokens 5 --format jsonl --prompts prompts.txt --logprobs", ["ab", "cab a"])
    for line in map(json.loads, out.splitlines()):
        ids = torch.tensor([loaded.tokenizer.encode(line["text"])])
        n = line["n_tokens"]
        with torch.no_grad():
            scores = loaded.objective.model(ids[:, :-1]).log_softmax(-1).gather(2, ids[:, 1:, None])[0, :, 0]
        assert line["logprobs"] == pytest.approx(scores[-n:].tolist(), abs=1e-5)
        assert len(line["logprobs"]) == n


def test_a_bias_forbids_a_token(write):
    forbidden = write("--temperature 1.5 --max_new_tokens 30 --num_samples 5 --prompt cab")
    letter, i = "b", forbidden[2].tokenizer.encode("b")[0]
    assert letter in forbidden[0].replace("cab", "")
    text = write(f"--temperature 1.5 --max_new_tokens 30 --num_samples 5 --prompt cab --logit_bias {i}=-100")[0]
    assert letter not in text.replace("cab", "")


def test_messages_are_answered_in_batches(write):
    """Each line is a message; the text is the answer. The template's own end token is one, a message's is text."""
    template = "{% for m in messages %}{{ m.content }}<|endoftext|>{% endfor %}a"
    options = "--chat --system 'd\\n' --temperature 0 --max_new_tokens 6"
    prompts = ["ab", "日é cab", "a"]
    lines = write(f"{options} --prompts prompts.txt", prompts, template=template)[0].splitlines()
    for prompt, line in zip(prompts, lines, strict=True):
        out, _, loaded = write(f"{options} --prompt '{prompt}'", template=template)
        assert out == unescape(line) + "\n"
        ids = loaded.tokenizer.encode(f"d\n<|endoftext|>{prompt}<|endoftext|>a", special=True)
        greedy = generate_text_simple(loaded.objective.model, torch.tensor([ids]), 6, 16)[0, len(ids) :].tolist()
        assert loaded.tokenizer.decode(greedy).split("<|endoftext|>")[0] == out[:-1]


@pytest.mark.parametrize("weights", ["bfloat16", "int8"])
def test_rounded_weights_write_in_batches(write, weights):
    out, err, _ = write(f"--weights {weights} --prompts prompts.txt --max_new_tokens 4", PROMPTS)
    assert len(out.splitlines()) == len(PROMPTS)
    assert f"{weights} weights" in err


def test_the_rounded_model_is_compiled(write, monkeypatch):
    compiled = []
    monkeypatch.setattr(door, "compile_decoding", lambda model, log: compiled.append(type(model).__name__))
    write("--weights bfloat16 --compile --prompt a --max_new_tokens 2")
    assert compiled == ["QuantizedGPTModel"]


@pytest.mark.parametrize("option", ["--compile", "--weights int8"])
def test_what_is_for_a_cpu_says_so(option, monkeypatch, capsys):
    monkeypatch.setattr(door, "choose_device", lambda name: torch.device("cuda"))
    assert run_script(f"generate --pretrained it --prompt a {option}") == 2
    assert "are for a CPU, not cuda: add --device cpu" in capsys.readouterr().err


def test_prompts_of_records_and_of_standard_input(write, tmp_path, monkeypatch):
    rows = [{"q": "ab", "n": 1}, {"q": "d\nc"}, {"q": ""}]
    (tmp_path / "p.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    out = write("--prompts p.jsonl --field 'c{q}\\n' --format jsonl --max_new_tokens 1")[0]
    assert [json.loads(line)["prompt"] for line in out.splitlines()] == ["cab\n", "cd\nc\n", "c\n"]
    (tmp_path / "p.csv").write_text('n;q\n1;ab\n2;"d\nc"\n', encoding="utf-16")
    out = write("--prompts p.csv --field q --encoding utf-16 --format jsonl --max_new_tokens 1")[0]
    assert [json.loads(line)["prompt"] for line in out.splitlines()] == ["ab", "d\nc"]
    with (tmp_path / "crlf.txt").open("wb") as file:
        file.write("\ufeffab \r\n\r\n日".encode())
    monkeypatch.setattr("sys.stdin", (tmp_path / "crlf.txt").open())
    out = write("--prompts - --format jsonl --max_new_tokens 1")[0]
    assert [json.loads(line)["prompt"] for line in out.splitlines()] == ["ab ", "", "日"]


@pytest.mark.parametrize("prompt", ["", "--prompt ''"])
@pytest.mark.parametrize("model", [{}, {"prepend_eot": True}], ids=["text", "documents"])
def test_no_prompt_starts_from_the_token_that_begins_a_text(write, prompt, model):
    out, _, loaded = write(f"{prompt} --temperature 0 --max_new_tokens 5", **model)
    start = torch.tensor([[loaded.tokenizer.eot_id]])
    greedy = generate_text_simple(loaded.objective.model, start, 5, 16)[0, 1:].tolist()
    assert out == loaded.tokenizer.decode(greedy).split("<|endoftext|>")[0] + "\n"


@pytest.mark.parametrize("block", [GPT2_BLOCK, MODERN_BLOCK], ids=["gpt2", "modern"])
@pytest.mark.parametrize("n_new, notices", [(13, 0), (14, 0), (15, 1), (16, 1), (40, 1)], ids=lambda n: str(n))
def test_the_notice_about_the_context_comes_when_it_is_true(write, monkeypatch, block, n_new, notices):
    """Three tokens and 13 new ones fill the context of 16; the 14th is predicted from them, the 15th from 17."""
    arguments = {"end_of_text": False, **block}
    for prompts in ("--prompt 'ab ' --num_samples 2", "--prompts prompts.txt"):
        _, err, _ = write(f"{prompts} --max_new_tokens {n_new}", ["ab ", "a", "cd"] * 4, **arguments)
        assert err.count("beyond 16 tokens") == notices, err


def test_a_text_that_ends_in_time_gets_no_notice(write):
    """A model of documents may write context_length tokens, so that start, prompt and text could pass the context."""
    notices = []
    for seed in range(8):
        out, err, _ = write(f"--prompt 'ab ' --temperature 2 --seed {seed} --format jsonl", prepend_eot=True)
        row = json.loads(out)
        notices.append("beyond" in err)
        assert notices[-1] == (4 + row["n_tokens"] - (row["finish_reason"] == "length") > 16)
    assert len(set(notices)) == 2


def test_prompts_that_are_too_long_are_counted(write):
    _, err, _ = write("--prompts prompts.txt --max_new_tokens 20", ["ab" * 20, "ab", "cd" * 9], end_of_text=False)
    assert "2 of 3 prompts have more than 16 tokens; the model sees the last 16 of each\n" in err
    _, err, _ = write("--prompt " + "ab" * 20)
    assert "the prompt has 40 tokens; the model sees the last 16 of them\n" in err
    assert "beyond" not in err


@pytest.mark.parametrize(
    "options, words",
    [
        ("", "the prompt is empty, and the tokenizer has no token that begins a text: write --prompt TEXT"),
        ("--prompts prompts.txt", "prompt 2: the character '日' (U+65E5) is not among the characters"),
        ("--prompts empty.txt", "empty.txt holds no prompt"),
        ("--prompts p.jsonl", "p.jsonl holds records: name the field that is the prompt, --field NAME"),
        ("--prompts p.jsonl --field y", "has no field 'y', but: x"),
        ("--prompts prompts.txt --prompt a", "--prompt is one prompt, --prompts a file of them: give one"),
        ("--prompt a --field x", "--field names a part of each line of --prompts"),
        ("--chat", "--chat answers a message: write it as --prompt TEXT"),
        ("--prompts prompts.txt --batch_size 0", "--batch_size must be at least 1, not 0"),
        ("--prompt a --format xml", "--format"),
        ("--prompt a --logprobs", "--logprobs is a field of each result: add --format jsonl"),
        ("--prompt a --logit_bias 3", "--logit_bias takes token ids and numbers, such as 13=-100,198=2, not '3'"),
        ("--prompt a --stop ''", "--stop is empty: every text would end at once"),
    ],
)
def test_mistakes(tmp_path, monkeypatch, capsys, options, words):
    monkeypatch.chdir(tmp_path)
    config = GPTConfig(vocab_size=3, context_length=8, emb_dim=8, n_heads=1, n_layers=1)
    loaded = LoadedModel("a model", NextToken(GPTModel(config)), CharTokenizer("abc"), False, None)
    monkeypatch.setattr(door, "open_model", lambda *names: loaded)
    for name, text in ("prompts.txt", "a\n日\n"), ("empty.txt", ""), ("p.jsonl", '{"x": "a"}\n'):
        (tmp_path / name).write_text(text, encoding="utf-8")
    assert run_script(f"generate --pretrained it --device cpu {options}") == 2
    out, err = capsys.readouterr()
    assert words in err and not out


@pytest.mark.parametrize(
    "option",
    [
        "--temperature -1",
        "--top_k 0",
        "--top_p 2",
        "--min_p 2",
        "--repetition_penalty 0",
        "--max_new_tokens -1",
        "--device x",
    ],
)
def test_settings_are_checked_before_a_model_is_loaded(monkeypatch, capsys, option):
    monkeypatch.setattr(door, "open_model", lambda *names: pytest.fail("loaded"))
    assert run_script(f"generate --pretrained it --prompt a {option}") == 2
    assert option.split()[0].strip("-") in capsys.readouterr().err


CHATS = {
    "roles": ({"additional_special_tokens": ["<|user|>", "<|bot|>"]}, [], "<|user|>Hello <|user|> you<|bot|>"),
    "dialog": ({}, [], "Hello there<|endoftext|>How are you?<|endoftext|>"),
    "words": ({}, ["SMILES", "foo bar"], "a SMILES of foo bar and foo bars"),
    "another start": ({"bos_token": "<s>", "eos_token": "</s>"}, [], "Hello <s>you"),
    "another end": ({"eos_token": "<|im_end|>", "pad_token": "<pad>"}, [], "Hello<|im_end|><pad>you<|endoftext|>"),
}


@pytest.mark.parametrize("name", CHATS)
def test_text_equals_that_of_transformers(tmp_path, capsys, name):
    """A small GPT-2 with random weights and tokens added to its own: names in a prompt, and where a text ends."""
    transformers = pytest.importorskip("transformers", reason="transformers is a development dependency")
    special, words, prompt = CHATS[name]
    (tmp_path / "tokenizer.json").write_text(json.dumps(to_hf(load_tokenizer("gpt2"), False)), encoding="utf-8")
    their = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(tmp_path / "tokenizer.json"), bos_token="<|endoftext|>", eos_token="<|endoftext|>"
    )
    their.add_special_tokens(special)
    their.add_tokens(words)
    torch.manual_seed(2)
    shape = {"vocab_size": len(their), "n_positions": 32, "n_embd": 16, "n_layer": 2, "n_head": 2}
    config = transformers.GPT2Config(**shape, eos_token_id=their.eos_token_id, bos_token_id=their.bos_token_id)
    model = transformers.GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3)
    their.save_pretrained(tmp_path)
    end, settings = their.eos_token_id, {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
    ids = their(prompt, return_tensors="pt").input_ids
    with torch.no_grad():  # the end token is a little likelier than the sixth of the text
        sixth = model.generate(ids, **settings)[0, ids.size(1) + 5]
        model.transformer.wte.weight[end] = 1.1 * model.transformer.wte.weight[sixth]
    model.save_pretrained(tmp_path)
    for start, option in (ids, f"--prompt '{prompt}'"), (torch.tensor([[their.bos_token_id]]), ""):
        written = model.generate(start, **settings)[0, start.size(1) :].tolist()
        assert end in [*written, *start[0]] or not option
        text = their.decode(written[: written.index(end)] if end in written else written)
        assert run_script(f"generate --pretrained {tmp_path} {option} --temperature 0 --max_new_tokens 12") == 0
        assert capsys.readouterr().out == (prompt if option else "") + text + "\n"
