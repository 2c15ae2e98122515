"""Supervised fine-tuning: pairs, batches and losses by hand."""

import dataclasses
import math
from collections import Counter

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from blocks import BLOCKS
from conftest import pairs_of
from runs import assert_same_run, change, quiet, stop_at, train
from small_objectives import PAIRS, TALKS, create, create_workspace, log_probability, short_config

from gpt.config import AdapterConfig, DataConfig, GPTConfig, ObjectiveConfig, OptimConfig, TrainConfig
from gpt.evaluation.baselines import compute_baselines
from gpt.exchange.models import create_objective, resolve_config
from gpt.generation import generate
from gpt.model import GPTModel
from gpt.objectives.examples import PairExamples
from gpt.objectives.sft import SFT
from gpt.run.training import resume_run, start_run
from gpt.text.prepare import prepare_data
from gpt.token_files import load_data
from gpt.variants import adapt


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


# --- conversations ----------------------------------------------------------------------------------------------------


def on(folder, packing="document"):
    """Changes of short_config: another folder of data, and a context that holds each of its conversations."""
    return {"data": DataConfig(str(folder), packing), "model_context_length": 96}


def test_loss_of_conversations_is_that_of_every_answer(workspace):
    objective, config, data = create("sft", workspace, **on(workspace / "conversations"))
    examples, tokenizer = objective.examples(config, data, data.train), data.tokenizer
    total, count = objective(**objective.batch(examples, range(3), (0,)))
    expected, n = 0.0, 0
    for talk in TALKS[:3]:
        ids = []
        for part, counts in talk:
            new = tokenizer.encode(part)
            if counts:
                expected -= log_probability(objective.model, [*ids, *new], first=len(ids))
                n += len(new)
            ids += new
    assert total.item() == pytest.approx(expected, rel=1e-5)
    assert int(count) == n
    assert len(examples) == 20


@pytest.mark.parametrize("folder", ["pairs", "conversations"])
@pytest.mark.parametrize("adapter", ["none", "prefix"])
@BLOCKS
def test_packed_rows_have_the_loss_and_the_gradients_of_single_ones(workspace, folder, adapter, block):
    config = GPTConfig(30, 96, 16, 4, 2, 0.0, **block)
    objective = SFT(adapt(GPTModel(config), AdapterConfig(adapter)))
    found = {}
    for packing in ("document", "packed"):
        for dtype in (torch.float64, torch.float32):
            changed = change(short_config("sft", workspace, **on(workspace / folder, packing)), model_vocab_size=0)
            _, data = resolve_config(changed, load_data(workspace / folder))
            examples = objective.to(dtype).examples(changed, data, data.train)
            loss, count = objective(**objective.batch(examples, range(len(examples)), (0,)))
            objective.zero_grad()
            (loss / count).backward()
            gradients = [p.grad.flatten() for p in objective.parameters() if p.requires_grad]
            found[packing, dtype] = count, loss / count, torch.cat(gradients), len(examples)
    for dtype, limit in ((torch.float64, 1e-12), (torch.float32, 1e-6)):
        (count, loss, gradient, n), (packed_count, packed_loss, packed_gradient, n_rows) = (
            found[packing, dtype] for packing in ("document", "packed")
        )
        assert n_rows < 0.6 * n
        assert int(count) == int(packed_count)
        torch.testing.assert_close(packed_loss, loss, rtol=0, atol=limit)
        torch.testing.assert_close(packed_gradient, gradient, rtol=0, atol=limit)


@pytest.mark.parametrize("folder", ["pairs", "conversations"])
def test_packing_does_not_change_an_evaluation(tmp_path, workspace, folder):
    """Of a model that has learnt some of the answers: both shares of exact ones are equal, and that of a loop."""
    optim = OptimConfig(lr=1e-2, warmup_steps=5)
    model = {"model_emb_dim": 32, "model_drop_rate": 0.0, "optim": optim, "max_steps": 50, "eval_every": 0}
    trained = train(short_config("sft", workspace, **model, **on(workspace / folder)), tmp_path / "run")
    objective, config, data = trained.objective, trained.config, trained.data
    one = objective.evaluate(config, data)
    packed = objective.evaluate(dataclasses.replace(config, data=DataConfig(str(data.folder), "packed")), data)
    assert packed.loss == pytest.approx(one.loss, rel=1e-5)
    assert packed.n_tokens == one.n_tokens
    assert packed.metrics == pytest.approx(one.metrics)
    examples, exact = objective.examples(config, data, data.train), []
    for number in range(len(examples)):
        inputs, targets = examples.batch([number])
        likeliest = objective.model(inputs).argmax(-1)
        exact.append(bool((likeliest == targets)[targets != -100].all()))
    on_train = dataclasses.replace(data, val=data.train)
    for packing in ("document", "packed"):
        changed = dataclasses.replace(config, data=DataConfig(str(data.folder), packing))
        assert objective.evaluate(changed, on_train).metrics["val_exact_match"] == pytest.approx(np.mean(exact))
    assert 0 < np.mean(exact) < 1


@pytest.mark.parametrize("folder", ["pairs", "conversations"])
def test_a_packed_run_resumes_bit_for_bit(workspace, tmp_path, folder):
    config = short_config("sft", workspace, batch_size=2, **on(workspace / folder, "packed"))
    truth = train(config, tmp_path / "truth")
    stop_at(start_run(config, tmp_path / "run", quiet), 3)
    resume_run(tmp_path / "run", log=quiet).train()
    assert_same_run(tmp_path / "run", tmp_path / "truth")
    assert len(truth.examples) < len(truth.examples.examples)


def test_baselines_and_samples_of_conversations(workspace):
    objective, config, data = create("sft", workspace, **on(workspace / "conversations"))
    answers = ["".join(part for part, counts in talk if counts) for talk in TALKS[20:]]
    tokens = objective.target_tokens(config, data, data.val)
    assert tokens.tolist() == data.tokenizer.encode("".join(answers))
    assert objective.evaluate(config, data).n_tokens == len(tokens)
    assert objective.trivial_losses(config, data)["uniform"] == pytest.approx(math.log(data.tokenizer.vocab_size))
    assert objective.context_needed(config, data, data.val).tolist() == [
        sum(len(part) for part, _ in talk) - 1 for talk in TALKS[20:]
    ]
    for seed in (0, 5, 9):
        *parts, (answer, _) = TALKS[20 + seed % 7]
        text = objective.sample(config, data, seed)
        assert text.startswith("".join(part for part, _ in parts))
        assert text.endswith(f"\n(true: {answer})")
        assert objective.sample(config, data, seed) == text
    asked = objective.sample(dataclasses.replace(config, sample_prompt="2 and"), data, 0)
    assert asked.startswith("2 and")
    assert "(true" not in asked


def test_a_message_is_asked_for_in_the_chat_template(workspace, monkeypatch):
    objective, config, data = create("sft", workspace, **on(workspace / "conversations"))
    monkeypatch.setattr(data.tokenizer, "chat_template", "{% for m in messages %}one {{ m.content }} more{% endfor %}")
    assert objective.sample(dataclasses.replace(config, sample_prompt="2 and"), data, 0).startswith("one 2 and more")


def test_a_packed_model_answers_prompts_that_start_with_end_of_text(workspace, tmp_path):
    from gpt.exchange.models import open_model

    train(short_config("sft", workspace, max_steps=2, **on(workspace / "pairs", "packed")), tmp_path / "run")
    assert open_model(tmp_path / "run").prepend_eot
