"""Shows a result: as a table for people, and as Markdown between two markers of docs/performance.md."""

from pathlib import Path

from rich.console import Console
from rich.table import Table

from bench.figures import Result, shown, verdict, wanted

#: What stands between them is written by `python -m bench --report`.
BEGIN = "<!-- bench: begin, written by python -m bench --report -->"
END = "<!-- bench: end -->"

_STYLES = {"ok": "green", "below": "red", "above": "red"}


def print_table(result: Result, console: Console) -> None:
    """Prints every figure with its target."""
    table = Table("row", "figure", "value", "runs", "target", "")
    table.columns[2].justify = table.columns[4].justify = "right"
    for row in result.rows:
        table.add_section()
        for number, figure in enumerate(row.figures):
            runs = " ".join(f"{run:,.4g}" for run in figure.runs) if len(figure.runs) > 1 else ""
            word = verdict(figure)
            table.add_row(
                row.name if number == 0 else "",
                figure.name,
                shown(figure.value, figure.unit),
                runs,
                wanted(figure),
                f"[{_STYLES[word]}]{word}[/]" if word else "",
            )
    console.print(table)
    for row in result.rows:
        for note in row.notes:
            console.print(f"{row.name}: {note}", markup=False, highlight=False, soft_wrap=True)


def write_report(result: Result, page: Path) -> None:
    """Puts the result between the markers of a page.

    Raises:
        ValueError: the page does not have both markers.
    """
    text = page.read_text()
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{page} has no {BEGIN} … {END}")
    page.write_text(f"{before}{BEGIN}\n\n{markdown(result)}\n{END}{after}")


def markdown(result: Result) -> str:
    """The result as Markdown."""
    lines = [f"Measured on {result.started[:10]}, in {result.seconds / 60:.0f} minutes.", ""]
    lines += ["| | |", "|---|---|"]
    lines += [
        f"| {name} | {value} |"
        for part in (result.machine, result.versions, result.options)
        for name, value in part.items()
    ]
    for row in result.rows:
        lines += ["", f"### {row.title}", "", "| figure | value | target | |", "|---|---:|---:|---|"]
        for figure in row.figures:
            lines.append(
                f"| {figure.name} | {shown(figure.value, figure.unit)} | {wanted(figure)} | {verdict(figure)} |"
            )
        lines += ["", *row.notes]
    return "\n".join(lines) + "\n"
