"""Parts of error messages."""

import difflib


def did_you_mean(name: str, known: list[str], mark: str = "") -> str:
    """Return "did you mean X?" for the known name closest to a mistyped one, or a list of all if none is close.

    `mark` is written before each name.
    """
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    if not near:  # n_layers may mean model.n_layers
        near = [k for k in known if k.rpartition(".")[2] == name.rpartition(".")[2]][:1]
    if not near:
        near = difflib.get_close_matches(name.rpartition(".")[2], known, n=1, cutoff=0.6)
    return f"did you mean {mark}{near[0]}?" if near else f"there are: {', '.join(mark + k for k in sorted(known))}"
