"""What a person is shown who has to say whether rows are good: five lines about them, and their data card as a file."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from cli import render, words

if TYPE_CHECKING:
    from cli.finding import FoundRun

NUM_VERBS = 5
NUM_DROPS = 4


def review_grid(found: FoundRun) -> render.Grid:
    """The rows in five lines: how many, how long, what about, what was not kept, and where the card is."""
    from statistics import median

    from alpaca_jobs.data.verb_noun import verb_and_noun
    from alpaca_jobs.run_layout import LAYOUT
    from checkpoints.attempts import AttemptLog
    from checkpoints.lineage import counting_commits
    from checkpoints.reader import CommitReader, list_commits
    from cluster.node.stored_rows import read_rows

    store = found.root.child(found.run_id)
    commits = counting_commits(AttemptLog(store, LAYOUT).records(), list_commits(store, LAYOUT), LAYOUT)
    parts = [ref for ref in commits if ref.stage == "generate"]
    rows = read_rows(store, parts)
    drops: Counter[str] = Counter()
    for ref in parts:
        drops.update(CommitReader.open(store, LAYOUT, ref).manifest.meta["drops"])
    verbs = Counter(pair[0] for row in rows if (pair := verb_and_noun(row.instruction)) is not None)
    with_input = sum(bool(row.input) for row in rows)
    said = median([len(row.instruction.split()) for row in rows] or [0])
    answered = median([len(row.output.split()) for row in rows] or [0])
    return render.pairs(
        f"The rows of {found.run_id}",
        [
            ("rows", f"{len(rows):,}, {words.share(with_input, len(rows))} of them with an input"),
            ("median words", f"{said:g} of an instruction, {answered:g} of an output"),
            ("verbs", ", ".join(f"{verb} {count:,}" for verb, count in verbs.most_common(NUM_VERBS)) or words.MISSING),
            ("dropped", ", ".join(f"{name} {count:,}" for name, count in drops.most_common(NUM_DROPS)) or "nothing"),
            ("data card", str(card_file(found))),
        ],
    )


def card_file(found: FoundRun) -> Path | str:
    """The data card as a file that a browser opens: where it lies, or a copy in the run's folder on this machine.

    A dash where the run has none.
    """
    from cluster.node.review import CARD

    if not found.root.child(found.run_id).exists(CARD):
        return words.MISSING
    folder = urlsplit(found.root.uri)
    if folder.scheme == "file":
        return Path(unquote(folder.path)) / found.run_id / CARD
    copy = found.home.run(found.run_id).path / "data-card.html"
    copy.parent.mkdir(parents=True, exist_ok=True)
    copy.write_bytes(found.root.child(found.run_id).get(CARD))
    return copy
