"""Small models behind the API, for tests of what clients get."""

import contextlib
import threading
import time

import torch
import uvicorn

from gpt.config import GPTConfig
from gpt.exchange.models import LoadedModel
from gpt.model import GPTModel
from gpt.objectives import NextToken
from gpt.serve.app import create_app
from gpt.serve.engine import Engine
from gpt.serve.service import Service
from gpt.text.chat import add_chat_template
from gpt.tokenizer import CharTokenizer

LETTERS = "\n abcdefghijklmnopqrstuvwxyz😀é"


def tiny(prepend_eot=False, chat=True, **shape):
    """A small random model in float64, in which rounding changes no choice, with a token for each letter."""
    tokenizer = CharTokenizer(LETTERS, end_of_text=True)
    tokenizer = add_chat_template(tokenizer) if chat else tokenizer
    size = {"vocab_size": tokenizer.vocab_size, "context_length": 64, "emb_dim": 16, "n_heads": 4, "n_layers": 2}
    torch.manual_seed(3)
    model = GPTModel(GPTConfig(**{**size, "drop_rate": 0.0, **shape})).double().eval()
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.4)
    return LoadedModel("a model", NextToken(model).eval(), tokenizer, prepend_eot, None)


@contextlib.contextmanager
def running(loaded, guard=None, rows=4, queue=8):
    """Serve a model on a free port; yield the service and the address."""
    service = Service(loaded, Engine(loaded.objective.model, loaded.tokenizer, rows, queue), "tiny")
    config = uvicorn.Config(create_app(service, guard), port=0, log_level="error", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield service, f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(timeout=20)
