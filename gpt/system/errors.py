"""Messages that name the way out: the name that was meant, the setting that needs less memory."""

import contextlib
import difflib
import importlib
from collections.abc import Iterator
from types import ModuleType

ELSEWHERE = {  # a setting's name in nanoGPT or transformers, if the nearest name here is another setting or none
    "block_size": "model.context_length",
    "dataset": "data.path",
    "d_model": "model.emb_dim",
    "dropout": "model.drop_rate",
    "early_stopping_patience": "patience",
    "epochs": "max_steps",
    "eval_interval": "eval_every",
    "eval_steps": "eval_every",
    "hidden_size": "model.emb_dim",
    "learning_rate": "optim.lr",
    "log_interval": "log_every",
    "logging_steps": "log_every",
    "lr_decay_iters": "optim.decay_steps",
    "n_ctx": "model.context_length",
    "n_embd": "model.emb_dim",
    "num_attention_heads": "model.n_heads",
    "num_train_epochs": "max_steps",
    "optimizer": "optim.name",
    "out_dir": "run",
    "per_device_train_batch_size": "batch_size",
    "report_to": "logger",
    "resume_from_checkpoint": "resume",
    "save_steps": "save_every",
    "warmup": "optim.warmup_steps",
}


def did_you_mean(name: str, known: list[str], mark: str = "") -> str:
    """Return "did you mean X?" for the known name closest to a mistyped one, or a list of all if none is close.

    A name of ELSEWHERE means the setting that it is there. `mark` is written before each name.
    """
    near = [k for k in known if k == ELSEWHERE.get(name.rpartition(".")[2])]
    near = near or difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    if not near:  # n_layers may mean model.n_layers
        near = [k for k in known if k.rpartition(".")[2] == name.rpartition(".")[2]][:1]
    if not near:
        near = difflib.get_close_matches(name.rpartition(".")[2], known, n=1, cutoff=0.6)
    return f"did you mean {mark}{near[0]}?" if near else f"there are: {', '.join(mark + k for k in sorted(known))}"


def import_extra(module: str, purpose: str, extra: str) -> ModuleType:
    """Return a module that not everybody installs. ValueError says `purpose`, and the extra of pip to install."""
    try:
        return importlib.import_module(module)
    except ImportError:
        raise ValueError(f'{purpose}: pip install -e ".[{extra}]"') from None


@contextlib.contextmanager
def oom_hint(batch_size: int, grad_accum_steps: int) -> Iterator[None]:
    """A context that turns an out-of-memory error into a ValueError that names the setting to lower."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:  # CUDA's error has a class of its own, a CPU's only a text
        import torch  # not above: config.py imports this file and must stay light

        said = any(words in str(error) for words in ("DefaultCPUAllocator", "out of memory"))
        if not isinstance(error, (torch.OutOfMemoryError, MemoryError)) and not said:
            raise
        if batch_size > 1:
            smaller = (batch_size + 1) // 2
            steps = -(-batch_size * grad_accum_steps // smaller)
            advice = f"batch_size {smaller} with grad_accum_steps {steps} takes about half"
        else:
            advice = "lower model.context_length, model.n_layers or model.emb_dim"
        raise ValueError(f"not enough memory at batch_size {batch_size}: {advice}") from error
