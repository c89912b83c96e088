"""`alpaca-jobs status`: how one run stands, over all its attempts."""

from __future__ import annotations

from cli import options, render, report_view


def status(run: options.RunName = None, store: options.Store = None, as_json: options.Json = False) -> None:
    """Show how a run stands; for one that is over, its report too.

    Example: alpaca-jobs status demo-x3fkd --json
    """
    from cli.finding import find_run
    from cluster.runs.report import read_report
    from cluster.runs.run_view import view_run

    found = find_run(run, store)
    view = view_run(found.root, found.run_id, is_alive=found.is_alive_here)
    report = read_report(found.root.child(found.run_id)) if view.state.is_over else None
    if as_json:
        render.out_json({**view.to_json(), "report": None if report is None else dict(report)})
        return
    grids = report_view.status_grids(view.to_json())
    if report is not None:
        grids = [grids[0], *report_view.report_grids(report)]
    for grid in grids:
        render.out_grid(grid)
