"""Supervised fine-tuning: pairs, batches and losses by hand."""

import dataclasses
import math
from collections import Counter

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import pairs_of
from runs import change
from small_objectives import PAIRS, create, create_workspace, log_probability, short_config

from gpt.config import DataConfig, GPTConfig, ObjectiveConfig, TrainConfig
from gpt.evaluation.baselines import compute_baselines
from gpt.exchange.models import create_objective, resolve_config
from gpt.generation import generate
from gpt.model import GPTModel
from gpt.objectives.conversations import PairExamples
from gpt.objectives.sft import SFT
from gpt.text.prepare import prepare_data
from gpt.token_files import load_data


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    return create_workspace(tmp_path_factory.mktemp("workspace"))


def pairs_by_hand(context_length=8):
    """ab -> cd, a -> ccd, and an empty prompt -> d; 4 ends a text."""
    tokens = np.array([4, 0, 1, 4, 2, 3, 4, 0, 4, 2, 2, 3, 4, 4, 3, 4], np.uint16)
    return PairExamples(tokens, 4, context_length)


@pytest.fixture
def tiny_model():
    return GPTModel(GPTConfig(vocab_size=5, context_length=8, emb_dim=8, n_heads=2, n_layers=2, drop_rate=0.0)).eval()


def test_loss_of_a_pair_by_hand(tiny_model):
    """ab -> cd: only c, d and the end are asked for, of the six tokens that are read or written."""
    objective = SFT(tiny_model)
    batch = objective.batch(pairs_by_hand(), [0], (0,))
    assert batch["inputs"].tolist() == [[4, 0, 1, 2, 3]]
    assert batch["targets"].tolist() == [[-100, -100, 2, 3, 4]]
    p = torch.softmax(tiny_model(torch.tensor([[4, 0, 1, 2, 3]]))[0], -1)
    loss, count = objective(**batch)
    torch.testing.assert_close(loss, -(p[2, 2].log() + p[3, 3].log() + p[4, 4].log()))
    assert int(count) == 3


def test_batch_of_pairs_by_hand(tiny_model):
    pairs = pairs_by_hand()
    assert len(pairs) == 3
    assert [pairs.pair(i) for i in range(3)] == [([0, 1], [2, 3]), ([0], [2, 2, 3]), ([], [3])]
    inputs, targets = pairs.batch([2, 1, 0])
    assert inputs.dtype == targets.dtype == torch.int64
    assert inputs[0, :2].tolist() == [4, 3]
    assert targets.tolist() == [
        [3, 4, -100, -100, -100],
        [-100, 2, 2, 3, 4],
        [-100, -100, 2, 3, 4],
    ]
    assert inputs[1:].tolist() == [[4, 0, 2, 2, 3], [4, 0, 1, 2, 3]]
    objective = SFT(tiny_model)
    total, count = objective(inputs, targets)
    expected = -sum(
        log_probability(tiny_model, ids, first)
        for ids, first in (([4, 3, 4], 1), ([4, 0, 2, 2, 3, 4], 2), ([4, 0, 1, 2, 3, 4], 3))
    )
    assert total.item() == pytest.approx(expected, rel=1e-5)
    assert int(count) == 2 + 4 + 3


def test_prompt_tokens_are_not_targets(tiny_model):
    objective = SFT(tiny_model)
    batch = objective.batch(pairs_by_hand(), [0], (0,))
    other = {**batch, "inputs": batch["inputs"].clone()}
    other["inputs"][0, 1] = 3
    loss, count = objective(**batch)
    assert abs((objective(**other)[0] - loss).item()) > 1e-4, "what it says matters"
    assert int(objective(**other)[1]) == int(count)
    hidden = tiny_model.hidden_states(batch["inputs"])
    kept = torch.zeros_like(hidden).index_copy(1, torch.tensor([2, 3, 4]), hidden[:, 2:])  # nothing is read off it
    logits = tiny_model.out_head(kept)[0, 2:]
    torch.testing.assert_close(loss, F.cross_entropy(logits, torch.tensor([2, 3, 4]), reduction="sum"))


@pytest.mark.parametrize(
    ("context_length", "inputs"),
    [(9, [4, 0, 1, 2, 3, 0, 1, 2, 2]), (8, [4, 1, 2, 3, 0, 1, 2, 2]), (5, [4, 0, 1, 2, 2]), (3, [4, 2, 2])],
)
def test_long_prompts_lose_their_beginning(context_length, inputs):
    tokens = np.array([4, 0, 1, 2, 3, 0, 1, 4, 2, 2, 4], np.uint16)
    found, targets = PairExamples(tokens, 4, context_length).batch([0])
    assert found.tolist() == [inputs]
    assert targets.tolist() == [[-100] * (context_length - 3) + [2, 2, 4]]
    with pytest.raises(
        ValueError, match=r"a response has 3 tokens with its end, but model\.context_length is 2: raise"
    ):
        PairExamples(tokens, 4, 2)


def test_unsuitable_data_is_refused(workspace):
    pairs, documents = load_data(workspace / "pairs"), load_data(workspace / "documents")
    config = short_config("sft", workspace)
    assert resolve_config(config, pairs)[0].model.vocab_size == pairs.tokenizer.vocab_size
    with pytest.raises(ValueError, match=r"needs pairs or conversations, and .*documents holds none: prepare a"):
        resolve_config(config, documents)
    with pytest.raises(ValueError, match=r"data\.packing is 'packed', but an LSTM .* set it to 'document'"):
        resolve_config(change(config, data=DataConfig(path=config.data.path), model_backbone="lstm"), pairs)
    with pytest.raises(ValueError, match=r"holds preferences, and the objective sft .* set objective.name to 'dpo'"):
        resolve_config(config, load_data(workspace / "preferences"))
    with pytest.raises(ValueError, match=r"data\.stride is 2, but examples are read whole: set it to 0"):
        resolve_config(change(config, data=dataclasses.replace(config.data, stride=2)), pairs)
    with pytest.raises(ValueError, match=r"a response has 3 tokens with its end, but model\.context_length is 2"):
        resolve_config(change(config, model_context_length=2), pairs)
    assert resolve_config(change(config, model_context_length=3), pairs)


def test_exact_match_equals_greedy_generation(tmp_path):
    """Of a model that has learnt some of them: two prompts are asked for two different things, of which one can be."""
    pairs = [(f"{n % 6}+", f"={n % 6 * 7}{'!' * (n > 5)}") for n in range(8)] * 2
    data = prepare_data(pairs_of(tmp_path / "in", pairs), "char", tmp_path / "out", 0.5)
    config = TrainConfig(
        model=GPTConfig(vocab_size=0, context_length=12, emb_dim=32, n_heads=2, n_layers=1, drop_rate=0.0),
        data=DataConfig(path=str(data.folder), packing="document"),
        objective=ObjectiveConfig(name="sft"),
        batch_size=3,
    )
    config, data = resolve_config(config, data)
    objective = create_objective(config)
    optimizer = torch.optim.Adam(objective.parameters(), lr=1e-2)
    examples, shares = objective.examples(config, data, data.train), []
    for _ in range(40):
        objective(**objective.batch(examples, range(len(examples)), (0,)))[0].backward()
        optimizer.step()
        optimizer.zero_grad()
        found = objective.evaluate(config, data)
        exact = []
        for prompt, target in pairs[8:]:
            ids = [data.tokenizer.eot_id, *data.tokenizer.encode(prompt)]
            (written,) = generate(
                objective.model, [torch.tensor(ids)], 12 - len(ids), temperature=0, stop_id=data.tokenizer.eot_id
            )
            exact.append(written.tolist() == [*ids, *data.tokenizer.encode(target), data.tokenizer.eot_id])
            text = "".join(objective.generate_text(prompt, data.tokenizer, True, temperature=0))
            assert (text == prompt + target) or not exact[-1]
        assert found.metrics["val_exact_match"] == pytest.approx(np.mean(exact))
        shares.append(np.mean(exact))
        if shares[-1] == 6 / 8:
            break
    assert shares[-1] == 6 / 8, "all that can be"
    assert shares[0] == 0


def test_baselines_count_only_responses(workspace):
    objective, config, data = create("sft", workspace)
    train, val = ([[*target, "end"] for _, target in pairs] for pairs in (PAIRS[:24], PAIRS[24:]))
    counts, vocab_size = Counter(token for target in train for token in target), data.tokenizer.vocab_size
    tokens = [token for target in val for token in target]
    total = sum(counts.values())
    n = Counter(counts.values())  # of modified Kneser-Ney: Y = n1 / (n1 + 2 n2), D(i) = i - (i + 1) Y n(i + 1) / n(i)
    y = n[1] / (n[1] + 2 * n[2]) if n[1] else 0.5
    discount = [0.0, *(max(0.0, i - (i + 1) * y * n[i + 1] / n[i]) if n[i] else 0.0 for i in (1, 2, 3))]
    discount = [d or i * y for i, d in enumerate(discount)]
    freed = sum(discount[min(count, 3)] for count in counts.values())
    measure = compute_baselines(objective, config, data)
    assert len(tokens) == objective.evaluate(config, data).n_tokens
    assert measure.entropy_floor is None
    assert measure.losses == pytest.approx(
        {
            "uniform": math.log(vocab_size),
            "unigram": np.mean(
                [
                    -math.log((counts[token] - discount[min(counts[token], 3)] + freed / vocab_size) / total)
                    for token in tokens
                ]
            ),
        }
    )


def test_sample_shows_a_prompt_and_the_true_response(workspace):
    objective, config, data = create("sft", workspace)
    for seed in (0, 1, 8):
        prompt, target = PAIRS[24 + seed % 6]
        text = objective.sample(config, data, seed)
        assert text.startswith(prompt)
        assert text.endswith(f"\n(true: {target})")
    asked = dataclasses.replace(config, sample_prompt="2 and")
    assert objective.sample(asked, data, 0).startswith("2 and")
    assert "(true" not in objective.sample(asked, data, 0)
