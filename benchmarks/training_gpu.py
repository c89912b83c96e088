"""Training on one CUDA GPU: MFU on real tokens, the padded Hugging Face recipe beside it, saves, a kill, exact bits.

    python benchmarks/training_gpu.py                         # everything; expect half an hour or more
    python benchmarks/training_gpu.py --only full,hours       # some parts: full padded lora saves kill bits hours
    python benchmarks/training_gpu.py --quick                 # fewer models, shorter groups, no torch.compile
    python benchmarks/training_gpu.py --device cpu --tiny     # every path on shapes that mean nothing, no GPU needed

Needs torch with CUDA (2.11 or later, for its variable-length attention), transformers, pydantic, PyYAML, fsspec and
xxhash; accelerate for the Trainer's row and peft for LoRA, which are left out without them. This checkout need not be
installed. No Ray, no download: models are random, made from their shapes. Rows have Alpaca's lengths.

A GPU of eight trains 16 of a step's 128 rows, about 2,050 tokens, and updates an eighth of the parameters. One GPU is
measured in that proportion: micro batches of 16 rows, 128 rows a step, one update of all parameters after them. (With
16 rows a step it would update eight times as often as it has to; that is shown as well.) What the exchange between GPUs
takes is in none of these figures but the hours, where it is bytes over the links' bandwidth. Saves are measured at 1.3B
alone: their cost goes with the bytes of a state, so that a model of 7B on 8 GPUs has less of it on each.

Medians of five groups of steps. Prints `aim met: yes|no` per aim; what does not fit is not measured, and never met:
`aim met: no (not measured: why)`. Exits 1 if an aim was measured and not met, or a measurement broke, 2 without a CUDA
GPU or without a library that all parts need.
"""

from __future__ import annotations

import argparse
import importlib.util
import logging
import os
import sys
import tempfile
import time
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout; Python puts this file's folder alone

NEEDED = {
    "torch": "torch", "transformers": "transformers", "pydantic": "pydantic", "yaml": "PyYAML", "fsspec": "fsspec",
    "xxhash": "xxhash",
}  # fmt: skip
"""Module -> what pip calls it."""
PARTS = ("full", "padded", "lora", "saves", "kill", "bits", "hours")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer models, shorter groups, no torch.compile")
    parser.add_argument("--tiny", action="store_true", help="every path on tiny shapes; no figure means anything")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu goes with --tiny alone")
    parser.add_argument("--only", default=",".join(PARTS), help=f"parts, with commas between: {' '.join(PARTS)}")
    parser.add_argument("--scratch", default=tempfile.gettempdir(), help="a folder for checkpoints, on a fast disk")
    arguments = parser.parse_args()
    wanted = arguments.only.split(",")
    if unknown := sorted(set(wanted) - set(PARTS)):
        parser.error(f"--only names {', '.join(unknown)}; there are {', '.join(PARTS)}")
    if arguments.device == "cpu" and not arguments.tiny:
        parser.error("--device cpu measures nothing here: add --tiny to try the paths, or see benchmarks/training.py")
    if missing := [name for module, name in NEEDED.items() if importlib.util.find_spec(module) is None]:
        print(f"Not installed here: {', '.join(missing)}. Install with: pip install {' '.join(missing)}",
              file=sys.stderr)  # fmt: skip
        sys.exit(2)
    import torch

    os.environ["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    if arguments.device == "cuda" and not torch.cuda.is_available():
        built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
        print(f"No CUDA GPU was found here (torch {torch.__version__}, {built}); one of an H100's class with 80 GB is "
              "wanted: run this there, or try its paths here with --device cpu --tiny.", file=sys.stderr)  # fmt: skip
        sys.exit(2)
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    from gpu_training.bench import Bench  # seconds of importing, for nothing where there is no GPU

    with tempfile.TemporaryDirectory(dir=arguments.scratch) as scratch:
        bench = Bench(
            on_gpu=arguments.device == "cuda", is_tiny=arguments.tiny, is_quick=arguments.quick, scratch=scratch
        )
        for part in PARTS:
            if part in wanted:
                print(f"\n== {part}", flush=True)
                begin = time.monotonic()
                getattr(bench, part)()
                print(f"   ({time.monotonic() - begin:.0f} s)", flush=True)
    sys.exit(bench.verdicts.end())


if __name__ == "__main__":
    main()
