"""gpt/objectives/grpo.py: advantages and gradients by hand, and against an enumeration of all that a tiny model can
write; what is sampled; what is refused."""

import itertools
import math

import pytest
import torch

from gpt.config import GPTConfig, ObjectiveConfig
from gpt.model import GPTModel
from gpt.objectives.grpo import GRPO, kl_estimate
from gpt.objectives.rewards import Reward
from gpt.objectives.rollouts import Prompt, Rollout, advantages, sample_rollouts
from gpt.ops.reference import IGNORE_INDEX
from gpt.tokenizer import CharTokenizer

TOKENIZER = CharTokenizer("ab", end_of_text=True)
END = TOKENIZER.eot_id
RIGHT = {"a", "ba", "aab", "bb"}  # completions that are rewarded
N_TOKENS = 4  # of a completion at most, its end included: the context of the tiny model


def is_right(prompt, completion, answer=""):
    return 1.0 if completion in RIGHT else 0.0


def viable(prompt, completion, answer=""):
    return max(n for n in range(len(completion) + 1) if any(text.startswith(completion[:n]) for text in RIGHT))


TOY = Reward("toy", is_right, lambda text: text[:1], viable)


def tiny(seed=0, **settings):
    """A GRPO objective of a model that writes up to N_TOKENS of a, b and end-of-text, in float64."""
    torch.manual_seed(seed)
    config = GPTConfig(TOKENIZER.vocab_size, N_TOKENS, emb_dim=8, n_heads=2, n_layers=1, drop_rate=0.2, init="gpt2")
    model, start = GPTModel(config).double(), GPTModel(config).double().eval().requires_grad_(False)
    settings = {"name": "grpo", "reward": "exact_match", "beta": 0.0, **settings}
    objective = GRPO(model, ObjectiveConfig(**settings), start)
    objective.reward = TOY
    return objective


def gradients(objective):
    found = torch.cat([p.grad.flatten() for p in objective.model.parameters() if p.grad is not None])
    objective.zero_grad(set_to_none=True)
    return found


def rollout(reward, n, kind="", error=None, start=1):
    return Rollout(list(range(start + n)), start, float(reward), kind, start + (n if error is None else error))


# --- advantages -------------------------------------------------------------------------------------------------------


def test_advantages_by_hand():
    group = [rollout(1, 3), rollout(0, 2, error=1), rollout(0, 4, error=0), rollout(1, 2)]
    for found, value, n in zip(
        advantages(group, "group", "answer", False), (0.5, -0.5, -0.5, 0.5), (3, 2, 4, 2), strict=True
    ):
        assert found.tolist() == [value] * n
    # all four are right before the first token; three before the second; two afterwards
    truth = [[1 / 2, 1 / 3, 0], [-1 / 2, -2 / 3], [-1 / 2, 0, 0, 0], [1 / 2, 1 / 3]]
    for found, values in zip(advantages(group, "group", "error", False), truth, strict=True):
        assert found.tolist() == pytest.approx(values)
    normalized = advantages(group, "group", "answer", True)
    assert [value[0] for value in normalized] == pytest.approx([1, -1, -1, 1], abs=1e-5)


def test_a_kind_is_compared_with_its_like():
    group = [rollout(1, 1, "two"), rollout(1, 1, "two"), rollout(0, 1, "two"), rollout(0, 1, "three"), rollout(1, 1)]
    found = [float(value[0]) for value in advantages(group, "kind", "answer", False)]
    assert found == pytest.approx([1 / 3, 1 / 3, -2 / 3, 0, 0])


def test_a_group_without_differences_teaches_nothing():
    for credit, normalize, reward in itertools.product(("answer", "error"), (False, True), (0, 1)):
        group = [rollout(reward, n, error=None if reward else 0) for n in (1, 3)]
        assert all((value == 0).all() for value in advantages(group, "group", credit, normalize))


# --- gradients --------------------------------------------------------------------------------------------------------


def batch(objective):
    """Two rows, the first with a prompt of two tokens; the second is shorter."""
    inputs = torch.tensor([[END, 0, 1], [END, 1, 0]])
    targets = torch.tensor([[IGNORE_INDEX, 1, END], [1, END, IGNORE_INDEX]])
    advantage = torch.tensor([[9.0, 0.7, -0.4], [0.3, -1.2, 9.0]], dtype=torch.double)
    with torch.no_grad():
        logits = objective.model.eval()(inputs).log_softmax(-1)
    own = logits.gather(-1, targets.clamp(min=0)[..., None])[..., 0]
    ratio = torch.tensor([[1.0, 1.5, 0.9], [0.6, 1.05, 1.0]], dtype=torch.double)  # p now / p when sampled
    return inputs, targets, advantage, own - ratio.log(), ratio


@pytest.mark.parametrize(
    "settings", [{}, {"passes": 2}, {"passes": 2, "clip": 0.2}, {"passes": 2, "clip": 0.2, "beta": 0.3}]
)
def test_gradient_by_hand(settings):
    """d loss / d logits = -weight · (1[target] - p) at each token, so that the head's gradient is a sum over tokens."""
    objective = tiny(**settings)
    inputs, targets, advantage, before, ratio = batch(objective)
    loss, n = objective.train()(inputs=inputs, targets=targets, advantages=advantage, before=before)
    loss.backward()
    model = objective.model.eval()
    hidden = model.hidden_states(inputs)  # (B, T, D)
    p = model.out_head(hidden).softmax(-1)
    q = objective.reference(inputs).softmax(-1)
    truth, value = torch.zeros_like(model.out_head.weight), 0.0
    for row, t in (targets != IGNORE_INDEX).nonzero().tolist():
        y, a, r = int(targets[row, t]), float(advantage[row, t]), float(ratio[row, t])
        weight = a * r if settings.get("passes") else a
        if settings.get("clip") and ((a > 0 and r > 1.2) or (a < 0 and r < 0.8)):
            weight = 0.0  # the clipped ratio is the smaller gain, and constant
        weight += settings.get("beta", 0.0) * (float((q / p)[row, t, y].detach()) - 1)  # of r - ln r - 1
        one_hot = torch.eye(TOKENIZER.vocab_size, dtype=torch.double)[y]
        truth -= weight * torch.outer(one_hot - p[row, t], hidden[row, t])
        value -= math.log(float(p[row, t, y].detach()))
    assert int(n) == 4
    assert loss.item() == pytest.approx(value)
    torch.testing.assert_close(model.out_head.weight.grad, truth.detach())


def test_kl_estimate_is_the_divergence_on_average():
    p, q = torch.tensor([0.5, 0.3, 0.15, 0.05]).double(), torch.tensor([0.25, 0.25, 0.3, 0.2]).double()
    estimate = kl_estimate(p.log(), q.log())
    assert (estimate >= 0).all()
    assert float((p * estimate).sum()) == pytest.approx(float((p * (p / q).log()).sum()))


def completions():
    """Every completion that the tiny model can write, with the ids that the model is to predict."""
    for n in range(N_TOKENS + 1):
        for text in itertools.product("ab", repeat=n):
            ids = [TOKENIZER.encode(c)[0] for c in text]
            if n < N_TOKENS:
                yield "".join(text), [*ids, END]
            else:
                yield None, ids  # not ended: no reward


def expected_reward(model):
    """The exact expectation, and the sum of all probabilities."""
    total = reward = 0.0
    for text, ids in completions():
        log_p = model(torch.tensor([[END, *ids[:-1]]])).log_softmax(-1)[0]
        p = log_p.gather(-1, torch.tensor(ids)[:, None]).sum().exp()
        total, reward = total + p, reward + p * (text in RIGHT)
    return reward, total


@pytest.mark.parametrize("credit", ["answer", "error"])
def test_the_policy_gradient_is_that_of_the_expected_reward(credit):
    """Against all that the model can write, within four standard errors."""
    size, n_groups = 256, 60
    objective = tiny(credit=credit, group_size=size)
    reward, total = expected_reward(objective.model.eval())
    assert float(total) == pytest.approx(1)
    assert 0.1 < float(reward) < 0.9
    reward.backward()
    # a group's own mean takes away 1 / size of the gradient: each completion is compared with itself, too
    truth = -gradients(objective) * (1 if credit == "error" else 1 - 1 / size)
    found = []
    for seed in range(n_groups):
        group, _ = sample_rollouts(objective.model, TOKENIZER, [Prompt([END], "", END)], size, [seed], TOY)
        inputs, targets, advantage = objective._rows(group)[:3]
        objective(inputs.long(), targets.long(), advantage.double(), torch.zeros(0))[0].backward()
        found.append(gradients(objective) / size)
    found = torch.stack(found)
    error = found.std(0) / n_groups**0.5
    # alive completions are fewer than `size`, of which their own mean takes away a little more: at most 1 / 30 here
    slack = truth.abs() / 30 if credit == "error" else 0
    assert ((found.mean(0) - truth).abs() <= 4 * error + slack + 1e-12).all()
    assert (truth.abs() > 8 * error).any(), "the samples tell the gradient from none"
