"""A run from the terminal: command line, callbacks, logs, plots."""
