"""GGUF files by the package gguf, the truth that ours are held to."""

import gguf


def written(path, add, arch="llama"):
    """Write a file by the package gguf."""
    writer = gguf.GGUFWriter(path, arch)
    add(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
