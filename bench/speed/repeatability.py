"""Sequential against paired timing of one pair of models, many times over: `python -m bench.speed.repeatability`.

For docs/protocol.md: how far do repeated measurements of the same speedup scatter on this machine, each way?
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

from bench import command, machine
from bench.files import keep_file

SIZES = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536}  # minilm's
BATCH, LENGTH, ROUNDS = 8, 64, 10


def measure(repeats: int) -> dict[str, Any]:
    """Speedups of the same two models, `repeats` times: all dense then all pruned, and in alternation, in turns."""
    import numpy as np
    import torch
    from tqdm import tqdm
    from transformers import BertConfig, BertForSequenceClassification

    from bench.config import LatencyPlan
    from bench.made_up import arch_of
    from bench.masks import Masks
    from bench.model import PrunableModel
    from bench.nn.shrink import shrink
    from bench.speed.timing import Ratio, alternate, forward, inputs
    from bench.tasks import KINDS

    machine.settle(machine.usable_cores())
    torch.manual_seed(0)
    module = BertForSequenceClassification._from_config(BertConfig(**SIZES), attn_implementation="sdpa")
    dense = PrunableModel(module, arch_of("bert"), KINDS["classification"])
    masks = Masks.ones(dense.shape)
    masks.heads[:, dense.shape.heads // 2 :] = masks.neurons[:, dense.shape.neurons // 2 :] = 0.0
    pruned = shrink(dense, masks)
    batch = inputs(module, BATCH, LENGTH, "cpu")
    timers = [forward(model, batch, "cpu") for model in (dense.module, pruned)]
    plan = LatencyPlan("quick", min_rounds=ROUNDS, min_seconds=1e-9)
    found: dict[str, list[float]] = {"seconds": [], "sequential": [], "paired": []}
    start = time.perf_counter()
    for _ in tqdm(range(repeats), desc="timing both ways", disable=None):
        found["seconds"].append(round(time.perf_counter() - start, 2))
        one, other = (np.median(alternate([timer], plan, warm_up=1)) for timer in timers)
        found["sequential"].append(round(float(one / other), 4))
        found["paired"].append(round(Ratio.of(*alternate(timers, plan, warm_up=1).T).speedup, 4))
    return {"machine": machine.machine_name("cpu"), "batch": BATCH, "length": LENGTH, "rounds": ROUNDS, **found}


def main() -> int:
    """Measure and write the numbers as JSON."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.speed.repeatability", description="how far repeated timings scatter, sequential and paired"
    )
    parser.add_argument("out", type=Path, nargs="?", default=Path("docs/timing.json"))
    parser.add_argument("--repeats", type=int, default=60)

    def body(words: list[str]) -> None:
        given = parser.parse_args(words)
        content = json.dumps(measure(given.repeats), indent=1) + "\n"
        keep_file(given.out, lambda file: file.write(content.encode()))
        print(f"wrote {given.out}; python -m analysis timing {given.out} draws it")

    return command.run(body, parser.format_help())


if __name__ == "__main__":
    raise SystemExit(main())
