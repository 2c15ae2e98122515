"""Data sets on the Hugging Face hub: which of their files make a text, each downloaded when it is first read."""

import contextlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from gpt.text.formats import PLAIN, RECORDS, suffix_of

MOST_LISTED = 8  # files that are listed by name
FORM = "hub:OWNER/DATASET[:CONFIG][:FIELD]"
TRAIN = re.compile(r"(?<![a-z])train(?![a-z])", re.IGNORECASE)


@contextlib.contextmanager
def hub_errors(source: str, by_hand: str) -> Iterator[None]:
    """Within it, a missing huggingface_hub or a download that fails is a ValueError that says what to do instead."""
    try:
        yield
    except ImportError:
        raise ValueError(f'{source} needs huggingface_hub: pip install -e ".[hub]", or {by_hand}') from None
    except Exception as error:  # from requests, httpx, ssl or the hub itself
        raise ValueError(f"{source} cannot be downloaded ({type(error).__name__}): {by_hand}") from None


class HubFiles(Sequence[Path]):
    """Files of one version of a data set, in order. One that is asked for is downloaded, once, to the hub's cache."""

    def __init__(self, source: str, repository: str, revision: str, sizes: dict[str, int]):
        self.source, self.repository, self.revision, self.sizes = source, repository, revision, sizes
        self.names = [Path(name) for name in sizes]

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Path:
        name = self.names[index].as_posix()
        with hub_errors(f"{name} of {self.source}", _by_hand(self.repository)):
            from huggingface_hub import hf_hub_download

            return Path(hf_hub_download(self.repository, name, repo_type="dataset", revision=self.revision))

    def __repr__(self) -> str:
        return f"{self.repository} at {self.revision}: {self.sizes}"

    def versions(self) -> list[tuple[str, int, int]]:
        """Return the name and the size in bytes of each file; its version is the repository's."""
        return [(name, size, 0) for name, size in self.sizes.items()]

    def listing(self) -> str:
        """Return the files as lines: their number, their bytes in all, and names with sizes, of many the first ones."""
        lines = [f"{size:>16,}  {name}" for name, size in self.sizes.items()]
        if len(lines) > MOST_LISTED:
            lines[MOST_LISTED - 2 : -1] = [f"{'...':>16}  {len(lines) - MOST_LISTED + 1:,} others"]
        total = f"{len(self):,} files of {sum(self.sizes.values()):,} bytes in all"
        return "\n".join([f"{self.source}: {total}, each downloaded when it is first read", *lines])


def parse_source(source: str) -> tuple[str, str, str]:
    """Return the repository, the config and the field of hub:OWNER/DATASET[:CONFIG][:FIELD], "" where left out."""
    repository, config, field = [*source.removeprefix("hub:").split(":", 2), "", ""][:3]
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repository):
        raise ValueError(f"{source!r} names no data set of the hub: its form is {FORM}")
    return repository, config, field


def find_files(source: str) -> HubFiles:
    """Return the files of the training split that `source` names, in today's version of the repository.

    A config is one that the data set's card declares, or a folder. Without one it is the card's default, or all files.
    ValueError without a network, and if there is no such data set, config or file.
    """
    repository, config, _ = parse_source(source)
    with hub_errors(source, _by_hand(repository)):
        from huggingface_hub import HfApi

        info = HfApi().dataset_info(repository, files_metadata=True)
    sizes = {file.rfilename: file.size or 0 for file in info.siblings or ()}
    card = info.card_data.to_dict() if info.card_data else {}
    patterns = _patterns(source, config, card.get("configs") or [], sizes)
    names = sorted(name for name in sizes if any(_matches(name, pattern) for pattern in patterns))
    for suffixes in (RECORDS, PLAIN):
        if found := [name for name in names if suffix_of(Path(name)) in suffixes and not name.startswith(".")]:
            found = found if suffixes is RECORDS else [name for name in found if name != "README.md"]
            return HubFiles(source, repository, info.sha, {name: sizes[name] for name in found})
    raise ValueError(f"{source} has no file that is read here ({', '.join([*RECORDS, *PLAIN])})")


def _patterns(source: str, config: str, configs: list[dict[str, Any]], names: Sequence[str]) -> list[str]:
    """Return the patterns of the files that a config holds for training."""
    declared = {entry.get("config_name", "default"): entry for entry in configs}
    if config and config not in declared:
        if any(name.startswith(f"{config}/") for name in names):
            return _train_of([name for name in names if name.startswith(f"{config}/")])
        there = ", ".join(sorted(declared) or sorted({name.partition("/")[0] for name in names if "/" in name}))
        raise ValueError(f"{source} has no config or folder {config!r}, but: {there or 'files alone'}")
    if not config and len(declared) > 1:
        default = [name for name, entry in declared.items() if entry.get("default") or name == "default"]
        if not default:
            raise ValueError(f"{source} has several configs: name one, as in {source}:{next(iter(declared))}")
        config = default[0]
    entry = declared.get(config) or next(iter(declared.values()), {})
    files = entry.get("data_files")
    if not files:
        folder = entry.get("data_dir", "").strip("/")
        return _train_of([name for name in names if not folder or name.startswith(f"{folder}/")])
    files = [files] if isinstance(files, str | dict) else files
    files = [{"path": file} if isinstance(file, str) else file for file in files]
    chosen = [file for file in files if file.get("split", "train") == "train"] or files
    paths = [file["path"] for file in chosen]
    return [pattern for path in paths for pattern in ([path] if isinstance(path, str) else path)]


def _train_of(names: list[str]) -> list[str]:
    """Return those of the names that say "train"; all of them if none does."""
    return [name for name in names if TRAIN.search(name)] or names


def _matches(name: str, pattern: str) -> bool:
    """Return whether a pattern of a data set's card matches: * stays within a folder, ** does not."""
    pattern = str(PurePosixPath(pattern))
    tokens = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    parts = re.split(r"(\*\*/|\*\*|\*|\?)", pattern)
    return name == pattern or bool(re.fullmatch("".join(tokens.get(part, re.escape(part)) for part in parts), name))


def _by_hand(repository: str) -> str:
    return f"download its files from https://huggingface.co/datasets/{repository} and name their folder"
