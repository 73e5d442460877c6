"""What the time of a bundle's steps goes into, by operation.

python -m benchmarks.profile --task sst2 --cells 18 --device cuda --precision bfloat16 --compile
"""

from __future__ import annotations

import argparse

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks import ours
from benchmarks.bench import TASKS
from benchmarks.workload import backbone, known_shape, workload
from tools.arguments import whole

WARM_UP_STEPS = 2


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument(
        "--shape", type=known_shape, default=None, help="t5-small, t5-base, ...; t5-base on a GPU by default"
    )
    parser.add_argument("--task", choices=TASKS, default="sst2")
    parser.add_argument("--method", choices=list(ours.HP), default="prompt_tuning")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--cells", type=whole, default=18)
    parser.add_argument("--steps", type=whole, default=2)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--rows", type=whole, default=20, help="operations to show")
    return parser.parse_args()


def main() -> None:
    options = parse()
    work = workload(options.task)
    shape = options.shape or ("t5-base" if options.device == "cuda" else "t5-small")
    network = backbone(shape, options.device, options.precision)
    network.compile(options.compile)
    arguments = (work, options.method, network, options.precision, options.cells)
    ours.trained(*arguments, WARM_UP_STEPS)
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (options.device == "cuda")
    with profile(activities=activities) as found:
        ours.trained(*arguments, options.steps)
    key = "self_cuda_time_total" if options.device == "cuda" else "self_cpu_time_total"
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}")
    print(found.key_averages().table(sort_by=key, row_limit=options.rows, max_name_column_width=60))


if __name__ == "__main__":
    main()
