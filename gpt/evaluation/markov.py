"""Small GPTs trained on a Markov chain of seven words, whose entropy is known: examples for information theory."""

import numpy as np
import torch
from torch import Tensor

from gpt.evaluation.information import cross_entropy_loss
from gpt.model import GPTModel

N_WORDS = 7
CONTEXT_LENGTH = 16


def transition_matrix(seed: int, p_likely: float = 0.75) -> Tensor:
    """Return p(next word | word), (7, 7): one next word has probability `p_likely`, the others share the rest."""
    likely = torch.randperm(N_WORDS, generator=torch.Generator().manual_seed(seed))
    matrix = torch.full((N_WORDS, N_WORDS), (1 - p_likely) / (N_WORDS - 1))
    return matrix.scatter(1, likely[:, None], p_likely)


def sample_words(matrix: Tensor, n: int, seed: int) -> np.ndarray:
    """Return n words drawn from a chain, as token ids, (n,); the first word is 0."""
    rng = np.random.default_rng(seed)
    ids = [0]
    for _ in range(n - 1):
        row = matrix[ids[-1]].double().numpy()
        ids.append(int(rng.choice(N_WORDS, p=row / row.sum())))
    return np.array(ids)


def split_examples(tokens: np.ndarray) -> tuple[Tensor, Tensor]:
    """Return the inputs and targets of a text, (B, 16) each."""
    tokens = torch.as_tensor(tokens)
    n = (len(tokens) - 1) // CONTEXT_LENGTH * CONTEXT_LENGTH
    return tokens[:n].view(-1, CONTEXT_LENGTH), tokens[1 : n + 1].view(-1, CONTEXT_LENGTH)


def create_gpt() -> GPTModel:
    """Return an untrained GPT of seven words; its weights are the same at each call."""
    torch.manual_seed(123)
    shape = {"context_length": CONTEXT_LENGTH, "emb_dim": 64, "n_heads": 4, "n_layers": 2, "drop_rate": 0.0}
    return GPTModel({"vocab_size": N_WORDS, "qkv_bias": False, "init": "gpt2", **shape})


def train_gpt(tokens: np.ndarray, steps: int, label_smoothing: float = 0.0) -> GPTModel:
    """Return a GPT trained for `steps` steps, each on the whole text."""
    model = create_gpt()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    inputs, targets = split_examples(tokens)
    for _ in range(steps):
        optimizer.zero_grad()
        cross_entropy_loss(model(inputs), targets, label_smoothing=label_smoothing).backward()
        optimizer.step()
    return model
