"""Direct preference optimization: losses and gradients by hand, the reference, what is refused."""

import dataclasses
import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from conversations import write_conversations
from runs import assert_same_run, change, quiet, rows, stop_at, train
from small_objectives import PREFERENCES, create, create_workspace, log_probability, short_config
from torch import nn

from gpt.config import AdapterConfig, DataConfig, GPTConfig, ObjectiveConfig, OptimConfig
from gpt.exchange.models import create_objective, load_model, load_objective, resolve_config
from gpt.objectives.dpo import DPO, PreferenceExamples
from gpt.objectives.ranks import losses_and_ranks
from gpt.run.training import resume_run, start_run
from gpt.token_files import COUNTED, START, TokenFile, load_data


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    return create_workspace(tmp_path_factory.mktemp("workspace"))


def preferences(*conversations):
    """A split of conversations (prompt, answer), alternately chosen and rejected, whose answers count."""
    ids, flags = [], []
    for prompt, answer in conversations:
        ids += [*prompt, *answer]
        flags += [START, *[0] * (len(prompt) - 1), *[COUNTED] * len(answer)]
    n, flags = len(conversations), np.array(flags, np.uint8)
    return TokenFile(Path("train.bin"), np.array(ids, np.uint16), n, len(ids), len(ids), "", flags)


class Table(nn.Module):
    """A model of five words: each row of `logits` is what follows that word, whatever came before."""

    config = GPTConfig(vocab_size=5, context_length=8)

    def __init__(self):
        super().__init__()
        self.logits = nn.Parameter(torch.tensor([[0.1 * i * j - 0.3 * j for j in range(5)] for i in range(5)]).double())

    def hidden_states(self, token_ids):
        return self.logits[token_ids]

    def loss_from_hidden(self, hidden, targets, reduction):
        assert reduction == "none"
        return hidden.logsumexp(-1) - hidden.gather(-1, targets[:, None])[:, 0]


def test_loss_and_gradient_on_a_vocabulary_of_five():
    """Pencil: the gradient of the loss is -beta · sigmoid(r_l - r_w) · (grad ln p_w - grad ln p_l), and that of ln p of
    word j after word i is onehot(j) - p(· | i) in row i."""
    split = preferences(([1, 2], [3, 4]), ([1, 2], [0]))
    table = Table()
    objective = DPO(table, ObjectiveConfig("dpo", beta=0.3))
    objective.reference = torch.tensor([[9.0, 9.0], [-2.0, -1.5]]).double()
    loss, count = objective(*PreferenceExamples(split, 8).batch([0]), torch.tensor([1]))
    loss.backward()
    p = [[math.exp(x) / sum(map(math.exp, row)) for x in row] for row in table.logits.tolist()]
    chosen, rejected = math.log(p[2][3]) + math.log(p[3][4]), math.log(p[2][0])
    margin = 0.3 * ((chosen + 2.0) - (rejected + 1.5))
    assert int(count) == 1
    assert loss.item() == pytest.approx(-math.log(1 / (1 + math.exp(-margin))), rel=1e-12)
    gradient = np.zeros((5, 5))
    for sign, i, j in ((1, 2, 3), (1, 3, 4), (-1, 2, 0)):
        gradient[i] += sign * (np.eye(5)[j] - p[i])
    gradient *= -0.3 * 1 / (1 + math.exp(margin))
    np.testing.assert_allclose(table.logits.grad.numpy(), gradient, rtol=1e-12, atol=1e-15)


def published_loss(chosen, rejected, reference_chosen, reference_rejected, beta):
    """TRL's DPOTrainer.dpo_loss of type "sigmoid": both log ratios of the policy and of the reference, subtracted."""
    logits = (chosen - rejected) - (reference_chosen - reference_rejected)
    losses = -torch.log(torch.sigmoid(beta * logits))
    return losses, beta * (chosen - reference_chosen), beta * (rejected - reference_rejected)


@pytest.mark.parametrize("beta", [0.1, 2.0])
def test_loss_margin_and_accuracy_equal_the_published_formula(workspace, tmp_path, beta):
    """With each answer's ln p by one forward pass per prefix, of a policy that has left the reference."""
    pairs = [
        PREFERENCES[40 + 2 * n :][:2][:: -1 if n % 3 else 1] for n in range(10)
    ]  # two of three the other way round
    tokenizer = load_data(workspace / "preferences").tokenizer
    write_conversations(tmp_path / "data", tokenizer, PREFERENCES[:8], [*itertools.chain(*pairs)], preferences=True)
    own = {"data": DataConfig(str(tmp_path / "data"), "document"), "objective": ObjectiveConfig("dpo", beta=beta)}
    objective, config, data = create("dpo", workspace, **own)
    source = load_model(workspace / "runs" / "teacher")[0]
    with torch.no_grad():
        for p in objective.model.parameters():
            p.add_(0.1 * torch.randn(p.shape))
    found = []
    for ((prompt, _), (chosen, _)), (_, (rejected, _)) in pairs:
        start = tokenizer.encode(prompt)
        for model in (objective.model, source):
            for answer in (chosen, rejected):
                found.append(log_probability(model, [*start, *tokenizer.encode(answer)], first=len(start)))
    policy_and_reference = torch.tensor(found).view(10, 4).T
    losses, rewards_chosen, rewards_rejected = published_loss(*policy_and_reference, beta)
    evaluation = objective.evaluate(config, data)
    assert evaluation.n_tokens == 10
    assert evaluation.loss == pytest.approx(losses.mean().item(), rel=1e-4)
    margins = rewards_chosen - rewards_rejected
    assert evaluation.metrics["val_reward_margin"] == pytest.approx(margins.mean().item(), rel=1e-3)
    assert evaluation.metrics["val_accuracy"] == pytest.approx((margins > 0).float().mean().item())
    assert 0 < evaluation.metrics["val_accuracy"] < 1


@pytest.mark.parametrize("adapter", ["none", "lora", "prefix"])
def test_the_reference_is_the_model_at_init_from_without_adapter_and_dropout(workspace, adapter):
    config = short_config("dpo", workspace, adapter=AdapterConfig(adapter), model=GPTConfig(0, drop_rate=0.5))
    config, data = resolve_config(config, load_data(workspace / "preferences"))
    objective = create_objective(config).train()
    objective.prepare(config, data)
    assert objective.training
    source = load_model(workspace / "runs" / "teacher")[0]
    assert objective.reference.shape == (30, 2)
    for n, i in itertools.product((0, 7, 19, 20, 29), range(2)):
        (prompt, _), (answer, _) = PREFERENCES[2 * n + i]
        start = data.tokenizer.encode(prompt)
        expected = log_probability(source, [*start, *data.tokenizer.encode(answer)], first=len(start))
        assert objective.reference[n, i].item() == pytest.approx(expected, rel=1e-5)
    at_start = objective.evaluate(config, data).loss
    if adapter == "prefix":  # it changes the model from the start
        assert abs(at_start - math.log(2)) > 1e-4
    else:
        assert at_start == pytest.approx(math.log(2), abs=1e-6)
    assert objective.trivial_losses(config, data) == {"the reference": pytest.approx(math.log(2))}


def test_a_resumed_run_keeps_the_reference(workspace, tmp_path, monkeypatch):
    config = short_config("dpo", workspace)
    truth = train(config, tmp_path / "truth")
    stop_at(start_run(config, tmp_path / "run", quiet), 3)
    stored = load_objective(tmp_path / "run", "last")[0].reference
    monkeypatch.setattr(DPO, "prepare", lambda *arguments: pytest.fail("computed again"))
    resume_run(tmp_path / "run", log=quiet).train()
    assert_same_run(tmp_path / "run", tmp_path / "truth")
    assert torch.equal(stored, truth.objective.reference)
    assert torch.equal(load_objective(tmp_path / "run", "last")[0].reference, stored)


def test_training_prefers_the_chosen_answers(workspace, tmp_path):
    optim = OptimConfig(lr=3e-3, warmup_steps=0)
    config = short_config("dpo", workspace, optim=optim, model_drop_rate=0.0, max_steps=15, eval_every=0)
    trainer = train(config, tmp_path / "run")
    first, last = rows(tmp_path / "run")[0], rows(tmp_path / "run")[-1]
    assert trainer.evaluation.loss < 0.6 < math.log(2)
    assert float(last["val_accuracy"]) == trainer.evaluation.metrics["val_accuracy"] > 0.9
    assert float(last["val_reward_margin"]) > 0.2
    assert last["val_perplexity"] == last["train_perplexity"] == "", "e^loss is no perplexity here"
    assert float(last["tokens_seen"]) == 15 * 8, "pairs"
    assert float(first["train_loss"]) == pytest.approx(math.log(2), abs=0.1)


def test_logits_exist_chunk_by_chunk(workspace, monkeypatch):
    """The values and gradients are those of all logits at once."""
    objective, config, data = create("dpo", workspace, model_drop_rate=0.0)
    objective.double()
    inputs, targets = objective.examples(config, data, data.train).batch(range(6))
    counted = targets != -100
    total = torch.zeros(12).double()
    found = []
    for n_rows in (10_000, 3):
        monkeypatch.setattr("gpt.system.chunked_loss.MAX_LOGITS", n_rows * objective.model.config.vocab_size)
        objective.zero_grad()
        values = objective.log_probabilities(inputs, targets)
        (values * torch.arange(12)).sum().backward()
        found.append((values.detach(), torch.cat([p.grad.flatten() for p in objective.parameters()])))
    losses, _ = losses_and_ranks(objective.model, objective.model.hidden_states(inputs)[counted], targets[counted])
    for loss, row in zip(losses, counted.nonzero()[:, 0], strict=True):
        total[row] -= loss.detach()
    torch.testing.assert_close(found[0][0], total)
    torch.testing.assert_close(found[1], found[0], rtol=1e-10, atol=1e-12)


# --- data -------------------------------------------------------------------------------------------------------------


def test_pairs_by_hand():
    split = preferences(([1, 2], [3]), ([1, 2], [4, 4]), ([0], [2]), ([0], [1]))
    examples = PreferenceExamples(split, 8)
    assert len(examples) == 2
    inputs, targets = examples.batch([1, 0])
    assert inputs.tolist() == [[0, 0, 0], [0, 0, 0], [1, 2, 0], [1, 2, 4]]
    assert targets.tolist() == [[2, -100, -100], [1, -100, -100], [-100, 3, -100], [-100, 4, 4]]


def test_both_of_a_pair_lose_the_same_beginning():
    split = preferences(([0, 1, 2, 3], [4]), ([0, 1, 2, 3], [4, 4, 0]))
    assert PreferenceExamples(split, 6).batch([0])[0].tolist() == [[0, 1, 2, 3, 0, 0], [0, 1, 2, 3, 4, 4]]
    for context_length, inputs in ((5, [[1, 2, 3, 0, 0], [1, 2, 3, 4, 4]]), (3, [[3, 0, 0], [3, 4, 4]])):
        examples = PreferenceExamples(split, context_length)
        examples.check(split)
        assert examples.batch([0])[0].tolist() == inputs
    words = r"the answers of pair 1 of train.bin need a context of 3 tokens, but model.context_length is 2: raise it"
    with pytest.raises(ValueError, match=words):
        PreferenceExamples(split, 2).check(split)


def test_unsuitable_data_and_settings_are_refused(workspace, tmp_path):
    config, data = short_config("dpo", workspace), load_data(workspace / "preferences")
    assert resolve_config(config, data)
    for folder in ("pairs", "documents", "conversations"):
        with pytest.raises(
            ValueError, match=rf"the objective dpo needs preferences, and .*{folder} holds none: prepare"
        ):
            resolve_config(config, load_data(workspace / folder))
    with pytest.raises(ValueError, match="init_from is empty: name a run or published weights"):
        resolve_config(change(config, init_from=""), data)
    for packing, stride in (("packed", 0), ("document", 2)):
        with pytest.raises(ValueError, match=rf"packing is '{packing}' and data.stride {stride}, .* 'document' and 0"):
            resolve_config(change(config, data=DataConfig(config.data.path, packing, stride)), data)
    with pytest.raises(ValueError, match=r"label_smoothing is 0\.1, but the objective dpo has no labels"):
        resolve_config(change(config, objective=ObjectiveConfig("dpo", label_smoothing=0.1)), data)
    with pytest.raises(ValueError, match="beta is a setting of dpo and grpo, not of 'sft'"):
        ObjectiveConfig("sft", beta=0.2)
    same = [*PREFERENCES[:4], PREFERENCES[4], PREFERENCES[4]]
    data = write_conversations(tmp_path / "same", data.tokenizer, same, PREFERENCES[:2], preferences=True)
    with pytest.raises(ValueError, match=r"answers of pair 3 of .*train\.bin are the same: leave it out"):
        resolve_config(config, data)


def test_samples_show_the_chosen_answer(workspace):
    objective, config, data = create("dpo", workspace)
    for seed in (0, 3, 12):
        (prompt, _), (chosen, _) = PREFERENCES[40 + 2 * (seed % 10)]
        text = objective.sample(config, data, seed)
        assert text.startswith(prompt)
        assert text.endswith(f"\n(true: {chosen})")
    assert objective.sample(dataclasses.replace(config, sample_prompt="2 and"), data, 0).startswith("2 and")
    assert objective.context_needed(config, data, data.val).tolist() == [
        max(sum(len(part) for part, _ in talk) for talk in PREFERENCES[n : n + 2]) - 1 for n in range(40, 60, 2)
    ]
