"""Known figures of information theory beside their formulas, and their pictures.

    python scripts/information.py
    python scripts/information.py --out runs/information

Entropy, perplexity and losses come from formulas that a pencil can follow. The rest is measured on GPTs with a
vocabulary of seven words, trained on the spot: target probabilities before and after training, calibration with and
without label smoothing, two models on each other's texts. docs/information.md explains them.
"""

from pathlib import Path

from gpt.run.cli import Parser, run


def source(seed: int, likely: float = 0.75):
    """How likely each of seven words follows each, (7, 7): one word by `likely`, the others share what is left."""
    import torch

    after = torch.randperm(7, generator=torch.Generator().manual_seed(seed))
    table = torch.full((7, 7), (1 - likely) / 6)
    return table.scatter(1, after[:, None], likely)


def write(table, n: int, seed: int):
    """n words drawn from such a source, as ids (n,)."""
    import numpy as np

    generator = np.random.default_rng(seed)
    ids = [0]
    for _ in range(n - 1):
        row = table[ids[-1]].double().numpy()
        ids.append(int(generator.choice(7, p=row / row.sum())))
    return np.array(ids)


def windows(tokens):
    """Inputs and targets (B, 16) of a text."""
    import torch

    tokens = torch.as_tensor(tokens)
    n = (len(tokens) - 1) // 16 * 16
    return tokens[:n].view(-1, 16), tokens[1 : n + 1].view(-1, 16)


def new_model():
    """A GPT of 7 words, untrained: the same one each time."""
    import torch

    from gpt import GPTModel

    torch.manual_seed(123)
    shape = {"context_length": 16, "emb_dim": 64, "n_heads": 4, "n_layers": 2, "drop_rate": 0.0}
    return GPTModel({"vocab_size": 7, "qkv_bias": False, "init": "gpt2", **shape})


def train(tokens, steps: int, label_smoothing: float = 0.0):
    """A GPT that has read a text of seven words so many times."""
    import torch

    from gpt.evaluation.information import cross_entropy_loss

    model = new_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    inputs, targets = windows(tokens)
    for _ in range(steps):
        optimizer.zero_grad()
        cross_entropy_loss(model(inputs), targets, label_smoothing=label_smoothing).backward()
        optimizer.step()
    return model


def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument(
        "--out", metavar="FOLDER", help="where the pictures are written (default: they are not; a folder is made)"
    )
    arguments = parser.parse_args()

    import torch

    from gpt.evaluation import information as info
    from gpt.loss import perplexity
    from gpt.ops import reference
    from gpt.system.memory import set_allocator_flags

    set_allocator_flags()
    logits, labels = torch.tensor([[1.0, 2, 3], [3, 2, 1]]), torch.tensor([2, 0])
    loss = info.cross_entropy_loss(logits, labels)
    p, q, coin = [0.5, 0.25, 0.25], [0.25, 0.25, 0.5], [0.9, 0.1]
    seen = [0.5, 0.1, 0.25, 0.9]
    extreme = torch.tensor([[1e4, -1e4]])
    line = [[0.0, 1, 2], [1, 0, 1], [2, 1, 0]]
    near, far = [0.5, 0.5, 0.0], [0.5, 0.0, 0.5]
    figures = [
        ("-ln 0.3", info.information_content(0.3)),
        ("-ln 0.6", info.information_content(0.6)),
        ("entropy of a fair coin, bits", info.entropy([0.5, 0.5], unit="bits")),
        ("entropy of a coin of 0.9, bits", info.entropy(coin, unit="bits")),
        ("H(p), p = (1/2, 1/4, 1/4), nats", info.entropy(p)),
        ("KL(p || q), q = (1/4, 1/4, 1/2)", info.kl_divergence(p, q)),
        ("H(p, q) = H(p) + KL(p || q)", info.cross_entropy(p, q)),
        ("H((0.9, 0.1), fair coin)", info.cross_entropy(coin, [0.5, 0.5])),
        ("H(fair coin, (0.9, 0.1))", info.cross_entropy([0.5, 0.5], coin)),
        ("KL where q rules out what p does not", info.kl_divergence([0.5, 0.5], [1.0, 0.0])),
        ("Jensen-Shannon of the same, bits", info.js_divergence([0.5, 0.5], [1.0, 0.0], unit="bits")),
        ("loss of [[1,2,3],[3,2,1]], labels [2,0]", loss),
        ("its perplexity, e^loss", perplexity(loss)),
        ("loss of 10,000 classes, nothing learnt", info.entropy(torch.zeros(10_000), from_logits=True)),
        ("perplexity of p = 0.5, 0.1, 0.25, 0.9", info.sequence_perplexity(seen)),
        ("the same without 1/n: 1/p(text)", info.sequence_perplexity(seen, per_token=False)),
        ("perplexity where one p is 0", info.sequence_perplexity([*seen, 0.0])),
        ("naive loss -ln(softmax + 1e-12)", -(reference.softmax(extreme) + 1e-12).log()[0, 1]),
        ("the same with log-sum-exp", info.cross_entropy_loss(extreme, [1])),
        ("binary loss, p = 0.9, true", info.binary_cross_entropy([0.9], [1])),
        ("binary loss, p = 0.9, false", info.binary_cross_entropy([0.9], [0])),
    ]
    try:
        figures += [
            ("earth mover's, true word and its neighbour", info.earth_movers_distance([1.0, 0, 0], near, line)),
            ("the same cross-entropy, word further off", info.earth_movers_distance([1.0, 0, 0], far, line)),
        ]
    except ImportError as error:  # the package is not among those that training needs
        print(f"left out: {error}")
    first, second = source(1), source(2)
    text = write(first, 1200, seed=3)
    inputs, targets = windows(text[:65])  # 64 targets

    def target_probabilities(model):
        return torch.softmax(model(inputs).detach(), -1).gather(-1, targets[..., None])[..., 0]  # (B, T)

    before = target_probabilities(new_model())
    after = target_probabilities(train(text[:65], 120))
    figures += [
        ("mean target probability, untrained: ~ 1/7", before.mean()),
        ("the same once 64 targets are learnt by heart", after.mean()),
    ]
    held_out = windows(write(first, 8001, seed=4))
    reliabilities = {}
    for name, smoothing in (("one-hot labels", 0.0), ("label smoothing 0.2", 0.2)):
        predicted = train(text, 110, smoothing)(held_out[0])
        reliabilities[name] = info.reliability(predicted, held_out[1], bins=10, from_logits=True)
        figures.append((f"calibration error, {name}", reliabilities[name].expected_calibration_error))
    other = write(second, 1200, seed=5)
    models = [train(text, 35), train(other, 35)]
    shift = info.domain_shift(models, [write(first, 1601, seed=6), write(second, 1601, seed=7)])
    figures += [(f"model {i + 1} on text {j + 1}, nats per word", shift[i, j]) for i in (0, 1) for j in (0, 1)]
    figures.append(("entropy of the texts' source, nats per word", info.entropy(first[0])))
    for name, figure in figures:
        print(f"{name:<46}{float(figure):>14,.4f}")

    if arguments.out:
        from gpt.run import plots

        folder = Path(arguments.out)
        folder.mkdir(parents=True, exist_ok=True)
        plots.plot_binary_loss(folder / "binary_loss.png")
        plots.plot_coin_entropy(folder / "coin_entropy.png")
        plots.plot_target_probabilities(before, after, 7, folder / "target_probabilities.png")
        plots.plot_reliability(reliabilities, folder / "reliability.png")
        print(f"pictures      {folder}")


if __name__ == "__main__":
    run(main)
