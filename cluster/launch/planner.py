"""JobSpec + offers -> LaunchPlan. Pure: the same job and offers make the same plan, and nothing is started.

Candidates are ordered by price per hour of the whole job, ties by cloud, region and zone; regions of AWS that accounts
have to switch on come after the others, unless the account was asked or the job names them; on-demand machines beside
spot ones come after all of these. On local the pretend regions keep the order they were given in.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Literal

from alpaca_jobs.known_models import SizedModel
from alpaca_jobs.spec import LOCAL_REGIONS, JobSpec
from cluster.code_version import code_version as own_code_version
from cluster.errors import PlanError
from cluster.launch.allowed_offers import (
    check_region_names,
    in_infra,
    in_regions,
    is_in_regions,
    order_of,
    payable_offers,
    with_pricing,
)
from cluster.plan import LaunchPlan, Placement
from cluster.price.account_limits import NOT_ASKED, AccountLimits, is_doubtful
from cluster.price.account_words import within_account
from cluster.price.assumptions import Assumptions
from cluster.price.gpu_choice import join, offers_with_gpus
from cluster.price.memory_check import check_memory, fit_of, holding, model_of, what_to_change
from cluster.price.offers import Offer, PriceList, load_offers
from cluster.price.own_machines import OWN_MACHINES, own_offers
from cluster.price.shape_choice import rank_shapes
from cluster.price.side_machines import generation_places, placement_of_offer, served_gpus, writes_rows_apart
from cluster.price.workload import Workload, workload_of

_NO_OFFERS = PriceList(())


def offers_for(job: JobSpec) -> PriceList:
    """Load the offers that a plan for this job looks at (reads files; see cluster/price/offers.py)."""
    if job.compute.is_own:
        return own_offers(job.compute)
    machines: Literal["gpu", "cpu"] = "cpu" if job.compute.gpus is None else "gpu"
    return load_offers(job.compute.infra, local_regions=job.compute.regions or LOCAL_REGIONS, machines=machines)


def side_offers_for(job: JobSpec, offers: PriceList) -> PriceList:
    """Load the offers of machines without GPUs, which write rows or watch; `offers` are those of `offers_for(job)`.

    Those with the GPUs that the job's own teacher is served by are among them.

    Raises:
        PlanError: nobody sells these GPUs.
    """
    if job.compute.is_local or job.compute.is_own:
        return PriceList(())
    small = offers if job.compute.gpus is None else load_offers(job.compute.infra, machines="cpu")
    if (wanted := served_gpus(job)) is None:
        return small
    name, _, count = wanted.partition(":")
    large = offers if job.compute.gpus is not None else load_offers(job.compute.infra, machines="gpu")
    found = offers_with_gpus(
        large, name, int(count), asked=f"data.teacher.server.gpus is {wanted}", sellers=job.compute.infra,
        key="data.teacher.server.gpus: ",
    )  # fmt: skip
    return PriceList((*small, *found), small.sources)


def plan_launch(
    job: JobSpec,
    *,
    run_id: str,
    offers: PriceList,
    side_offers: PriceList = _NO_OFFERS,
    folder: Path | None = None,
    code_version: str | None = None,
    limits: AccountLimits = NOT_ASKED,
    work: Workload | None = None,
    assumed: Assumptions | None = None,
    read: SizedModel | None = None,
    base_bytes: int | None = None,
) -> LaunchPlan:
    """Decide where a job may run and in which order.

    Args:
        job: a checked job.
        run_id: the run's name for good.
        offers: what there is to choose from (`offers_for(job)`).
        side_offers: the same for machines that write the rows (`side_offers_for(job, offers)`); with none of them the
            rows are written where the training runs.
        folder: what a relative `store` is relative to; None for the working folder.
        code_version: recorded in the plan; None for the code that is running.
        limits: what the account said it may have; machines that it may not have are left out.
        work, assumed: by which memory is checked and `gpus: auto` compares machines; None for what the job says, and
            for the priors.
        read, base_bytes: the base model's size, and what each machine fetches of it, as its files tell them; None where
            they were not looked at.

    Raises:
        PlanError: no offer fits; says which wish left none.
    """
    compute = job.compute
    notes: list[str] = []
    fitting = in_infra(job, offers)
    check_region_names(job, fitting)
    fitting = within_account(job, fitting, limits, notes)
    fitting = _with_gpus(job, fitting, notes, _counted(job, work, read), assumed or Assumptions(), limits, read)
    fitting = in_regions(job, fitting, notes)
    fitting = with_pricing(job, fitting, limits)
    places = tuple(placement_of_offer(offer, num_nodes=compute.num_nodes) for offer in fitting)
    world_size = compute.num_nodes * (fitting[0].gpu_count or compute.workers or 1)
    _check_ranks(job, world_size)
    if compute.is_own:
        notes.append(OWN_MACHINES.format(infra=compute.infra[0]))
    if offers.sources:
        notes.append(f"Prices: {'; '.join(map(str, offers.sources))}.")
    return LaunchPlan(
        run_id=run_id,
        job=job,
        store_uri=resolve_store(job, folder or Path.cwd()),
        candidates=places,
        world_size=world_size,
        code_version=code_version or own_code_version(),
        notes=tuple(notes),
        generation=_writers(job, limits, list(side_offers)),
        num_parameters=None if read is None else read.num_parameters,
        base_bytes=base_bytes,
    )


def _writers(job: JobSpec, limits: AccountLimits, offers: list[Offer]) -> tuple[Placement, ...]:
    """Where the rows are written before the training; a teacher of the run's own has to be served somewhere."""
    places = generation_places(job, limits.within(offers, num_nodes=1), limits)
    if not places and writes_rows_apart(job) and (gpus := served_gpus(job)) is not None:
        raise PlanError(
            f"data.teacher.server.gpus is {gpus}, but no such machine has a price as compute.spot and compute.regions "
            "allow it. Take other GPUs, set spot: false, or allow more regions."
        )
    return places


def resolve_store(job: JobSpec, folder: Path) -> str:
    """The store's root as a URI that means the same from everywhere.

    Args:
        job: its `store`: auto, a path, or a URI.
        folder: what relative paths are relative to.

    Raises:
        PlanError: a store that the job's machines cannot reach.
    """
    store, is_local = job.store, job.compute.is_local
    if store == "auto":
        return f"file://{(folder / 'runs').resolve()}" if is_local else "auto"
    scheme, found, rest = store.partition("://")
    if found and scheme not in ("file", "memory"):
        return store
    if found and scheme == "memory":
        raise PlanError(f"store is {store}, which lives inside one process, and a run has several. Use file://./runs.")
    if not is_local:
        raise PlanError(
            f"store is {store}, a folder of this machine, which machines on {join(job.compute.infra)} cannot reach. "
            "Use s3://, gs:// or az://, or auto."
        )
    return f"file://{(folder / Path(rest if found else store).expanduser()).resolve()}"


def _counted(job: JobSpec, work: Workload | None, read: SizedModel | None) -> Workload | None:
    """The work as it is given, or as the job alone tells it; None where it does not."""
    if work is not None:
        return work
    try:
        return workload_of(job, read=read)
    except PlanError:
        return None


def _with_gpus(
    job: JobSpec,
    offers: list[Offer],
    notes: list[str],
    work: Workload | None,
    assumed: Assumptions,
    limits: AccountLimits,
    read: SizedModel | None,
) -> list[Offer]:
    """Keep the machines with the wanted GPUs; for auto, choose the shape."""
    compute = job.compute
    if compute.gpus == "auto":
        return _automatic(job, offers, notes, work, assumed, limits, read)
    wanted = compute.gpu_request
    if wanted is None:
        return offers if compute.is_local else _host_machines(job, offers)
    found = offers_with_gpus(
        offers, wanted.name, wanted.count, asked=f"compute.gpus is {compute.gpus}", sellers=compute.infra,
        key="gpus: ", elsewhere=", or use num_nodes to add machines",
    )  # fmt: skip
    return check_memory(job, found, offers, work, notes, read)


def _automatic(
    job: JobSpec,
    offers: list[Offer],
    notes: list[str],
    work: Workload | None,
    assumed: Assumptions,
    limits: AccountLimits,
    read: SizedModel | None,
) -> list[Offer]:
    """The shape expected to finish for least, among those into which the job fits (cluster/price/memory_fit.py)."""
    if job.train.method == "command":
        raise PlanError(
            "compute.gpus is auto, but what train.command needs is not known here. Say which machine it is written "
            "for, for example gpus: A100-80GB:8."
        )
    model = model_of(job, work, read)
    if model is None:
        raise PlanError(
            f"compute.gpus is auto, but the size of {job.train.model} is not known here, so no machine can be picked. "
            "Say how many GPUs it needs, for example gpus: A100-80GB:8 for about 7 to 20 billion parameters."
        )
    fits = holding(job, model, offers, work)
    payable = [offer for offer in payable_offers(job, offers) if is_in_regions(job, offer)]
    priced = [offer for offer in payable if offer in fits]
    if not priced:
        raise PlanError(_nothing_holds(job, model, payable, work))
    trusted = limits.trusted(job.compute.regions)
    sure = [offer for offer in priced if not is_doubtful(offer, trusted)] or priced
    ranked = () if work is None else rank_shapes(job, sure, work, assumed)
    gpus = ranked[0].gpus if ranked else min(sure, key=partial(order_of, trusted)).gpus
    assert gpus is not None
    others = f"; then {join(map(str, ranked[1:4]))}" if len(ranked) > 1 else ""
    why = (
        f"expected to finish the training for least, set-up counted: {ranked[0]}{others}"
        if ranked
        else f"the lowest price per hour that holds {job.train.model}, since nobody has counted its rows"
    )
    chosen = [offer for offer in fits if offer.gpus == gpus]
    notes.append(f"gpus: auto took {gpus}, {why}. It fits: {fits[chosen[0]]}.")
    return chosen


def _nothing_holds(job: JobSpec, model: SizedModel, payable: list[Offer], work: Workload | None) -> str:
    """What to say where nothing that is sold holds the job: how near the nearest comes, and what would change that."""
    found = f"compute.gpus is auto, but nothing sold on {join(job.compute.infra)} at a known price"
    fits = [(fit, offer) for offer in payable if (fit := fit_of(job, model, offer, work)) is not None]
    if not fits:
        return (
            f"{found} has GPUs that are known here. Name the GPUs: gpus: A100-80GB:8, or allow more regions or clouds."
        )
    nearest, offer = min(fits, key=lambda one: one[0].needed_gib / one[0].memory_gib)
    alike = [one for one in payable if one.gpus == offer.gpus]
    return f"{found} holds {job.train.model}. {offer.gpus} comes nearest: {nearest}. " + what_to_change(
        job, model, alike, work, ()
    )


def _host_machines(job: JobSpec, offers: Iterable[Offer]) -> list[Offer]:
    """Machines without GPUs that have a CPU for every thread of the training ranks."""
    wanted = (job.compute.workers or 1) * job.compute.threads_per_worker
    found = [offer for offer in offers if offer.gpu_name is None and (offer.vcpus or 0) >= wanted]
    if not found:
        raise PlanError(
            f"compute asks for workers x threads_per_worker = {wanted} CPUs in a machine, and the price lists of "
            f"{join(job.compute.infra)} have none that large. Lower workers, or ask for GPUs."
        )
    return found


def _check_ranks(job: JobSpec, world_size: int) -> None:
    if job.train.method == "command":
        return
    if job.train.engine == "single" and world_size > 1:
        raise PlanError(
            f"train.engine is single, but there would be {world_size} training ranks, which would each train a model "
            "of their own. Set engine: auto or ddp, or take a machine with one GPU, or one worker."
        )
    if world_size > job.train.global_batch_size:
        raise PlanError(
            f"train.global_batch_size is {job.train.global_batch_size}, but there would be {world_size} training "
            "ranks, and some would never see a row. Use fewer GPUs or workers, or a larger batch."
        )
