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
            raise Wrong('A dict with the keys "query", "key" and "value" is asked for.')
        cut, rows = weight.chunk(3, dim=1), weight.reshape(3, d, d)
        spread = [weight[:, i::3] for i in range(3)]
        for i, name in enumerate(PARTS):
            pair = given[name]
            if not isinstance(pair, tuple | list) or len(pair) != 2:
                raise Wrong(f"For {name!r} a pair is asked for: its weight, and its bias.")
            others = [j for j in range(3) if j != i]
            mistakes = [
                (
                    cut[i],
                    f"The {name} has the right numbers, but they lie as (in, out). How does nn.Linear keep its weight?",
                ),
                (rows[i], "The rows are inputs here, and the three matrices stand side by side: cut the columns."),
                (rows[i].T, "The rows are inputs here, and the three matrices stand side by side: cut the columns."),
                (spread[i], "The three are not interleaved: the first D columns belong to one."),
                (spread[i].T, "The three are not interleaved: the first D columns belong to one."),
                *(
                    (cut[j].T, f"What you call the {name} is another one of the three: they come as query, key, value.")
                    for j in others
                ),
            ]
            tensor(pair[0], cut[i].T, mistakes if d > 1 else mistakes[5:], hint=f"This is the weight of the {name}.")
            wrong = [(bias.chunk(3)[j], f"The bias of the {name} is another one's.") for j in others]
            tensor(pair[1], bias.chunk(3)[i], wrong, hint=f"This is the bias of the {name}.")


class _LargeResults(TorchDispatchMode):
    """Whether an operation makes a tensor as large as `like`; a view of it, such as its transpose, makes nothing."""

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
            (low, "That is the update alone, and without its factor: W stays."),
            (alpha / r * low, "That is the update alone: W stays, and both are added."),
            (plain + low, "The update is not scaled: by which factor?"),
            (plain + alpha * low, "The factor is not alpha alone: a higher rank should not make the update larger."),
            (plain + low / r, "The factor is not 1 / r alone."),
            (plain + r / alpha * low, "The factor is the other way round."),
            (plain * (1 + alpha / r) + low, "The factor belongs to the update, not to W."),
            (alpha / r * (plain + low), "The factor belongs to the update alone."),
        ]
        tensor(called(answer, x, w, a, b, alpha), plain + alpha / r * low, mistakes)
    x, w, a, b = torch.ones(1, 500), torch.ones(500, 500), torch.ones(2, 500), torch.ones(500, 2)
    with _LargeResults(w) as watch:
        answer(x, w, a, b, 1.0)
    if watch.made:
        raise Wrong(
            "The numbers are right. But a matrix as large as W is made on the way: in which order do the products stay narrow?"
        )


@exercise("11.3")
def how_many(answer):
    """12 blocks, 2 matrices, A and B of rank 4."""
    right = 12 * 2 * 2 * 4 * 768
    number(
        answer,
        right,
        mistakes=[
            (right / 2, "Either one of A and B, or one of W_query and W_value, is missing."),
            (right / 4, "A and B, for W_query and for W_value."),
            (right / 12, "That is one block's."),
            (12 * 2 * 768 * 768, "Those are the matrices themselves. An update of rank 4 is much smaller."),
            (right / 4 * 8, "The rank is 4 here."),
            (right / 2 * 3, "W_query and W_value: W_key has no update."),
            (right * 2, "Two matrices are updated in each block, not four."),
            (right * 12, "The heads share out the width; they don't multiply anything."),
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
            "a": "That would cost something; but would all the rest of the model know nothing then? What is 10.8?",
            "c": "Spelling costs hundredths. What is 10.8?",
            "d": "Dropout costs some tenths of a nat. What is 10.8?",
        },
    )
