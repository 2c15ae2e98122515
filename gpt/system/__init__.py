"""The machine: devices, processes, memory, signals, files, paths."""
