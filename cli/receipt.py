"""`alpaca-jobs receipt`: what a run has cost, machine by machine, beside what it was estimated to."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from cli import options, render, words


def receipt(run: options.RunName = None, store: options.Store = None, as_json: options.Json = False) -> None:
    """Show what a run has cost so far, or in all: every machine from its boot to its end, controller, teacher, store.

    Example: alpaca-jobs receipt demo-x3fkd

    It is the catalog's price x time, not the cloud's invoice.
    """
    from cli.finding import find_run
    from cluster.launch.billed import read_paid
    from cluster.launch.receipt import make_receipt

    found = find_run(run, store)
    plan, paid, why = read_paid(found.root, found.run_id)
    if why:
        render.say(f"The cloud's own records of the machines are missing: {why}")
    body = make_receipt(plan, paid, now=time.time()).to_json()
    if as_json:
        render.out_json(body)
    else:
        render.out_grid(receipt_grid(body))


def receipt_grid(body: Mapping[str, Any]) -> render.Grid:
    """One line for each thing that was paid for, their sum, and the estimate."""
    rows = [
        (
            line["what"],
            line["detail"],
            words.duration(line["seconds"]),
            words.rate(line["price_per_hour_usd"]),
            words.money(line["usd"]),
            line["source"],
        )
        for line in body["lines"]
    ]
    rows.append(("in all", "", "", "", words.money(body["usd"]), ""))
    notes = [f"Not in it, because a price is unknown: {'; '.join(body['unknown'])}."] if body["unknown"] else []
    return render.Grid(
        ("what", "which", ">time", ">price", ">cost", "by"),
        tuple(rows),
        title=f"Receipt of {body['run_id']}",
        notes=(*notes, estimate_words(body), body["note"]),
    )


def estimate_words(body: Mapping[str, Any]) -> str:
    """The estimate beside the sum."""
    told = body["estimated_usd"]
    if not told or told.get("p50") is None:
        return "It was launched without an estimate."
    low, middle, high = (words.money(told[name]) for name in ("p10", "p50", "p90"))
    part = words.share(body["usd"], told["p50"])
    return f"Estimated before the launch: {middle} ({low} to {high}); it came to {part} of that."
