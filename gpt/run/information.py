"""The output of scripts/information.py: known figures of information theory, and pictures of them."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from gpt.evaluation import information as info
from gpt.evaluation.markov import create_gpt, sample_words, split_examples, train_gpt, transition_matrix
from gpt.loss import perplexity
from gpt.model import GPTModel
from gpt.ops import reference

Figure = tuple[str, Tensor | float]  # a name and a number


@dataclass(frozen=True, eq=False)  # tensors have no truth value
class Experiments:
    """Results of training GPTs on Markov chains."""

    figures: list[Figure]
    untrained: Tensor  # probabilities of the targets in a batch, (B, T)
    trained: Tensor  # the same after training on this batch
    reliability: dict[str, info.Reliability]  # by kind of labels


def known_figures() -> list[Figure]:
    """Return figures that a pencil can check."""
    logits, labels = torch.tensor([[1.0, 2, 3], [3, 2, 1]]), torch.tensor([2, 0])
    loss = info.cross_entropy_loss(logits, labels)
    p, q, coin = [0.5, 0.25, 0.25], [0.25, 0.25, 0.5], [0.9, 0.1]
    text = [0.5, 0.1, 0.25, 0.9]
    extreme = torch.tensor([[1e4, -1e4]])
    return [
        ("-ln 0.3", info.information_content(0.3)),
        ("-ln 0.6", info.information_content(0.6)),
        ("entropy of a fair coin, bits", info.entropy([0.5, 0.5], unit="bits")),
        ("entropy of a coin of 0.9, bits", info.entropy(coin, unit="bits")),
        ("H(p), p = (1/2, 1/4, 1/4), nats", info.entropy(p)),
        ("KL(p || q), q = (1/4, 1/4, 1/2)", info.kl_divergence(p, q)),
        ("H(p, q) = H(p) + KL(p || q)", info.cross_entropy(p, q)),
        ("H((0.9, 0.1), fair coin)", info.cross_entropy(coin, [0.5, 0.5])),
        ("H(fair coin, (0.9, 0.1))", info.cross_entropy([0.5, 0.5], coin)),
        ("KL if q is 0 where p is not", info.kl_divergence([0.5, 0.5], [1.0, 0.0])),
        ("Jensen-Shannon of the same, bits", info.js_divergence([0.5, 0.5], [1.0, 0.0], unit="bits")),
        ("loss of [[1,2,3],[3,2,1]], labels [2,0]", loss),
        ("its perplexity, e^loss", perplexity(loss)),
        ("loss of a guess among 10,000 classes", info.entropy(torch.zeros(10_000), from_logits=True)),
        ("perplexity of p = 0.5, 0.1, 0.25, 0.9", info.sequence_perplexity(text)),
        ("the same without 1/n: 1/p(text)", info.sequence_perplexity(text, per_token=False)),
        ("perplexity if one p is 0", info.sequence_perplexity([*text, 0.0])),
        ("naive loss -ln(softmax + 1e-12)", -(reference.softmax(extreme) + 1e-12).log()[0, 1]),
        ("the same with log-sum-exp", info.cross_entropy_loss(extreme, [1])),
        ("binary loss, p = 0.9, true", info.binary_cross_entropy([0.9], [1])),
        ("binary loss, p = 0.9, false", info.binary_cross_entropy([0.9], [0])),
    ]


def transport_figures() -> list[Figure]:
    """Return two earth mover's distances between predictions of the same cross-entropy. ImportError without scipy."""
    distances = [[0.0, 1, 2], [1, 0, 1], [2, 1, 0]]
    near, far = [0.5, 0.5, 0.0], [0.5, 0.0, 0.5]
    return [
        ("earth mover's, true word and its neighbour", info.earth_movers_distance([1.0, 0, 0], near, distances)),
        ("the same cross-entropy, word further off", info.earth_movers_distance([1.0, 0, 0], far, distances)),
    ]


def run_experiments() -> Experiments:
    """Train GPTs on two Markov chains; measure target probabilities, calibration and domain shift."""
    first, second = transition_matrix(1), transition_matrix(2)
    text, other_text = sample_words(first, 1200, seed=3), sample_words(second, 1200, seed=5)
    inputs, targets = split_examples(text[:65])  # 64 targets

    def target_probabilities(model: GPTModel) -> Tensor:
        return torch.softmax(model(inputs).detach(), -1).gather(-1, targets[..., None])[..., 0]  # (B, T)

    untrained, trained = target_probabilities(create_gpt()), target_probabilities(train_gpt(text[:65], 120))
    figures = [
        ("mean target probability, untrained: ~ 1/7", untrained.mean()),
        ("the same after training on these 64 targets", trained.mean()),
    ]
    held_out = split_examples(sample_words(first, 8001, seed=4))
    reliability = {}
    for name, smoothing in (("one-hot labels", 0.0), ("label smoothing 0.2", 0.2)):
        logits = train_gpt(text, 110, smoothing)(held_out[0])
        reliability[name] = info.reliability(logits, held_out[1], bins=10, from_logits=True)
        figures.append((f"calibration error, {name}", reliability[name].expected_calibration_error))
    models = [train_gpt(text, 35), train_gpt(other_text, 35)]
    shift = info.domain_shift(models, [sample_words(first, 1601, seed=6), sample_words(second, 1601, seed=7)])
    figures += [(f"model {i + 1} on text {j + 1}, nats per word", shift[i, j]) for i in (0, 1) for j in (0, 1)]
    figures.append(("entropy of the texts' source, nats per word", info.entropy(first[0])))
    return Experiments(figures, untrained, trained, reliability)


def print_figures(figures: list[Figure]) -> None:
    """Print a line for each figure."""
    for name, number in figures:
        print(f"{name:<46}{float(number):>14,.4f}")


def draw_pictures(experiments: Experiments, folder: Path) -> None:
    """Draw four pictures in a folder, created if need be."""
    from gpt.run import information_plots as plots  # importing matplotlib takes half a second

    folder.mkdir(parents=True, exist_ok=True)
    plots.plot_binary_loss(folder / "binary_loss.png")
    plots.plot_coin_entropy(folder / "coin_entropy.png")
    plots.plot_target_probabilities(experiments.untrained, experiments.trained, 7, folder / "target_probabilities.png")
    plots.plot_reliability(experiments.reliability, folder / "reliability.png")
