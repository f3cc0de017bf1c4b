"""How commands end: a status and, but for 0, one line."""

from __future__ import annotations

import sys
from collections.abc import Callable

STOPPED = "stopped; the same command goes on from there"


class Interrupted(Exception):
    """Training was stopped; its state is saved, and `fit` has said so."""


def exit_status(work: Callable[[], None], stopped: str = STOPPED) -> int:
    """Does a command's work.

    Args:
        work: raises what does not end with 0.
        stopped: what Ctrl-C prints.

    Returns:
        Exit status: 0; 1 when a loss became infinite; 2 on bad input; 130 when it was stopped. All but 0 print a line.
    """
    try:
        work()
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except FloatingPointError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except Interrupted:
        return 130
    except KeyboardInterrupt:
        print(stopped, file=sys.stderr)
        return 130
    return 0
