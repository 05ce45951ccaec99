"""Ctrl-C in the seconds that the command `htsat` takes to import torch and transformers: one line, no traceback.

The package imports this first. In every other process, such as yours that imports the package, it does nothing.
"""

import os
import signal
import sys  # and no more: until the end of this file Ctrl-C still is a traceback

INTERRUPTED = 130  # 128 and the number of the signal, as shells have it


def is_htsat_command() -> bool:
    """Whether Python was started as `htsat`, or as `python -m modeling_htsat`; its child processes were not."""
    program = sys.argv[0] if sys.argv else ""
    if program == "-m":  # Python is on its way to the module, and has come to the package
        return bool({"modeling_htsat", "modeling_htsat.cli"} & set(sys.orig_argv))
    name, _ = os.path.splitext(os.path.basename(program))
    return name == "htsat" and program in sys.orig_argv


def end_at_once(signal_number: int, frame: object):
    # An exception could be caught by whatever is being imported, and sys.stderr may be in use.
    try:
        os.write(2, b"htsat: interrupted\n")
    finally:
        os._exit(INTERRUPTED)


def hand_over():
    """From here on Ctrl-C is a KeyboardInterrupt again, and whoever calls this takes care of it."""
    if signal.getsignal(signal.SIGINT) is end_at_once:
        signal.signal(signal.SIGINT, signal.default_int_handler)


# Who starts the command in the background may have it ignore Ctrl-C; so it stays.
if is_htsat_command() and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, end_at_once)
