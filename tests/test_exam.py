"""notebooks/exam.py: answers as `gpt` and PyTorch compute them, a hint for each mistake, the score in the terminal."""

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from gpt.config import AdapterConfig, GPTConfig, OptimConfig
from gpt.data import packed_spans
from gpt.evaluation import information
from gpt.exchange.layouts import layout_of
from gpt.generation import Sampling, process_logits
from gpt.layers import FeedForward, RMSNorm
from gpt.loss import Evaluation
from gpt.model import KVCache, MultiHeadAttention
from gpt.objectives.rollouts import Rollout, advantages
from gpt.ops import reference
from gpt.optim import learning_rate
from gpt.planning.flops import count_adapter

FOLDER = Path(__file__).parents[1] / "notebooks"
sys.path.insert(0, str(FOLDER))
import exam  # noqa: E402
from exam import QUESTIONS  # noqa: E402
from exercises import check  # noqa: E402

P = [1 / 2, 1 / 4, 1 / 8, 1 / 8]
GPT2 = GPTConfig()
SMOLLM2 = GPTConfig(n_layers=30, n_heads=9, n_kv_heads=3, emb_dim=576)
each_question = pytest.mark.parametrize("place", range(1, len(QUESTIONS) + 1))


def evaluation(losses, counts, bytes_per_token=math.nan):
    return Evaluation(np.arange(len(losses)), np.multiply(losses, counts), np.array(counts), bytes_per_token)


def logit_gradient():
    logits = torch.tensor([0.7, 0.2, 0.1]).log().requires_grad_()
    F.cross_entropy(logits, torch.tensor(1)).backward()
    return logits.grad[1].item()


def probabilities(logits, **settings):
    return process_logits(torch.tensor([logits]), Sampling(**settings)).softmax(dim=-1)[0]


def cache_bytes(n_tokens):
    cache = KVCache(SMOLLM2.n_layers, n_tokens)
    key = torch.zeros(1, SMOLLM2.n_kv_heads, n_tokens, SMOLLM2.head_width, dtype=torch.bfloat16, device="meta")
    parts = [part for layer in range(SMOLLM2.n_layers) for part in cache.extend(layer, key, key)]
    return sum(part.nbytes for part in parts)


def int8_value(weight, largest):
    """What PyTorch's own quantization of a row makes of a weight."""
    row = torch.tensor([weight, largest])
    return torch.fake_quantize_per_tensor_affine(row, largest / 127, 0, -127, 127)[0].item()


def group_advantage(rewards):
    group = [Rollout([0, 1], 1, reward, "", 2) for reward in rewards]
    return advantages(group, "group", "answer", False)[0][0]


def square_tensor():
    """The option whose tensor of GPT-2 has the same shape when it is turned."""
    layout = layout_of("gpt2", "hf", GPTConfig(n_layers=1, qkv_bias=True))
    shapes = {mapping.name.partition("h.0.")[2]: mapping.shape for mapping in layout if mapping.transposed}
    options = {"a": "attn.c_attn", "b": "attn.c_proj", "c": "mlp.c_fc", "d": "mlp.c_proj"}
    (square,) = [letter for letter, name in options.items() if len({*shapes[f"{name}.weight"]}) == 1]
    return square


ANSWERS = {
    1: lambda: information.entropy(P, unit="bits"),
    2: lambda: information.kl_divergence(P, [1 / 4] * 4, unit="bits"),
    3: lambda: evaluation([2.0], [250], bytes_per_token=4).bits_per_byte,
    5: lambda: len(packed_spans(1025, 256)),
    6: lambda: MultiHeadAttention(GPT2).head_dim ** 0.5,
    8: lambda: sum(p.numel() for p in FeedForward(GPT2).parameters()),
    9: lambda: F.cross_entropy(torch.zeros(1, 50257), torch.tensor([0])),
    10: lambda: evaluation([-math.log(p) for p in (1 / 2, 1 / 4, 1 / 8)], [1, 1, 1]).perplexity,
    11: logit_gradient,
    12: lambda: evaluation([4.0, 2.0], [10, 30]).loss,
    15: lambda: torch.div(*probabilities([2.0, 1.0], temperature=0.5)),
    16: lambda: (probabilities([math.log(p) for p in (0.5, 0.3, 0.15, 0.05)], top_p=0.7) > 0).sum(),
    18: lambda: nn.Linear(768, 8, bias=False).weight.numel() + nn.Linear(8, 768, bias=False).weight.numel(),
    20: lambda: 6 * 124e6 * 1e9,
    21: lambda: RMSNorm(4, eps=1e-9)(torch.tensor([3.0, 4.0, 0.0, 0.0]))[0],
    23: lambda: cache_bytes(2048),
    24: lambda: int8_value(0.507, 2.54),
    26: lambda: F.softplus(torch.tensor(-0.1 * ((-11 + 12) - (-12 + 12)))),
    27: lambda: group_advantage([1.0, 0.0, 0.0, 0.0]),
}


@pytest.mark.parametrize("place", ANSWERS)
def test_the_answer_is_what_gpt_computes(place):
    answer = float(torch.as_tensor(ANSWERS[place]()).detach())
    assert math.isclose(answer, QUESTIONS[place - 1].right, rel_tol=1e-6)
    assert check(f"exam.{place:02}", answer)


def test_letters_that_can_be_computed():
    assert QUESTIONS[18].right == square_tensor()
    scores = torch.tensor([1.0, 2.0, 0.0])  # the third token is masked, by 0 and by minus infinity
    assert scores.softmax(0)[2] > 0.09 and QUESTIONS[6].right == "b"
    rows = torch.randn(2, 8, generator=torch.Generator().manual_seed(0))
    products = []
    for positions in ([5, 2], [105, 102]):
        turned = reference.rotate(rows, *reference.rotary_tables(torch.tensor(positions), 8))
        products.append(turned[0] @ turned[1])
    torch.testing.assert_close(*products, rtol=1e-4, atol=1e-4)
    config = OptimConfig(lr=6e-4, warmup_steps=20_000)
    table = QUESTIONS[13].text.partition("\n    rate ")[2].split("\n")[0].split()[-5:]
    rates = [learning_rate(step, config, 2000) for step in range(0, 2001, 500)]
    assert [float(rate) for rate in table] == pytest.approx(rates, rel=0.02)


def test_adapter_of_the_question_is_that_of_gpt():
    config = GPTConfig(n_layers=1)
    assert count_adapter(AdapterConfig(name="lora", rank=8, targets="W_query"), config) == QUESTIONS[17].right


def test_there_are_thirty_in_the_order_of_the_sixteen_notebooks():
    order = [question.notebook for question in QUESTIONS]
    assert len(QUESTIONS) == 30 and order == sorted(order) and {*order} == {*range(1, 17)}


@each_question
def test_right_answers_are_explained_and_mistakes_get_their_hints(place):
    question, name = QUESTIONS[place - 1], f"exam.{place:02}"
    assert str(check(name, question.right)) == f"{name}: right. {question.because}"
    wrong = question.wrong.items() if isinstance(question.right, str) else question.wrong
    for answer, hint in wrong:
        result = check(name, answer)
        assert not result and str(result) == f"{name}: not yet. {hint}", answer
    if isinstance(question.right, str):
        options = [line.split()[0] for line in question.text.splitlines() if line[4:7].rstrip() in ("a", "b", "c", "d")]
        assert sorted([question.right, *question.wrong]) == options
    for answer in ("", "what?", math.nan, [], True, object(), "z"):
        assert not check(name, answer)


@each_question
def test_no_hint_gives_the_answer_away(place):
    question = QUESTIONS[place - 1]
    if not isinstance(question.right, str):
        shown = {f"{question.right:,.{digits}g}" for digits in (2, 3, 4)} | {f"{question.right:,.0f}"}
        for _, hint in question.wrong:
            words = {word.strip(".,:;?") for word in hint.split()}
            assert not {text for text in shown if len(text) > 1} & words, hint


@pytest.fixture
def run(monkeypatch, capsys):
    """Run the exam in the terminal: a function of its arguments and of the lines that are typed."""

    def run(*arguments, given):
        lines = iter(given)
        monkeypatch.setenv("NOTEBOOK_LANGUAGE", "en")  # which the exam sets; undone afterwards
        monkeypatch.setattr("sys.argv", ["exam.py", *arguments])
        monkeypatch.setattr("builtins.input", lambda prompt: typed(prompt, lines))
        exam.main()
        return capsys.readouterr().out

    return run


def typed(prompt, lines):
    print(prompt, end="")
    try:
        return next(lines)
    except StopIteration:
        raise EOFError from None


def test_the_terminal_asks_hints_explains_and_scores(run):
    out = run("1", "2", "7", given=["7/4", "b", "2", "0.25", ""])
    assert "Question 1 of 30 (notebook 1)" in out and "> Right. The surprises" in out
    assert "> Not yet. That is the cross-entropy itself." in out and "The right answer: b." in out
    assert "1 of 3 right at the first attempt." in out and "Read again: notebooks 1, 4." in out


def test_the_terminal_ends_quietly_with_the_input(run):
    assert "Question 1" in run("1", given=[])


def test_an_unknown_question_is_an_error(run, capsys):
    with pytest.raises(SystemExit, match="2"):
        run("31", given=[])
    assert "numbered from 1 to 30" in capsys.readouterr().err


def test_the_exam_speaks_chinese(run):
    texts = json.loads((FOLDER / "zh" / "hints" / "exam.json").read_text(encoding="utf-8"))
    for question in QUESTIONS:
        hints = question.wrong.values() if isinstance(question.right, str) else [hint for _, hint in question.wrong]
        assert {question.text, question.because, *hints} <= texts.keys()
    out = run("--language", "zh", "1", given=["2", "1.75"])
    assert not [word for word in ("Question", "Right", "right", "attempt", "That") if word in out]


def test_it_runs_as_a_script():
    ended = subprocess.run([sys.executable, FOLDER / "exam.py", "1"], input="1.75\n", capture_output=True, text=True)
    assert ended.returncode == 0 and "1 of 1 right" in ended.stdout and not ended.stderr
