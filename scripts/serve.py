"""Serve a trained model: a page to play with it, and an API that OpenAI's clients speak.

    python scripts/serve.py --run tales-001 --open
    python scripts/serve.py --pretrained smollm2 --port 8080
    curl http://127.0.0.1:8000/v1/completions -d '{"prompt": "Once there was", "max_tokens": 40}'

The page is at http://127.0.0.1:8000/, the API at http://127.0.0.1:8000/v1, its description at /openapi.json. Requests
that come together are written together, so that several cost little more than one. Ctrl-C ends the server.

Only programs on this machine reach it. --host 0.0.0.0 lets others reach it, and needs --api-key, or GPT_API_KEY in the
environment.
"""

import os

from gpt.run.cli import Parser, add_model_options, add_speed_options, chosen_run, run


def main() -> None:
    parser = Parser(__doc__)
    add_model_options(parser)
    add = parser.add_argument
    add("--host", default="127.0.0.1", metavar="NAME", help="address to listen on (default: 127.0.0.1)")
    add("--port", type=int, default=8000, metavar="N", help="port to listen on; 0: any that is free (default: 8000)")
    add("--api-key", default=os.environ.get("GPT_API_KEY"), metavar="KEY", help="what clients have to send")
    add("--rows", type=int, default=16, metavar="N", help="texts that are written together (default: 16)")
    add("--queue", type=int, default=64, metavar="N", help="requests that may wait; more get status 429 (default: 64)")
    add("--open", action="store_true", help="open the page in a browser")
    add_speed_options(parser)
    arguments = parser.parse_args()
    for name in ("rows", "queue"):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name} must be at least 1, not {getattr(arguments, name)}")
    if not 0 <= arguments.port < 2**16:
        parser.error(f"--port must be 0 to 65535, not {arguments.port}")
    folder = chosen_run(arguments)

    from gpt.serve.server import serve  # imports PyTorch, which --help does not need

    serve(folder, arguments)


if __name__ == "__main__":
    run(main)
