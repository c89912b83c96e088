"""How long training takes: FLOPs / (GPUs x peak x MFU), with every factor named.

    6 FLOPs x parameters x tokens        forward and backward of every token (PaLM, arXiv:2204.02311, appendix B);
    -----------------------------        attention is left out: at 512 tokens it adds 1 % to a 7B, at 2048 4 %
    GPUs x peak FLOPS x MFU

LoRA takes 4, as its frozen weights have no gradients. Tokens are real ones, padding excluded, so MFU here is a share of
the peak that reaches real tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

from alpaca_jobs.spec import TrainSpec

FLOPS_PER_PARAMETER_AND_TOKEN = 6

# Prior of the model FLOPs utilisation until a run of one's own has measured it. The published runs that were tuned
# used 0.437, 0.514 and 0.477 (LLaMA 7B, 13B, 65B) and 0.29, 0.30 (Vicuna 13B, 7B); docs/ESTIMATE.md derives each. Their
# geometric mean is 0.39, the standard deviation of their logarithms 0.27.
MFU_PRIOR = 0.4
MFU_SPREAD = 0.27


def flops_per_parameter(train: TrainSpec) -> float:
    """FLOPs for each parameter of the base model and token.

    6 where all are trained, recomputation not counted: it is part of what the MFU says. With LoRA the backward pass
    makes no gradients of the frozen weights, so a third falls away: 4. Where activations are computed again, which
    costs 2 either way, LoRA does 6 where full training does 8, and counts 6 x 6 / 8. The adapters, below a hundredth of
    the base, are left out. Source: PaLM, arXiv:2204.02311, appendix B (2 forward, 4 backward, half of it for weights).
    """
    full = float(FLOPS_PER_PARAMETER_AND_TOKEN)
    if train.lora is None:
        return full
    again = 2.0 if train.gradient_checkpointing is True else 0.0
    return full * (4.0 + again) / (6.0 + again)


@dataclass(frozen=True)
class Throughput:
    """The speed of one job on some GPUs.

    Attributes:
        mfu: 0 to 1, of real tokens.
        spread: standard deviation of ln(mfu); 0 for a measured one.
        flops_per_parameter: and token; `flops_per_parameter(train)`.
    """

    num_gpus: int
    peak_flops: float
    mfu: float = MFU_PRIOR
    spread: float = MFU_SPREAD
    flops_per_parameter: float = FLOPS_PER_PARAMETER_AND_TOKEN

    def tokens_per_second(self, num_parameters: float) -> float:
        """Of the whole job."""
        flops_per_token = self.flops_per_parameter * num_parameters
        return self.num_gpus * self.peak_flops * self.mfu / flops_per_token

    def seconds(self, *, num_parameters: float, tokens: float) -> float:
        """Seconds of training steps for that many tokens, all epochs counted."""
        return tokens / self.tokens_per_second(num_parameters)


def measured_mfu(
    *,
    num_parameters: float,
    tokens: float,
    seconds: float,
    num_gpus: int,
    peak_flops: float,
    flops_per_parameter: float = FLOPS_PER_PARAMETER_AND_TOKEN,
) -> float:
    """The MFU that a run of known length had: the same formula, solved for its last factor."""
    return flops_per_parameter * num_parameters * tokens / (seconds * num_gpus * peak_flops)
