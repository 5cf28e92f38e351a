"""Output of the commands and the training programs."""

import io
import sys


def print_any_name() -> None:
    """Make names of files that are no text, and lone surrogates out of JSON, print as escapes rather than end the program."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
