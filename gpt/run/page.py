"""A run as a page: runs/NAME/index.html, one file that needs no network.

    from gpt.run.page import write_page
    write_page("runs/tales-001")

gpt/run/page_data.py and gpt/run/page_inside.py collect what it shows; gpt/run/assets/ holds its template, style and
scripts, and uPlot (https://github.com/leeoniya/uPlot, MIT), which draws the curves.
"""

import json
import math
from collections.abc import Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, Template
from markupsafe import Markup

from gpt.checkpoint import RunFolder
from gpt.evaluation.baselines import Baselines
from gpt.objectives import OBJECTIVES
from gpt.run import page_data
from gpt.run.page_data import Source, open_source
from gpt.run.page_inside import look_inside
from gpt.system.files import write_text
from gpt.token_files import PreparedData

TABLE_ROWS = 200  # of metrics.csv, in the table at the end


def asset(name: str) -> str:
    """Return the text of a file in gpt/run/assets/."""
    return (resources.files("gpt.run") / "assets" / name).read_text(encoding="utf-8")


def script(text: str) -> Markup:
    """Return JavaScript or JSON that stands in a page as it is: no `</script>` in it ends the element."""
    return Markup(text.replace("</", "<\\/").replace("<!--", "<\\!--"))


def to_json(value: Any) -> Markup:
    """Return JSON for a <script> element. None of its characters means anything to HTML."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


def collect(source: Source, compared: Sequence[str] = ()) -> dict[str, Any]:
    """Return all that a page shows. `compared` names other runs."""
    runs = [source, *page_data.open_compared(compared, source)]
    metrics, note = page_data.read_columns(source)
    columns = [page_data.with_excess(page_data.read_columns(run)[0], run.baselines) for run in runs]
    columns = [page_data.thin(run, page_data.MAX_ROWS // len(runs)) for run in columns]
    unit, data = OBJECTIVES[source.config.objective.name].unit, source.data
    has_bytes = data is not None and not all(map(math.isnan, metrics.get("val_bits_per_byte", [math.nan])))
    curves = {
        "unit": unit,
        "runs": [
            {"name": each.name, "columns": {name: page_data.rounded(values) for name, values in run.items()}}
            for each, run in zip(runs, columns, strict=True)
        ],
        "charts": page_data.charts(columns, source.baselines, data.bytes_per_token if has_bytes else None, unit),
    }
    comparison = page_data.comparison(runs) if len(runs) > 1 else None
    if comparison:  # what they are compared by comes first
        curves["charts"].sort(key=lambda chart: comparison.get("column", "val_loss") not in chart["columns"])
    inside = {"note": source.note}
    if source.objective is not None and data is not None:
        inside = look_inside(source.objective, source.config, data)
    return {
        "name": source.name,
        "lead": page_data.lead(source),
        "notes": [text for text in (note, source.note) if text],
        "figures": page_data.figures(source, metrics),
        "ladder": page_data.ladder(source, metrics),
        "facts": page_data.facts(source),
        "command": page_data.command(source),
        "settings": page_data.settings(source.config),
        "unit": unit,
        "curves": curves,
        "comparison": comparison,
        "samples": page_data.samples(source),
        "inside": inside,
        "table": page_data.thin(metrics, TABLE_ROWS),
        "n_rows": len(metrics.get("step", ())),
    }


@cache
def _template() -> Template:
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["isnan"] = math.isnan
    return environment.from_string(asset("page.html"))


def render(page: dict[str, Any]) -> str:
    """Return the page of what `collect` found as HTML, with style, scripts and data inside."""
    shown = {"curves": page["curves"], "samples": page["samples"]}
    shown |= {name: page["inside"].get(name) for name in ("surprises", "attention")}
    return _template().render(
        **page,
        data=to_json(shown),
        style=Markup("".join(asset(name) for name in ("uPlot.min.css", "tokens.css", "page.css"))),
        plot_license=asset("uPlot.LICENSE"),
        scripts=[script(asset(name)) for name in ("uPlot.iife.min.js", "tokens.js", "page.js")],
    )


def write_page(
    run: str | Path,
    compared: Sequence[str] = (),
    *,
    checkpoint: str = "best",
    out: str | Path | None = None,
    data: PreparedData | None = None,
    baselines: Baselines | None = None,
    max_parameters: float = math.inf,
) -> Path:
    """Write the page of a run and return its path: `out`, or index.html in the run's folder.

    The run may still train: nothing of it is changed. `compared` names other runs, drawn on the same axes. `data` and
    `baselines` save their computation where they are known; see `page_data.open_source`.

    ValueError for a run or a checkpoint that does not exist, OSError if the page cannot be written.
    """
    folder = RunFolder(run)
    source = open_source(folder.path.name, folder, checkpoint, data, baselines, max_parameters)
    out = Path(out) if out else folder.page
    text = render(collect(source, compared))
    out.parent.mkdir(parents=True, exist_ok=True)
    write_text(out, text)
    return out
