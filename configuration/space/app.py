"""The demo page as a Hugging Face Space: the variable HTSAT_MODEL names its model, or several, with spaces between."""

import os
import sys

from modeling_htsat.cli import main

MODELS = os.environ.get("HTSAT_MODEL", "").split()
HOST, PORT = os.environ.get("GRADIO_SERVER_NAME", "127.0.0.1"), os.environ.get("GRADIO_SERVER_PORT", "7860")
LIMITS = ["--max-megabytes", os.environ.get("HTSAT_MAX_MEGABYTES", "50")]
LIMITS += ["--max-minutes", os.environ.get("HTSAT_MAX_MINUTES", "20")]

if __name__ == "__main__":
    if not MODELS:
        sys.exit("HTSAT_MODEL is empty: set it to the name of a model on the Hub, in the settings of the Space.")
    named = [part for model in MODELS for part in ("--model", model)]
    sys.exit(main(["demo", *named, "--host", HOST, "--port", PORT, *LIMITS]))
