"""What every command line of the project does alike."""

import io
import sys
from collections.abc import Callable, Sequence

from bench.errors import UserError

Body = Callable[[list[str]], int | None]


def run(body: Body, usage: str, words: Sequence[str] | None = None) -> int:
    """Run a command on its words (default: those of the command line) and return its exit status.

    0: done, or help was asked for; 1: something is wrong, told in one sentence on stderr; 130: interrupted. The body may return a
    status of its own.
    """
    any_encoding()
    words = sys.argv[1:] if words is None else list(words)
    if {"-h", "--help"} & set(words):
        print(usage)
        return 0
    try:
        return body(words) or 0
    except UserError as error:
        print(error, file=sys.stderr)
        return 1
    except OSError as error:
        print(f"{error.filename or ''}: {error.strerror or error}".lstrip(": "), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def any_encoding() -> None:
    """From here on what stdout or stderr cannot encode is written as an escape such as \\xe9, instead of an error."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
