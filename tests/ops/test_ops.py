"""Both implementations of ops against PyTorch's own functions: values and gradients."""

import inspect
import math

import pytest
import torch
import torch.nn.functional as F
from numerics import tolerance
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from gpt.ops import fused, reference
from gpt.system import chunked_loss, kernels

OPS = pytest.mark.parametrize("ops", [reference, fused], ids=["reference", "fused"])
OPS_AND_DTYPE = pytest.mark.parametrize(
    ("ops", "dtype"),
    [(reference, torch.float64), (fused, torch.float64), (fused, torch.float32)],
    ids=["reference-float64", "fused-float64", "fused-float32"],
)
REDUCTIONS = ("mean", "sum", "none")


def assert_close(value, truth):
    """Equal but for rounding: sums of at most a thousand terms, each of size 10 or of the size of the result."""
    atol = tolerance(1000, 10, truth.detach() if truth.numel() else 0, dtype=truth.dtype)
    torch.testing.assert_close(value, truth, rtol=0, atol=atol)


def value_and_gradients(function, inputs):
    """The function's value and the gradients of a fixed weighting of it with respect to each input."""
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    value = function(*leaves)
    weights = torch.linspace(-1, 2, value.numel(), dtype=value.dtype).view(value.shape)
    return value.detach(), torch.autograd.grad((value * weights).sum(), leaves)


def assert_same(ours, truth, inputs):
    value, gradients = value_and_gradients(ours, inputs)
    true_value, true_gradients = value_and_gradients(truth, inputs)
    assert_close(value, true_value)
    for gradient, true_gradient in zip(gradients, true_gradients, strict=True):
        assert_close(gradient, true_gradient)


def test_both_files_have_the_same_functions():
    def functions(module):
        found = inspect.getmembers(module, inspect.isfunction)
        return {n: str(inspect.signature(f)) for n, f in found if f.__module__ == module.__name__ and n[0] != "_"}

    plain, fast = functions(reference), functions(fused)
    names = {"softmax", "linear", "layer_norm", "rms_norm", "gelu", "relu2", "swiglu", "rotate", "attention"}
    names |= {"cross_entropy", "linear_cross_entropy"}
    assert set(fast) == names
    assert fast == {name: plain[name] for name in names}


@OPS_AND_DTYPE
def test_softmax(ops, dtype):
    x = torch.randn(5, 7, dtype=dtype) * 4
    for dim in (-1, 0):
        assert_same(lambda x, dim=dim: ops.softmax(x, dim), lambda x, dim=dim: torch.softmax(x, dim), [x])


@OPS
def test_softmax_does_not_overflow(ops):
    probabilities = ops.softmax(torch.tensor([1e4, 1e4, -1e4]))
    torch.testing.assert_close(probabilities, torch.tensor([0.5, 0.5, 0.0]))


@OPS_AND_DTYPE
def test_layer_norm(ops, dtype):
    x, scale, shift = torch.randn(2, 3, 8, dtype=dtype), torch.randn(8, dtype=dtype), torch.randn(8, dtype=dtype)
    assert_same(ops.layer_norm, lambda x, w, b: F.layer_norm(x, (8,), w, b, 1e-5), [x, scale, shift])


@OPS_AND_DTYPE
def test_gelu(ops, dtype):
    x = torch.linspace(-6, 6, 101, dtype=dtype)
    assert_same(ops.gelu, lambda x: F.gelu(x, approximate="tanh"), [x])
    assert_same(lambda x: ops.gelu(x, exact=True), F.gelu, [x])


@OPS_AND_DTYPE
def test_rms_norm(ops, dtype):
    x, scale = torch.randn(2, 3, 8, dtype=dtype), torch.randn(8, dtype=dtype)
    assert_same(ops.rms_norm, lambda x, w: F.rms_norm(x, (8,), w, 1e-5), [x, scale])
    assert_same(ops.rms_norm, lambda x, w: x / x.norm(dim=-1, keepdim=True) * 8**0.5 * w, [x * 1e4, scale])


@OPS_AND_DTYPE
def test_squared_relu_and_swiglu(ops, dtype):
    gate, up = torch.linspace(-6, 6, 101, dtype=dtype), torch.randn(101, dtype=dtype)
    assert_same(ops.relu2, lambda x: F.relu(x) ** 2, [gate])
    assert_same(ops.swiglu, lambda g, u: F.silu(g) * u, [gate, up])


@OPS_AND_DTYPE
def test_rotate_multiplies_pairs_as_complex_numbers(ops, dtype):
    """(x_i, x_{i+K/2}) as a complex number, times exp(i · position · 100^(-2i/K))."""
    x, positions = torch.randn(2, 3, 5, 8, dtype=dtype), torch.tensor([0, 1, 2, 30, 7])
    angles = positions[:, None].double() * 100.0 ** (-torch.arange(4) / 4)

    def truth(x):
        turned = torch.complex(x[..., :4].double(), x[..., 4:].double()) * torch.polar(torch.ones_like(angles), angles)
        return torch.cat([turned.real, turned.imag], dim=-1).to(dtype)

    tables = reference.rotary_tables(positions, 8, theta=100.0)
    value, gradients = value_and_gradients(lambda x: ops.rotate(x, *tables), [x])
    true_value, true_gradients = value_and_gradients(truth, [x])
    for a, b in zip([value, *gradients], [true_value, *true_gradients], strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=2e-5)  # the angles are float32, up to 30


@pytest.mark.parametrize("scaling", [1.0, 8.0])
def test_rotary_tables_are_those_of_transformers(scaling):
    """Llama 3.1's settings; a scaling of 1 is plain RoPE."""
    transformers = pytest.importorskip("transformers")
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    rope = {"rope_type": "default", "rope_theta": 5e5}
    if scaling != 1:
        rope |= {"rope_type": "llama3", "factor": scaling, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
        rope |= {"original_max_position_embeddings": 8192}
    config = transformers.LlamaConfig(
        hidden_size=128, num_attention_heads=2, max_position_embeddings=131072, rope_parameters=rope
    )
    positions = torch.arange(0, 131072, 997)
    cosine, sine = LlamaRotaryEmbedding(config)(torch.zeros(1), positions[None])
    ours, our_sine = reference.rotary_tables(positions, 64, 5e5, scaling, 8192)
    error = 131072 * 4 * torch.finfo(torch.float32).eps  # of the angle, which the frequency's rounding multiplies
    torch.testing.assert_close(ours, cosine[0], rtol=0, atol=error)
    torch.testing.assert_close(our_sine[:, 32:], sine[0, :, 32:], rtol=0, atol=error)
    assert torch.equal(our_sine[:, :32], -our_sine[:, 32:])
    assert (ours - reference.rotary_tables(positions, 64, 5e5)[0]).abs().max() > (0.5 if scaling != 1 else -1)


def masks(n_queries, n_keys):
    """Return masks by name, each with the same as a boolean table, written by loops."""
    causal = torch.tensor([[k <= q + n_keys - n_queries for k in range(n_keys)] for q in range(n_queries)])
    holes = torch.rand(2, 1, n_queries, n_keys) < 0.6
    holes[..., 0] = True  # each query sees something
    return {"causal": ("causal", causal), "full": ("full", torch.ones_like(causal)), "tensor": (holes, holes)}


@OPS_AND_DTYPE
@pytest.mark.parametrize(
    ("mask_name", "n_queries"),
    [("causal", 6), ("causal", 1), ("causal", 3), ("full", 6), ("full", 3), ("tensor", 6), ("tensor", 1)],
)
def test_attention_against_pytorchs_math_kernel(ops, dtype, mask_name, n_queries):
    """Six keys; with fewer queries the first keys are those of a cache."""
    n_keys = 6
    query = torch.randn(2, 3, n_queries, 4, dtype=dtype)
    key, value = (torch.randn(2, 3, n_keys, 4, dtype=dtype) for _ in range(2))
    mask, meaning = masks(n_queries, n_keys)[mask_name]

    def truth(q, k, v):
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            return F.scaled_dot_product_attention(q, k, v, meaning)

    assert_same(lambda q, k, v: ops.attention(q, k, v, mask), truth, [query, key, value])


@OPS_AND_DTYPE
@pytest.mark.parametrize("window", [0, 1, 3, 6, 9])
@pytest.mark.parametrize(
    ("mask_name", "n_queries"), [("causal", 6), ("causal", 1), ("causal", 3), ("full", 6), ("tensor", 6), ("tensor", 1)]
)
def test_grouped_attention_in_a_window(ops, dtype, mask_name, n_queries, window):
    """Four heads of queries on two of keys, each query on its own and the window - 1 keys before it."""
    n_keys = 6
    query = torch.randn(2, 4, n_queries, 8, dtype=dtype)
    key, value = (torch.randn(2, 2, n_keys, 8, dtype=dtype) for _ in range(2))
    mask, meaning = masks(n_queries, n_keys)[mask_name]
    near = [[not window or q + n_keys - n_queries - k < window for k in range(n_keys)] for q in range(n_queries)]
    if isinstance(mask, torch.Tensor):
        mask[..., range(n_queries), range(n_keys - n_queries, n_keys)] = True  # each query sees itself
    meaning = meaning & torch.tensor(near)

    def truth(q, k, v):
        k, v = (torch.stack([x[:, 0], x[:, 0], x[:, 1], x[:, 1]], dim=1) for x in (k, v))
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            return F.scaled_dot_product_attention(q, k, v, meaning)

    assert_same(lambda q, k, v: ops.attention(q, k, v, mask, window=window), truth, [query, key, value])


def test_attention_weights_are_a_softmax_over_visible_keys():
    query, key = torch.randn(1, 1, 4, 8), torch.randn(1, 1, 4, 8)
    weights = reference.attention_weights(query, key)[0, 0]
    for q in range(4):
        scores = torch.stack([query[0, 0, q] @ key[0, 0, k] / 8**0.5 for k in range(q + 1)])
        torch.testing.assert_close(weights[q, : q + 1], torch.softmax(scores, 0))
        assert (weights[q, q + 1 :] == 0).all()


def test_dropout_keeps_the_expectation_and_drops_the_share():
    x = torch.randn(5, 7)
    torch.manual_seed(1)
    truth = torch.nn.Dropout(0.25)(x), torch.rand(3)
    torch.manual_seed(1)
    assert all(map(torch.equal, (reference.dropout(x, 0.25), torch.rand(3)), truth))  # and draws what PyTorch draws
    dropped = reference.dropout(torch.ones(200_000), 0.25)
    torch.testing.assert_close(dropped.unique(), torch.tensor([0.0, 4 / 3]))
    assert abs((dropped == 0).float().mean() - 0.25) < 0.005
    assert abs(dropped.mean() - 1) < 0.01
    ones = torch.ones(3)
    assert reference.dropout(ones, 0) is ones


@OPS
def test_attention_drops_weights_at_the_given_rate(ops):
    query, key = torch.zeros(1, 1, 1, 4), torch.zeros(1, 1, 20_000, 4)  # equal scores: each weight is 1 / 20,000
    kept = ops.attention(query, key, torch.ones(1, 1, 20_000, 1).expand(-1, -1, -1, 4), "full", 0.3)
    assert 0.97 < kept.mean() < 1.03
    assert (kept != 1).any()


TARGETS = torch.tensor([3, -100, 0, 10, 10, -100, 7, 1, 2])


@OPS_AND_DTYPE
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy(ops, dtype, smoothing):
    logits = torch.randn(9, 11, dtype=dtype) * 3
    for reduction in REDUCTIONS:
        assert_same(
            lambda x, r=reduction: ops.cross_entropy(x, TARGETS, r, smoothing),
            lambda x, r=reduction: F.cross_entropy(x, TARGETS, reduction=r, label_smoothing=smoothing),
            [logits],
        )


@OPS
def test_cross_entropy_of_extreme_logits(ops):
    logits = torch.tensor([[1e4, -1e4], [1e4, -1e4]])
    losses = ops.cross_entropy(logits, torch.tensor([0, 1]), "none")
    torch.testing.assert_close(losses, torch.tensor([0.0, 2e4]))


@OPS_AND_DTYPE
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("max_logits", [25, 2**24], ids=["chunks of two rows", "one chunk"])
def test_linear_cross_entropy(ops, dtype, smoothing, max_logits, monkeypatch):
    monkeypatch.setattr(chunked_loss, "MAX_LOGITS", max_logits)
    hidden, weight = torch.randn(9, 4, dtype=dtype), torch.randn(11, 4, dtype=dtype)
    for reduction in REDUCTIONS:

        def ours(hidden, weight, reduction=reduction):
            return ops.linear_cross_entropy(hidden, weight, TARGETS, reduction, smoothing)

        def truth(hidden, weight, reduction=reduction):
            return F.cross_entropy(hidden @ weight.T, TARGETS, reduction=reduction, label_smoothing=smoothing)

        assert_same(ours, truth, [hidden, weight])
        assert_same(lambda h, f=ours: f(h, weight), lambda h, f=truth: f(h, weight), [hidden])  # a frozen head
        assert_same(lambda w, f=ours: f(hidden, w), lambda w, f=truth: f(hidden, w), [weight])
        with torch.no_grad():  # takes another path
            assert_close(ours(hidden, weight), truth(hidden, weight))


@OPS
def test_smoothed_cross_entropy_by_hand(ops):
    """p = (1/2, 1/4, 1/4), and the label (0.8, 0.1, 0.1) in place of (0.7 + 0.1, 0.1, 0.1): H = -sum label ln p."""
    logits = torch.tensor([[2.0, 1.0, 1.0]]).log()
    expected = torch.tensor(0.8 * math.log(2) + 0.1 * math.log(4) + 0.1 * math.log(4))
    torch.testing.assert_close(ops.cross_entropy(logits, torch.tensor([0]), "mean", 0.3), expected)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_linear_cross_entropy_passes_gradcheck(smoothing, monkeypatch):
    monkeypatch.setattr(chunked_loss, "MAX_LOGITS", 25)
    hidden = torch.randn(9, 4, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(11, 4, dtype=torch.float64, requires_grad=True)

    def loss(hidden, weight):
        return fused.linear_cross_entropy(hidden, weight, TARGETS, "mean", smoothing)

    assert torch.autograd.gradcheck(loss, (hidden, weight))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_no_gradient_is_computed_for_a_frozen_weight(smoothing, monkeypatch):
    sizes = []
    for name in ("zeros_like", "empty_like"):
        plain = getattr(torch, name)
        monkeypatch.setattr(torch, name, lambda t, *a, plain=plain, **k: sizes.append(t.shape) or plain(t, *a, **k))
    hidden, weight = torch.randn(9, 4, requires_grad=True), torch.randn(11, 4)
    fused.linear_cross_entropy(hidden, weight, TARGETS, "mean", smoothing).backward()
    assert weight.shape not in sizes
    assert weight.grad is None
    assert hidden.grad is not None


@OPS
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_a_token_of_probability_zero_costs_nothing_where_it_is_not_the_target(ops, reduction):
    """-inf logits rule tokens out, also as targets that do not count."""
    logits = torch.randn(9, 11)
    logits[:, 5] = -torch.inf
    logits[1, 0] = logits[5, 0] = -torch.inf  # rows that do not count
    ours = ops.cross_entropy(logits, TARGETS, reduction)
    torch.testing.assert_close(ours, F.cross_entropy(logits, TARGETS, reduction=reduction))
    assert ours.isfinite().all()
    impossible = ops.cross_entropy(logits[:1], torch.tensor([5]), "sum")
    assert impossible == torch.inf


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_loss_and_gradient_of_logits_equal_autograds(smoothing):
    logits = torch.randn(9, 11, dtype=torch.float64)
    leaf = logits.clone().requires_grad_()
    truth = F.cross_entropy(leaf, TARGETS, reduction="sum", label_smoothing=smoothing)
    counted = TARGETS != -100
    loss, gradient = chunked_loss._loss_and_gradient(logits, TARGETS, counted[:, None], smoothing, torch.float64)
    torch.testing.assert_close(loss, truth.detach())
    torch.testing.assert_close(gradient[counted], torch.autograd.grad(truth, leaf)[0][counted])


@OPS
def test_no_smoothing_is_the_plain_loss_to_the_last_bit(ops):
    hidden, weight = torch.randn(9, 4), torch.randn(11, 4)
    plain = value_and_gradients(lambda h, w: ops.linear_cross_entropy(h, w, TARGETS), [hidden, weight])
    smoothed = value_and_gradients(lambda h, w: ops.linear_cross_entropy(h, w, TARGETS, "mean", 0.0), [hidden, weight])
    assert torch.equal(plain[0], smoothed[0])
    assert all(map(torch.equal, plain[1], smoothed[1]))


def test_linear_cross_entropy_under_autocast_is_close_and_keeps_float32_gradients():
    hidden, weight = torch.randn(64, 32), torch.randn(50, 32)
    targets = torch.randint(0, 50, (64,))
    true_value, true_gradients = value_and_gradients(lambda h, w: F.cross_entropy(h @ w.T, targets), [hidden, weight])

    def ours(hidden, weight):
        with torch.autocast("cpu", torch.bfloat16):
            return fused.linear_cross_entropy(hidden, weight, targets)

    value, gradients = value_and_gradients(ours, [hidden, weight])
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, true_value, rtol=0.02, atol=0)
    for gradient, truth in zip(gradients, true_gradients, strict=True):
        assert gradient.dtype == torch.float32
        torch.testing.assert_close(gradient, truth, rtol=0, atol=0.02 * float(truth.abs().max()))


def test_fused_linear_cross_entropy_never_makes_all_logits(monkeypatch):
    sizes = []
    monkeypatch.setattr(chunked_loss, "MAX_LOGITS", 30)
    plain = F.linear
    monkeypatch.setattr(F, "linear", lambda *a: sizes.append(plain(*a).numel()) or plain(*a))
    hidden = torch.randn(9, 4, requires_grad=True)
    fused.linear_cross_entropy(hidden, torch.randn(11, 4), TARGETS).backward()
    assert max(sizes) <= 30
    assert sum(sizes) == 9 * 11


class Traffic(TorchDispatchMode):
    """Count the bytes that operations read and write, each once, as on a device without a cache for them."""

    def __init__(self):
        super().__init__()
        self.n_bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        reads_one_number_a_row = func in (torch.ops.aten.gather.default, torch.ops.aten.scatter_add_.default)
        if func.namespace == "aten" and not func.is_view and not reads_one_number_a_row:
            tensors = [t for t in tree_leaves((args, kwargs, result)) if isinstance(t, torch.Tensor)]
            self.n_bytes += sum(t.numel() * t.element_size() for t in tensors)
        return result


def test_bytes_that_the_head_moves_on_a_gpu(monkeypatch):
    """GPT-2's head on 16,384 rows in bfloat16, counted by hand; no number is computed.

    Each logit: written by the product (2), read for and written by a conversion (2 + 4, which CUDA's log_softmax does
    by itself), read and written by log_softmax and exp (4 + 4 each), and by the conversion back (4 + 2), read by two
    products (2 + 2). The weight in each of 12 chunks: read by two products (2 + 2), its gradient's part written and
    added (2 + 2 + 4 + 4 + 4: the sum is an argument and the result).
    """
    n_rows, vocab_size, width = 16_384, 50_257, 768
    monkeypatch.setattr("torch.compiler.is_compiling", lambda: True)  # a GPU's chunks
    with FakeTensorMode():
        hidden, weight = (torch.empty(n, width, requires_grad=True) for n in (n_rows, vocab_size))
        targets = torch.empty(n_rows, dtype=torch.long)
        with Traffic() as traffic:
            with torch.autocast("cpu", torch.bfloat16):
                loss = fused.linear_cross_entropy(hidden, weight, targets, "sum")
            loss.backward()
    by_hand = (2 + 6 + 8 + 8 + 6 + 4) * n_rows * vocab_size + 12 * (4 + 16) * vocab_size * width
    assert traffic.n_bytes == pytest.approx(by_hand, rel=0.02)
    assert traffic.n_bytes / n_rows < 2.6e6  # chunks for a CPU's cache moved 8.1 MB a row


@OPS_AND_DTYPE
@pytest.mark.parametrize("choice", ["onednn", "mv", "pytorch"])
@pytest.mark.parametrize("shape", [(3, 5, 8), (1, 1, 8), (0, 8), (8,)], ids=str)
def test_linear(ops, dtype, choice, shape, monkeypatch, fresh_kernels):
    monkeypatch.setenv("GPT_KERNELS", choice)
    x, weight, bias = torch.randn(shape, dtype=dtype), torch.randn(6, 8, dtype=dtype), torch.randn(6, dtype=dtype)
    for inputs in ([x, weight], [x, weight, bias]):
        assert_same(ops.linear, F.linear, inputs)
        with torch.no_grad():  # takes another path
            assert_close(ops.linear(*inputs), F.linear(*inputs))


@OPS
@pytest.mark.parametrize("choice", ["onednn", "pytorch"])
def test_linear_takes_any_strides(ops, choice, monkeypatch, fresh_kernels):
    monkeypatch.setenv("GPT_KERNELS", choice)
    x = torch.randn(5, 3, 8).transpose(0, 1)
    assert_same(ops.linear, F.linear, [x, torch.randn(8, 6).T, torch.randn(6)])


def test_fused_linear_leaves_other_precisions_to_pytorch(monkeypatch, fresh_kernels):
    x, weight = torch.randn(3, 8), torch.randn(6, 8)
    monkeypatch.setattr(kernels, "choose", lambda *_: pytest.fail("there was a choice"))
    with torch.autocast("cpu", torch.bfloat16):
        assert fused.linear(x, weight).dtype == torch.bfloat16
    fused.linear(x.double(), weight.double())
    monkeypatch.setattr(kernels, "HAS_ONEDNN", False)
    torch.testing.assert_close(fused.linear(x, weight), x @ weight.T)
