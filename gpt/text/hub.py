"""Data sets on the Hugging Face hub: which of their files make a text, each downloaded when it is first read."""

import contextlib
import errno
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from gpt.text.formats import PLAIN, RECORDS, suffix_of

MAX_LISTED = 8  # files that are listed by name
FORM = "hub:OWNER/DATASET[@REVISION][:CONFIG][:FIELD]"
SPLIT = re.compile(
    r"(?<![a-z])(train(?:ing)?|test(?:ing)?|val(?:id(?:ation)?)?|dev|eval(?:uation)?)(?![a-z])", re.IGNORECASE
)
NO_DATA = re.compile(  # file names
    r"(dataset_infos?|dataset_dict|state|croissant)\.json"
    r"|(readme|licen[sc]e|notice|citation|changelog|contributing|requirements)(\.(md|txt))?",
    re.IGNORECASE,
)
LOG_IN = "`hf auth login`, or set HF_TOKEN"
WAYS = {  # out of an error of huggingface_hub, by its name
    "GatedRepoError": f"accept its terms on its page of the hub, then {LOG_IN}",
    "RepositoryNotFoundError": f"check the spelling; if it is private, {LOG_IN}",
    "RevisionNotFoundError": "check the spelling of the revision",
}


@contextlib.contextmanager
def hub_errors(source: str, by_hand: str) -> Iterator[None]:
    """Within it, a missing huggingface_hub or a download that fails is a ValueError that says what to do instead."""
    try:
        yield
    except ImportError:
        raise ValueError(f'{source} needs huggingface_hub: pip install -e ".[hub]", or {by_hand}') from None
    except Exception as error:  # from requests, httpx, ssl or the hub itself
        name, reason = type(error).__name__, " ".join(str(error).split())[:200]
        again = f"run the same command again, which continues; without a network, {by_hand}"
        if getattr(error, "errno", None) == errno.ENOSPC:
            again = "free some space on that disk, and run the same command again"
        way = next((WAYS[kind.__name__] for kind in type(error).__mro__ if kind.__name__ in WAYS), None)
        known = f"{name}: {reason}" if reason and not way else name
        raise ValueError(f"{source} cannot be downloaded ({known}): {way or again}") from None


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
        if len(lines) > MAX_LISTED:
            lines[MAX_LISTED - 2 : -1] = [f"{'...':>16}  {len(lines) - MAX_LISTED + 1:,} others"]
        total = f"{len(self):,} files of {sum(self.sizes.values()):,} bytes in all"
        return "\n".join([f"{self.source}: {total}, each downloaded when it is first read", *lines])


def parse_source(source: str) -> tuple[str, str, str]:
    """Return the repository, the config and the field of a source of this FORM, "" where left out. The revision stays
    with the repository."""
    repository, config, field = [*source.removeprefix("hub:").split(":", 2), "", ""][:3]
    if not re.fullmatch(r"[\w.-]+/[\w.-]+(@[\w./-]+)?", repository):
        raise ValueError(f"{source!r} names no data set of the hub: its form is {FORM}")
    return repository, config, field


def find_files(source: str) -> HubFiles:
    """Return the files of the training split that `source` names, in that revision of the repository, or today's.

    A config is one that the data set's card declares, or a folder. Without one it is the card's default, or all files.
    ValueError without a network, and if there is no such data set, config or file, or none for training.
    """
    (repository, config, _), revision = parse_source(source), None
    if "@" in repository:
        repository, revision = repository.split("@")
    with hub_errors(source, _by_hand(repository)):
        from huggingface_hub import HfApi

        info = HfApi().dataset_info(repository, revision=revision, files_metadata=True)
    sizes = {file.rfilename: file.size or 0 for file in info.siblings or () if _may_be_data(file.rfilename)}
    card = info.card_data.to_dict() if info.card_data else {}
    names, declared = _named_files(source, config, card.get("configs") or [], sorted(sizes))
    for suffixes in (RECORDS, PLAIN):
        n_bytes = Counter()
        for name in names:
            if (suffix := suffix_of(Path(name))) in suffixes:
                n_bytes[suffix] += sizes[name]
        kept = n_bytes if declared else dict(n_bytes.most_common(1))  # others may hold the same, or facts about it
        if found := {name: sizes[name] for name in names if suffix_of(Path(name)) in kept}:
            return HubFiles(source, repository, info.sha, found)
    raise ValueError(f"{source} has no file that is read here ({', '.join([*RECORDS, *PLAIN])})")


def _may_be_data(name: str) -> bool:
    parts = PurePosixPath(name).parts
    return not NO_DATA.fullmatch(parts[-1]) and not any(part.startswith(".") for part in parts)


def _named_files(source: str, config: str, configs: list[dict[str, Any]], names: list[str]) -> tuple[list[str], bool]:
    """Return those of the names that a config holds for training, and whether the card itself names them."""
    declared = {entry.get("config_name", "default"): entry for entry in configs}
    if config and config not in declared:
        if found := [name for name in names if name.startswith(f"{config}/")]:
            return _for_training(source, {name: name for name in found}), False
        there = ", ".join(sorted(declared) or sorted({name.partition("/")[0] for name in names if "/" in name}))
        raise ValueError(f"{source} has no config or folder {config!r}, but: {there or 'files alone'}")
    if not config and len(declared) > 1:
        default = [name for name, entry in declared.items() if entry.get("default") or name == "default"]
        if not default:
            raise ValueError(f"{source} has several configs: name one, as in {source}:{next(iter(declared))}")
        config = default[0]
    entry = declared.get(config) or next(iter(declared.values()), {})
    folder, files = PurePosixPath(entry.get("data_dir") or ""), entry.get("data_files")
    if not files:
        found = [name for name in names if PurePosixPath(name).is_relative_to(folder)]
        return _for_training(source, {name: name for name in found}), False
    files = [files] if isinstance(files, str | dict) else files
    files = [{"path": file} if isinstance(file, str) else file for file in files]
    splits = {number: file.get("split", "train") for number, file in enumerate(files)}
    exact = [number for number, split in splits.items() if split == "train"]
    paths = [files[number]["path"] for number in exact or _for_training(source, splits)]
    patterns = [folder / pattern for path in paths for pattern in ([path] if isinstance(path, str) else path)]
    return [name for name in names if any(_matches(name, str(pattern)) for pattern in patterns)], True


def _for_training(source: str, names: dict[Any, str]) -> list[Any]:
    """Return the keys of those names whose last word for a split is "train"; if none is, of those without such a word.
    ValueError if all are of other splits."""
    words = {key: [*SPLIT.findall(name), ""][-2:][0].lower() for key, name in names.items()}
    chosen = [key for key, word in words.items() if word.startswith("train")]
    chosen = chosen or [key for key, word in words.items() if not word]
    if names and not chosen:
        there = ", ".join(sorted({*words.values()}))
        raise ValueError(f"{source} has no file for training, but for: {there}; download those, and name their folder")
    return chosen


def _matches(name: str, pattern: str) -> bool:
    """Return whether a pattern of a data set's card matches: * stays within a folder, ** does not, [0-9] is a digit."""
    tokens = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    parts = re.split(r"(\*\*/|\*\*|\*|\?|\[[^]/]+\])", pattern)
    for i, part in enumerate(parts):
        is_set = i % 2 and part.startswith("[")
        parts[i] = part.replace("\\", r"\\").replace("[!", "[^") if is_set else tokens.get(part, re.escape(part))
    return name == pattern or bool(re.fullmatch("".join(parts), name))


def _by_hand(repository: str) -> str:
    return f"download its files from https://huggingface.co/datasets/{repository} and name their folder"
