"""The OpenAPI description: thousands of requests made from it, right and wrong ones, by schemathesis."""

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from served import running, tiny

from gpt.config import GPTConfig
from gpt.model import GPTModel
from gpt.objectives import NextToken
from gpt.text.chat import add_chat_template
from gpt.tokenizer import BytePairTokenizer


def any_text():
    """A model that reads any text, by bytes, and has room for long ones."""
    tokenizer = add_chat_template(BytePairTokenizer.from_merges([(97, 98)]))
    shape = {"vocab_size": tokenizer.vocab_size, "context_length": 256, "emb_dim": 8, "n_heads": 1, "n_layers": 1}
    return replace(tiny(), objective=NextToken(GPTModel(GPTConfig(**shape))).eval(), tokenizer=tokenizer)


def test_the_description_names_what_is_served():
    with running(any_text()) as (service, url):
        found = httpx.get(f"{url}/openapi.json").json()
        assert set(found["paths"]) == {
            "/v1/models", "/v1/models/{name}", "/v1/completions", "/v1/chat/completions", "/health",
        }  # fmt: skip
        schema = found["components"]["schemas"]["CompletionBody"]["properties"]
        assert schema["model"]["enum"] == ["tiny", None]
        assert f"'maximum': {service.tokenizer.vocab_size - 1}" in str(schema["prompt"])


@pytest.mark.slow
def test_requests_made_from_the_description():
    """No answer is 5xx, each has the form described, wrong requests are refused and right ones accepted.

    Left out: right requests for more tokens than the context has, which no schema can tell.
    """
    pytest.importorskip("schemathesis", reason="schemathesis belongs to the extra judges")
    program = shutil.which("schemathesis", path=str(Path(sys.executable).parent))
    with running(any_text(), rows=8, queue=64) as (_, url):
        command = [program, "run", f"{url}/openapi.json", "--max-examples", "100", "--seed", "1"]
        command += [
            "--phases",
            "examples,coverage,fuzzing",
            "--exclude-checks",
            "positive_data_acceptance",
            "--request-timeout",
            "60",
        ]
        done = subprocess.run(command, capture_output=True, text=True, timeout=500)
        assert done.returncode == 0, done.stdout[-5000:]
        assert "5 passed" in done.stdout
        assert httpx.post(f"{url}/v1/completions", json={"prompt": "a"}).status_code == 200
