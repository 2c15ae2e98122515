"""Sentences for a person's mistakes."""

import difflib


def did_you_mean(name: str, known: list[str], mark: str = "") -> str:
    """A sentence that offers the known name nearest to a mistyped one, or lists them where none is near; `mark` stands
    before each."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    if not near:  # a bare name may be meant for a table: n_layers for model.n_layers
        near = [k for k in known if k.rpartition(".")[2] == name.rpartition(".")[2]][:1]
    if not near:
        near = difflib.get_close_matches(name.rpartition(".")[2], known, n=1, cutoff=0.6)
    return f"did you mean {mark}{near[0]}?" if near else f"there are: {', '.join(mark + k for k in sorted(known))}"
