"""Rows longer than the base model was trained for, by scaling its rotary position embeddings."""

from __future__ import annotations

from typing import Any

from alpaca_jobs.errors import ModelError
from alpaca_jobs.spec import TrainSpec


def stretch_context(config: Any, train: TrainSpec) -> None:
    """Write `train.rope_scaling` into a model's configuration, or refuse rows it was not made for.

    The scaling stands in the configuration that is exported, so whoever loads the model gets it. linear: positions are
    divided by the factor. Source: arXiv:2306.15595; dynamic: the base grows with the length; yarn: arXiv:2309.00071;
    all three as transformers' `modeling_rope_utils` computes them.

    Raises:
        ModelError: `max_length` is beyond the context, scaled or not; or the model has no rotary embeddings.
    """
    context = getattr(config, "max_position_embeddings", None)
    scaling, given = train.rope_scaling, getattr(config, "rope_parameters", None) or {}
    has_rope = "rope_theta" in given
    if scaling is None:
        if isinstance(context, int) and train.max_length > context:
            beyond = f"train.max_length is {train.max_length}, but {train.model} was trained for {context}"
            if not has_rope:
                raise ModelError(
                    f"{beyond} tokens. Set it to {context} or less, or take a model with a longer context."
                )
            raise ModelError(
                f"{beyond} and no rope_scaling is given. Set train.rope_scaling (linear, factor "
                f"{-(-train.max_length // context)}), or max_length to {context} or less."
            )
        return
    if not has_rope or not isinstance(context, int):
        raise ModelError(
            f"train.rope_scaling is given, but {train.model} ({config.model_type}) has no rotary position embeddings "
            "of one kind to scale. Leave rope_scaling out, and max_length within the model's context."
        )
    if given.get("rope_type", "default") != "default":
        raise ModelError(
            f"train.rope_scaling is given, but {train.model} is scaled already ({given['rope_type']}, factor "
            f"{given.get('factor')}), to {context} tokens. Leave rope_scaling out."
        )
    longest = int(context * scaling.factor)
    if train.max_length > longest:
        raise ModelError(
            f"train.max_length is {train.max_length}, but {train.model} was trained for {context}, and rope_scaling "
            f"with factor {scaling.factor:g} makes that {longest}. Set the factor to "
            f"{-(-train.max_length // context)}, or max_length to {longest} or less."
        )
    config.rope_parameters = {
        **given, "rope_type": scaling.type, "factor": scaling.factor, "original_max_position_embeddings": context,
    }  # fmt: skip
    if scaling.type != "dynamic":  # which scales from the length it was trained for, and so has to know it
        config.max_position_embeddings = longest
