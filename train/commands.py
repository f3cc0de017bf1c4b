"""How commands end that go on where they were stopped."""

from __future__ import annotations

import sys
from collections.abc import Callable

STOPPED = "stopped; the same command goes on from there"


class Interrupted(Exception):
    """Training was stopped; its state is saved, and `fit` has said so."""


def exit_status(work: Callable[[], None]) -> int:
    """Does a command's work.

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
        print(STOPPED, file=sys.stderr)
        return 130
    return 0
