"""What guarding hooks costs a compiled call: ResNet-50 under `torch.compile` with and without the guards.

python -m benchmarks.hook_guards
"""

import statistics
import time

import timm
import torch

import tsm_triton
from tsm_triton.torch_private import dynamo_config, skip_hook_guards

ROUNDS, CALLS = 20, 20


def main() -> None:
    model = tsm_triton.patch(timm.create_model("resnet50").eval(), num_segments=1)
    frames = torch.randn(1, 3, 32, 32)
    compiled = {}
    for skipped in (True, False):
        skip_hook_guards(dynamo_config, skipped)
        torch.compiler.reset()
        compiled[skipped] = torch.compile(model, backend="eager", fullgraph=True)
        # each its own code object's cache would hold both: time one after the other, in turns of their own
        with torch.inference_mode():
            compiled[skipped](frames)
            times = []
            for _ in range(ROUNDS):
                start = time.perf_counter()
                for _ in range(CALLS):
                    compiled[skipped](frames)
                times.append((time.perf_counter() - start) / CALLS)
        print(
            f"hooks {'not guarded' if skipped else 'guarded':<12} {statistics.median(times) * 1e6:8.0f} us a call"
        )


if __name__ == "__main__":
    main()
