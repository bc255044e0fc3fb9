"""watch.html: the curves of a training run on one page without scripts, and watch.json beside it."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from qcheck.core import files
from qcheck.core.errors import UserError
from qcheck.report import checkpoint as words
from qcheck.report import html
from qcheck.report.html import charts
from qcheck.report.html.charts import Chart
from qcheck.result.watching import NAME, Checkpoint, Watching

_WIDTH = 640
_MOODS = {"healthy": "good", "faint": "open", "overcooked": "bad", "unread": "bad"}


def write(watching: Watching, folder: Path) -> None:
    """Write watch.json and watch.html, each whole or not at all.

    Raises:
        UserError: the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in ((words.PAGE, page(watching)), (NAME, watching.to_json())):
            files.write(folder / name, text)
    except OSError as error:
        raise UserError(f"--out {str(folder)!r}: {error.strerror}", "Give a folder that you may write.") from error


def page(watching: Watching) -> str:
    """The page: the state of the latest checkpoint, the curves, and a row for each checkpoint."""
    style = (Path(html.__file__).parent / "style.css").read_text("utf-8")
    text: str = html.template(package=__name__).render(
        watching=watching,
        last=watching.latest,
        moods=_MOODS,
        words=words,
        plots=[(chart, Markup(_drawn(chart))) for chart in plots(watching)],  # noqa: S704  # Vega's own SVG
        style=Markup(style),  # noqa: S704  # the package's own file
    )
    return text


def plots(watching: Watching) -> list[Chart]:
    """The curves over the numbered checkpoints: survival by order, change, intruders, gradients, KL."""
    numbered = [one for one in watching.checkpoints if one.number is not None and one.state != "unread"]
    limits, unit = watching.limits, watching.unit
    orders = dict.fromkeys(forecast.order for one in numbered for forecast in one.forecasts)
    curves = [
        charts.lines(
            f"Survival, {order}",
            "The forecast share of the adapter's change that arrives: 1 all of it, 0 nothing.",
            _survivals(numbered, order),
            (unit, "survival"),
            None,
        )
        for order in orders
    ]
    for title, caption, name, limit in (
        ("Size of the change", "Root mean square over layers of |D| / |W|.", "change", limits.limit("change")),
        ("Intruder dimensions", "A layer; directions of their own.", "intruders", limits.limit("intruders")),
        ("Norm of the gradient", "As the run's log has it.", "gradient", None),
        ("KL from the base", "Of the sampler's chain on the probes, nat a picture.", "kl", None),
    ):
        records = [
            {"x": one.number, "y": value, "what": name}
            for one in numbered
            if (value := getattr(one, name)) is not None and math.isfinite(value)
        ]
        curves += [charts.lines(title, caption, records, (unit, name), limit)] if records else []
    return curves


def _survivals(checkpoints: Sequence[Checkpoint], order: str) -> list[dict[str, Any]]:
    return [
        {"x": one.number, "y": forecast.survival, "what": forecast.scheme}
        for one in checkpoints
        for forecast in one.forecasts
        if forecast.order == order
    ]


def _drawn(chart: Chart) -> str:
    """A chart as SVG; its colours are the page's variables."""
    import vl_convert

    text = {"labelColor": "var(--muted)", "titleColor": "var(--muted)"}
    axis = text | {"gridColor": "var(--rule)", "domainColor": "var(--muted)", "tickColor": "var(--muted)"}
    config = {
        "background": "transparent",
        "view": {"stroke": None},
        "axis": axis,
        "legend": {"labelColor": "var(--ink)"},
    }
    svg: str = vl_convert.vegalite_to_svg(chart.spec | {"width": _WIDTH, "config": config})
    return svg
