"""Prepared folders of one file per split, rewritten as folders of several."""

import hashlib
import json
import shutil

import numpy as np

from gpt.system.files import checksummed


def split_files(folder, out, shard_tokens):
    """Copy prepared data with both splits cut into files of so many tokens; return the new folder."""
    shutil.copytree(folder, out)
    meta = json.loads((out / "meta.json").read_text())
    for split in ("train", "val"):
        content, n = (out / f"{split}.bin").read_bytes(), meta[split]["tokens"]
        size, parts = np.dtype(meta["dtype"]).itemsize, []
        for start in range(0, n, shard_tokens):
            end = min(start + shard_tokens, n)
            part = content[start * size : end * size]
            if meta.get("flagged"):
                part += content[n * size + start : n * size + end]
            name = f"{split}-{len(parts):05}.bin"
            (out / name).write_bytes(part)
            parts.append({"file": name, "tokens": end - start, "sha256": hashlib.sha256(part).hexdigest()})
        (out / f"{split}.bin").unlink()
        meta[split] |= {"shards": parts}
    (out / "meta.json").write_text(checksummed(meta | {"format": 4}))
    return out
