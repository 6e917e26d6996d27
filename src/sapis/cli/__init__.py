"""The command `sapis`: one file per verb. Heavy imports happen inside the verbs."""

from __future__ import annotations

import sys
import traceback
from pathlib import Path
from typing import NoReturn

USER_ERROR, BUG, INTERRUPTED = 2, 1, 130


def main() -> None:
    """Run `sapis`: exit code 0, 2 for bad input, 130 for Ctrl-C, 1 for a fault of ours."""
    from sapis.core.errors import SapisError

    try:
        from sapis.cli.app import app

        app()  # prints what is wrong with an option or a verb by itself, and leaves with code 2
    except SapisError as error:
        _print_error(error)
        sys.exit(USER_ERROR)
    except KeyboardInterrupt:
        _interrupted()
    except SystemExit as stop:
        if stop.code == INTERRUPTED:
            _interrupted()
        raise
    except Exception as error:
        path = Path("sapis-crash.log")
        path.write_text(traceback.format_exc(), encoding="utf-8")
        _say(f"a fault of sapis itself: {type(error).__name__}: {error}\n"
             f"the details are in {path.resolve()}; please report them")
        sys.exit(BUG)


def _print_error(error: object) -> None:
    from rich.console import Console
    from rich.text import Text

    title = Text(f"error: {type(error).__name__}\n", style="bold red")
    Console(stderr=True, soft_wrap=True).print(title + Text(str(error), style="not bold"))


def _interrupted() -> NoReturn:
    _say("interrupted: what is finished is kept; the same command goes on from here")
    sys.exit(INTERRUPTED)


def _say(message: str) -> None:
    print(message, file=sys.stderr)
