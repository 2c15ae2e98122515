"""Checks of 11_pretrained.ipynb."""

import torch
from exercises import Wrong, called, choice, exercise, number, tensor
from torch.utils._python_dispatch import TorchDispatchMode

PARTS = ("query", "key", "value")


@exercise("11.1")
def split(answer):
    """c_attn (D, 3D) and its bias into three Linear layers."""
    draw = torch.Generator().manual_seed(111)
    for d in (4, 1, 6):
        weight, bias = torch.randn(d, 3 * d, generator=draw), torch.randn(3 * d, generator=draw)
        given = called(answer, weight, bias)
        if not isinstance(given, dict) or set(given) != set(PARTS):
            raise Wrong('Return a dict with the keys "query", "key" and "value".')
        cut, rows = weight.chunk(3, dim=1), weight.reshape(3, d, d)
        spread = [weight[:, i::3] for i in range(3)]
        for i, name in enumerate(PARTS):
            pair = given[name]
            if not isinstance(pair, tuple | list) or len(pair) != 2:
                raise Wrong(f"For {name!r} return a pair: its weight and its bias.")
            others = [j for j in range(3) if j != i]
            mistakes = [
                (
                    cut[i],
                    f"The {name} has the right numbers, but in the layout (in, out). How does nn.Linear store its "
                    "weight?",
                ),
                (rows[i], "The rows are inputs here, and the three matrices are side by side: split the columns."),
                (rows[i].T, "The rows are inputs here, and the three matrices are side by side: split the columns."),
                (spread[i], "The three are not interleaved: the first D columns belong to one of them."),
                (spread[i].T, "The three are not interleaved: the first D columns belong to one of them."),
                *(
                    (cut[j].T, f"Your {name} is another one of the three: the order is query, key, value.")
                    for j in others
                ),
            ]
            tensor(pair[0], cut[i].T, mistakes if d > 1 else mistakes[5:], hint=f"This is the weight of the {name}.")
            wrong = [(bias.chunk(3)[j], f"Your bias of the {name} belongs to another one.") for j in others]
            tensor(pair[1], bias.chunk(3)[i], wrong, hint=f"This is the bias of the {name}.")


class _LargeResults(TorchDispatchMode):
    """Record whether an operation makes a tensor as large as `like`. Views of `like` do not count."""

    def __init__(self, like):
        super().__init__()
        self.like, self.made = like, False

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        result = function(*arguments, **(keywords or {}))
        if isinstance(result, torch.Tensor) and result.numel() >= self.like.numel():
            self.made |= result.untyped_storage().data_ptr() != self.like.untyped_storage().data_ptr()
        return result


@exercise("11.2")
def lora(answer):
    """x W^T + alpha / r (x A^T) B^T."""
    draw = torch.Generator().manual_seed(112)
    for n, n_in, n_out, r, alpha in ((3, 5, 4, 2, 8.0), (1, 4, 4, 1, 3.0), (2, 6, 3, 3, 16.0)):
        x, w = torch.randn(n, n_in, generator=draw), torch.randn(n_out, n_in, generator=draw)
        a, b = torch.randn(r, n_in, generator=draw), torch.randn(n_out, r, generator=draw)
        plain, low = x @ w.T, (x @ a.T) @ b.T
        mistakes = [
            (plain, "That is W alone: where is the update?"),
            (low, "That is the update alone, without its factor: W is missing."),
            (alpha / r * low, "That is the update alone: W is missing."),
            (plain + low, "The update is not scaled. By which factor should it be?"),
            (plain + alpha * low, "The factor is not alpha alone: a higher rank should not make the update larger."),
            (plain + low / r, "The factor is not 1 / r alone."),
            (plain + r / alpha * low, "The factor is inverted."),
            (plain * (1 + alpha / r) + low, "The factor belongs to the update, not to W."),
            (alpha / r * (plain + low), "The factor belongs to the update alone."),
        ]
        tensor(called(answer, x, w, a, b, alpha), plain + alpha / r * low, mistakes)
    x, w, a, b = torch.ones(1, 500), torch.ones(500, 500), torch.ones(2, 500), torch.ones(500, 2)
    with _LargeResults(w) as watch:
        answer(x, w, a, b, 1.0)
    if watch.made:
        raise Wrong(
            "The numbers are right. But you make a matrix as large as W on the way. In which order do the products "
            "stay narrow?"
        )


@exercise("11.3")
def how_many(answer):
    """12 blocks, 2 matrices, A and B of rank 4."""
    right = 12 * 2 * 2 * 4 * 768
    number(
        answer,
        right,
        mistakes=[
            (right / 2, "You miss either one of A and B, or one of W_query and W_value."),
            (right / 4, "Count A and B, for both W_query and W_value."),
            (right / 12, "That is one block."),
            (12 * 2 * 768 * 768, "Those are the matrices themselves. An update of rank 4 is much smaller."),
            (right / 2 * 3, "Only W_query and W_value have updates; W_key has none."),
            (right * 2, "That is twice too many. The rank is 4, and a block has two updated matrices, not four."),
            (right * 12, "Heads split the width; they do not multiply anything."),
        ],
        hint="A is (r, in), B is (out, r).",
        tolerance=1e-6,
    )


@exercise("11.4")
def cause(answer):
    """10.8 = ln 50257: random weights."""
    choice(
        answer,
        "b",
        {
            "a": "That would cost something. But would the rest of the model then know nothing? What is 10.8?",
            "c": "Spelling costs hundredths. What is 10.8?",
            "d": "Dropout costs a few tenths of a nat. What is 10.8?",
        },
    )
