"""The stages of one attempt in order, beginning where the newest state that counts ends."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import replace

from alpaca_jobs.data.rows import Row
from alpaca_jobs.run_layout import EVAL_LOSS
from alpaca_jobs.spec import JobSpec
from checkpoints.best import best_commit
from checkpoints.errors import NoGoodCommit
from checkpoints.keys import CommitRef
from checkpoints.lineage import counting_commits
from checkpoints.reader import list_commits
from cluster.errors import RayFailure
from cluster.job_record import read_job_record
from cluster.node.after_done import delete_trained
from cluster.node.attempt_context import AttemptContext
from cluster.node.command_stage import CommandStage
from cluster.node.generate_stage import GeneratedRows, GenerateStage, read_generated
from cluster.node.inputs import frozen_rows
from cluster.node.member import GroupWatch
from cluster.node.ray_runtime import RayRuntime
from cluster.node.review import keep_card, stop_for_review
from cluster.node.train_stage import TrainStage
from cluster.node.training_budget import check_training_budget
from cluster.phase import Phase
from cluster.process_tree import NODE_MARK

logger = logging.getLogger(__name__)


def needs_ray(job: JobSpec) -> bool:
    """Whether anything of the job runs under Ray: all but a program of the user's own on rows that exist."""
    return job.train.method != "command" or job.data.from_ is None


def run_stages(ctx: AttemptContext) -> None:
    """Run what is left of the job; returns when all is done or when a notice ended it."""
    counting = counting_commits(ctx.log.records(), list_commits(ctx.store, ctx.layout), ctx.layout)
    ctx = replace(ctx, counting=tuple(counting))
    newest = counting[0] if counting else None
    logger.info("attempt %d starts from %s", ctx.attempt, newest or "nothing")
    if newest is not None and newest.stage == "export":
        ctx.log.put_base(ctx.attempt, newest)
        ctx.interruption.is_done = True
        delete_trained(ctx)  # which the attempt that exported may not have finished
        return
    if not needs_ray(ctx.job):
        trained = ctx.commits("train")
        if not trained:
            ctx.log.put_base(ctx.attempt, None)
        stage = CommandStage(ctx)
        stage.start(ctx.world_size)
        _train(ctx, stage, frozen_rows(ctx.store), trained)
        return
    runtime = RayRuntime(
        num_cpus=_processes(ctx), num_gpus=ctx.gpus_per_node,
        name=os.environ.get(NODE_MARK, str(os.getpid())), env={}, group=ctx.group,
    )  # fmt: skip
    watch = GroupWatch([], on_lost=ctx.interruption.lose)
    try:
        ctx.events.emit("ray", seconds=round(started_s := runtime.start(), 3))
        logger.info("Ray is up after %.1f s", started_s)
        watch = GroupWatch(runtime.member_ports() if ctx.group.size > 1 else [], on_lost=ctx.interruption.lose)
        _run_with_ray(ctx, runtime)
    except Exception:
        watch.look_closely()  # a lost machine makes the others fail in many ways; that is the reason then
        raise
    finally:
        watch.close()
        runtime.stop()


def _processes(ctx: AttemptContext) -> int:
    """How many Ray is to have on this machine. It starts them at once, so there are none for what is done already."""
    ranks = ctx.world_size // ctx.group.size
    return ranks if ctx.job.data.from_ is not None or ctx.commits("train") else ctx.job.data.num_actors + ranks


def _run_with_ray(ctx: AttemptContext, runtime: RayRuntime) -> None:
    trained = ctx.commits("train")
    stage = CommandStage(ctx) if ctx.job.train.method == "command" else TrainStage(ctx, runtime)
    if trained:
        stage.start(ctx.world_size)  # its imports take seconds; the rows are read meanwhile
    rows = _rows(ctx, runtime, base_is_open=not trained)
    if ctx.interruption.notice is not None:
        return
    if not isinstance(rows, str):
        keep_card(ctx, rows)
    if "train" not in _stages(ctx):
        return
    check_training_budget(ctx)
    if not isinstance(rows, str):
        stop_for_review(ctx, rows)
    if ctx.until == "generate":
        return
    if not trained:
        stage.start(ctx.world_size)
    _train(ctx, stage, rows, trained)


def _train(
    ctx: AttemptContext, stage: TrainStage | CommandStage, rows: Sequence[Row] | str, trained: Sequence[CommitRef]
) -> None:
    """Train on the rows and export; the stage has been started."""
    try:
        stage.load(rows)
        ctx.progress.begin(tells_steps=isinstance(stage, TrainStage))
        end = stage.run(trained, base_is_open=bool(trained))
        ctx.progress.end()  # what follows has no steps
        if end.stopped_by != "done":
            ctx.interruption.left_with = end.words
            return
        ctx.interruption.done_with = end.words
        _export(ctx, stage)
        ctx.interruption.is_done = True
        delete_trained(ctx)
    finally:
        ctx.progress.end()
        stage.end()


def _stages(ctx: AttemptContext) -> tuple[str, ...]:
    """The job's stages, up to the one after which this run is over (`LaunchPlan.until`)."""
    stages = ctx.job.stages
    until = read_job_record(ctx.store).get("until")
    return stages if until is None else stages[: stages.index(until) + 1]


def _rows(ctx: AttemptContext, runtime: RayRuntime, *, base_is_open: bool) -> Sequence[Row] | str:
    """The rows to train on: the user's own file, or generated, here as far as they are missing."""
    if ctx.job.data.from_ is not None:
        if base_is_open:
            ctx.log.put_base(ctx.attempt, None)
        return frozen_rows(ctx.store)
    parts = ctx.commits("generate")
    state = read_generated(ctx, parts) if parts else GeneratedRows()
    if base_is_open:
        ctx.log.put_base(ctx.attempt, parts[0] if parts else None)
        ctx.events.emit("base", stage="generate", position=parts[0].position if parts else 0, rows=len(state.rows))
    if not state.complete:
        try:
            GenerateStage(ctx, runtime, state).run()
        except MemoryError as exc:  # no stop for memory: that halves training's micro batch, which is no help here
            raise RayFailure(
                f"Memory was not enough while rows were written: {exc} Ask with fewer processes "
                "(data.num_actors), or take a machine with more memory."
            ) from exc
        if not state.complete:
            ctx.interruption.left_with = f"Left on notice: {len(state.rows)} rows are committed."
    return state.rows


def _export(ctx: AttemptContext, stage: TrainStage | CommandStage) -> None:
    """Export the best or the newest train commit, this attempt's own included; a command's model is what it wrote."""
    ctx.marker.enter(Phase.EXPORT)
    if isinstance(stage, CommandStage):
        logger.info("the command's model is committed, weights sha256 %s", stage.export())
        return
    commits = counting_commits(ctx.log.records(), list_commits(ctx.store, ctx.layout), ctx.layout)
    trained = [ref for ref in commits if ref.stage == "train"]
    if not trained:
        raise NoGoodCommit("There is no train commit to export although training ended; nothing was exported.")
    ref = _chosen(ctx, trained)
    digest = stage.export(ref)
    logger.info("model of step %d exported, weights sha256 %s", ref.position, digest)


def _chosen(ctx: AttemptContext, trained: Sequence[CommitRef]) -> CommitRef:
    """Of the train commits that count, newest first, the one whose model is exported (`export.which`)."""
    if not ctx.job.exports_best:
        return trained[0]
    best = best_commit(ctx.store, ctx.layout, trained, EVAL_LOSS)
    if best is None:
        logger.warning("no evaluation gave a finite loss, so the last state is exported")
    return best or trained[0]
