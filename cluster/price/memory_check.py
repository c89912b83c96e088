"""Which machines hold a job, and words for a job that does not fit: what it needs, what there is, what to change."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

from alpaca_jobs.errors import AlpacaError
from alpaca_jobs.known_models import SizedModel, size_of
from alpaca_jobs.spec import JobSpec, TrainSpec
from cluster.errors import PlanError
from cluster.price.gpu_choice import join
from cluster.price.memory_advice import advice
from cluster.price.memory_fit import HOST_SHARE, Machines, MemoryFit, memory_fit
from cluster.price.offers import Offer
from cluster.price.workload import Workload

_MORE_NODES = (2, 3, 4, 6, 8)


def model_of(job: JobSpec, work: Workload | None, read: SizedModel | None = None) -> SizedModel | None:
    """The size of a job's model: as its files tell it (`read`), counted, known by its name, or guessed; None where
    nothing tells it. With the words that `train.tokenizer` adds to it.
    """
    told = size_of(job.train.model) if read is None else read
    if work is not None and (told is None or told.num_parameters != work.num_parameters):
        told = size_of(job.train.model, num_parameters=work.num_parameters)
    return None if told is None else told.with_words(words_added(job.train))


def words_added(train: TrainSpec) -> int:
    """Most words that `train.tokenizer` can add: all of the other tokenizer's, where its file is on this machine; 0
    where it is not (what a training run then needs more is rows of words alone: 16 to 18 bytes x hidden size each).
    """
    from alpaca_jobs.training.vocabulary import read_tokenizer

    if train.tokenizer is None or "://" in train.tokenizer.extend:
        return 0
    try:
        return len(json.loads(read_tokenizer(train.tokenizer.extend))["model"]["vocab"])
    except (AlpacaError, OSError, ValueError, LookupError, TypeError):
        return 0  # a file that is missing or broken is named by whoever extends the tokenizer with it


def fit_of(job: JobSpec, model: SizedModel, offer: Offer, work: Workload | None) -> MemoryFit | None:
    """What the job keeps on the GPUs of such machines; None for a GPU that is not known here."""
    if offer.gpu_name is None:
        return None
    machines = Machines(offer.gpu_name, offer.gpu_count, job.compute.num_nodes)
    return memory_fit(job.train, model, machines, row_tokens=None if work is None else work.row_tokens)


def holding(job: JobSpec, model: SizedModel, offers: Iterable[Offer], work: Workload | None) -> dict[Offer, MemoryFit]:
    """The offers whose GPUs and host memory hold the job, with the arithmetic; no bfloat16, no candidate."""
    by_gpus: dict[str, MemoryFit | None] = {}
    found = {}
    for offer in offers:
        if offer.gpus is None or (offer.gpu_name == "V100" and job.train.dtype == "bfloat16"):
            continue
        if offer.gpus not in by_gpus:
            by_gpus[offer.gpus] = fit_of(job, model, offer, work)
        fit = by_gpus[offer.gpus]
        if fit is not None and fit.fits and fit.fits_host(offer.memory_gib):
            found[offer] = fit
    return found


def check_memory(
    job: JobSpec, chosen: list[Offer], offers: Iterable[Offer], work: Workload | None, notes: list[str],
    read: SizedModel | None = None,
) -> list[Offer]:  # fmt: skip
    """Refuse a job that cannot fit; leave out machines with too little host memory; say so where it cannot be known.

    Args:
        chosen: of the GPUs that the job asks for.
        offers: all there are, for what else could be taken.
        read: the model's size as its files tell it.

    Raises:
        PlanError: it does not fit; says what is needed, what there is and what to change.
    """
    if job.train.method == "command":
        notes.append("Whether it fits was not checked: what train.command keeps in memory is not known here.")
        return chosen
    model = model_of(job, work, read)
    fit = None if model is None else fit_of(job, model, chosen[0], work)
    if model is None or fit is None:
        unknown = job.train.model if model is None else chosen[0].gpu_name
        notes.append(f"Whether it fits was not checked: the size of {unknown} is not known here.")
        return chosen
    if not fit.fits:
        shapes = sorted({offer.gpus or "" for offer in holding(job, model, offers, work)})
        raise PlanError(
            f"compute.gpus is {job.compute.gpus}, but {job.train.model} does not fit: {fit}. "
            f"{what_to_change(job, model, chosen, work, shapes)}"
        )
    if model.guess:
        notes.append(f"Whether it fits was checked by a guess: {fit}.")
    roomy = [offer for offer in chosen if fit.fits_host(offer.memory_gib)]
    if not roomy:
        most = max(offer.memory_gib or 0.0 for offer in chosen)
        if fit.loaded_gib > HOST_SHARE * most:
            raise PlanError(
                f"{job.train.model} is stored in a way that cannot be read part by part: each of "
                f"{fit.machines.gpus_per_node} ranks would load all of it, {fit.loaded_gib:.0f} GiB in float32 in the "
                f"memory of each machine, but those with {job.compute.gpus} have at most {most:.0f} GiB. Save it anew "
                "(from_pretrained, then save_pretrained) and name that, or take machines with more memory."
            )
        raise PlanError(
            f"{fit.kept_gib:.0f} GiB are kept in the memory of each machine ({_what_is_kept(fit)}), but those with "
            f"{job.compute.gpus} have at most {most:.0f} GiB, of which {HOST_SHARE:.0%} can be used. "
            f"Raise num_nodes, set train.method: lora, or take machines with more memory."
        )
    if len(roomy) < len(chosen):
        kinds = sorted({offer.instance_type for offer in chosen} - {offer.instance_type for offer in roomy})
        notes.append(f"Left out, because {fit.kept_gib:.0f} GiB are kept in a machine's memory: {join(kinds)}.")
    return roomy


def _what_is_kept(fit: MemoryFit) -> str:
    copy = f"{fit.saved_gib:.0f} for the copy that saves are stored from"
    return f"{fit.host_gib:.0f} for train.cpu_offload, {copy}" if fit.host_gib else copy


def what_to_change(
    job: JobSpec, model: SizedModel, offers: Sequence[Offer], work: Workload | None, shapes: Sequence[str]
) -> str:
    """One sentence: changes of the job that make it fit, each tried.

    Args:
        offers: the machines on which it does not fit, all with the same GPUs.
        shapes: other GPUs that hold it as it is.
    """
    offer, row_tokens = offers[0], None if work is None else work.row_tokens
    sizes = [one.memory_gib for one in offers]
    host_gib = None if None in sizes else max(size or 0.0 for size in sizes)
    machines = Machines(offer.gpu_name or "", offer.gpu_count, job.compute.num_nodes)
    ways = [f"set {way}" for way in advice(job.train, model, machines, row_tokens=row_tokens, host_gib=host_gib)]
    if shapes:
        ways.append(f"take one of {join(shapes)}")
    nodes = _enough_nodes(job, model, machines, row_tokens)
    if nodes is not None:
        ways.append(f"set compute.num_nodes: {nodes}")
    if not ways:
        return "Allow other clouds, or take a smaller model."
    text = "; ".join([*ways[:-1], f"or {ways[-1]}"] if len(ways) > 1 else ways)
    return f"{text[0].upper()}{text[1:]}."


def _enough_nodes(job: JobSpec, model: SizedModel, machines: Machines, row_tokens: float | None) -> int | None:
    for nodes in _MORE_NODES:
        wider = Machines(machines.gpu_name, machines.gpus_per_node, nodes)
        fit = memory_fit(job.train, model, wider, row_tokens=row_tokens)
        if nodes > machines.num_nodes and fit is not None and fit.fits:
            return nodes
    return None
