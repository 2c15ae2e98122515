"""Prepared folders of conversations, written byte by byte as gpt/token_files.py describes them."""

import numpy as np

from gpt.system.files import checksummed, sha256
from gpt.token_files import COUNTED, FORMAT, START, load_data


def write_conversations(folder, tokenizer, train, val, preferences=False):
    """Write a folder and return its data. A conversation is a list of parts (text or ids, whether they count)."""
    folder.mkdir(parents=True)
    tokenizer.save(folder / "tokenizer.json")
    meta = {"format": FORMAT, "source": "by hand", "dtype": "uint16", "has_eot": False, "flagged": True}
    meta |= {"preferences": preferences, "tokenizer_sha256": sha256(folder / "tokenizer.json")}
    for name, conversations in (("train", train), ("val", val)):
        ids, flags = [], []
        for conversation in conversations:
            first = len(ids)
            for part, counts in conversation:
                new = tokenizer.encode(part, special=True) if isinstance(part, str) else part
                ids += new
                flags += [COUNTED * counts] * len(new)
            flags[first] |= START
        path = folder / f"{name}.bin"
        path.write_bytes(np.array(ids, np.uint16).tobytes() + np.array(flags, np.uint8).tobytes())
        n = len(conversations)
        meta[name] = {"tokens": len(ids), "documents": n, "characters": len(ids), "bytes": len(ids)}
        meta[name]["sha256"] = sha256(path)
    (folder / "meta.json").write_text(checksummed(meta), encoding="utf-8")
    return load_data(folder, verify=True)
