"""How far an evaluation is, and the time that is left."""

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from fusionkit.visual.console import can_redraw


class Bar:
    """One bar of a progress display."""

    def __init__(self, progress: Progress, title: str) -> None:
        self.progress, self.title = progress, title

    def begin(self, total: int, done: int) -> None:
        """Show it, as far as an earlier run came."""
        self.number = self.progress.add_task(self.title, total=total, completed=done)

    def advance(self, count: int) -> None:
        """So many more are done."""
        self.progress.advance(self.number, count)


def show_progress(is_quiet: bool) -> Progress:
    """A display on stderr; the time left is judged by what this process has done, not by what it found done."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    times = (TimeElapsedColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    is_lost = console.is_jupyter and not can_redraw(console)
    return Progress(*columns, *times, console=console, disable=is_quiet or is_lost)
