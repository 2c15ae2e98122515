"""Any text into token files."""
