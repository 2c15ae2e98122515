"""Lines of progress above a bar."""

from collections.abc import Callable

from tqdm import tqdm


class Lines:
    """A function that prints lines, and a bar that they must not break. `bar` is replaced by a real one when there is
    something to count."""

    def __init__(self, log: Callable[[str], None]):
        self.print = log
        self.bar = tqdm(disable=True)

    def log(self, line: str) -> None:
        """Print a line. A reader that has left, such as tee at Ctrl-C, does not end the program."""
        try:
            self.print(line) if self.bar.disable else self.bar.write(line)
        except OSError:
            self.print = lambda line: None
