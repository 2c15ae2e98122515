"""A trained model behind a local page and an API that OpenAI's clients speak: `scripts/serve.py`."""
