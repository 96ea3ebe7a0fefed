"""The ``jaxwrap`` command: arguments in, one call each into the packages, results and errors in words."""

from __future__ import annotations

import os
import sys

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Neural wrappers around standard video codecs: train them, map what the receiver needs, encode with real codecs, compare.",
)
bench = typer.Typer(
    no_args_is_help=True, help="Benchmarks, each against its peer in the same run. Prints figures; --json keeps them."
)
app.add_typer(bench, name="bench")
console = Console()


def main() -> None:
    """Entry point: errors of the user's making are printed as one message, with exit status 2."""
    try:
        app(standalone_mode=False)
    except typer.Exit as leave:
        sys.exit(leave.exit_code)
    except typer.Abort:
        sys.exit("stopped")
    except KeyboardInterrupt:
        sys.exit("stopped; the same command goes on where it was")
    except (ValueError, FloatingPointError, OSError) as error:
        if os.environ.get("JAXWRAP_DEBUG"):
            raise
        Console(stderr=True).print(f"[bold red]error:[/] {_escaped(error)}", highlight=False, soft_wrap=True)
        sys.exit(2)
    except Exception as error:
        if not hasattr(error, "format_message"):
            raise
        Console(stderr=True).print(
            f"[bold red]error:[/] {_escaped(error.format_message())}", highlight=False, soft_wrap=True
        )
        sys.exit(2)


def _escaped(text: object) -> str:
    return str(text).replace("[", r"\[")


def progress_bar() -> Progress:
    """The one progress bar of all commands, with an ETA."""
    return Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("ETA"), TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"), console=console,
    )  # fmt: skip
