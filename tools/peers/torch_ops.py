#!/usr/bin/env python3
"""Times in PyTorch the work of our bench rows, on the same shapes and the same device.

    nanochat-gpu bench --list --json --device cuda > rows.txt
    python3 tools/peers/torch_ops.py rows.txt [--device cuda[:i]|cpu] [--smoke] [--filter TEXT] [--seconds N]

Reads the rows from the last line of the file (`-` for standard input) and prints one JSON object as the last line:
for every row that PyTorch has an equal of, each variant (eager, compiled, the backends of attention) with its median
in ms. Timed as our rows are: two warm-up runs, several sets of inputs in turn so that the L2 cache is cold, CUDA events
around batches of a millisecond, the median of many; backward alone, over a graph that was built before. `--smoke`
takes few runs; `--seconds` starts no further row once they have passed. Needs torch.
"""

import argparse
import json
import math
import statistics
import sys
import time

import torch
import torch._functorch.config as functorch
from torch.nn import functional as F

from torch_gpt_cpu import Gpt, rotation

COLD_BYTES = 200 << 20
SETS_MAX = 16
BATCH_MS = 1.0
EPS = 1e-5
CAP = 15.0
TYPES = {"f32": torch.float32, "bf16": torch.bfloat16}


class Stage:
    """Makes the inputs of a row on a device, in its storage type."""

    def __init__(self, device, dtype):
        self.device, self.dtype = device, dtype

    def normals(self, *shape, grad=False):
        return torch.randn(*shape, device=self.device, dtype=self.dtype, requires_grad=grad)

    def ids(self, n, bound):
        return torch.randint(bound, (n,), device=self.device)


def forward_or_backward(direction, function, inputs, weights):
    """What runs: the function without a graph, or the gradients of `weights` alone."""
    if direction.startswith("fwd"):
        def forward():
            with torch.no_grad():
                return function(*inputs)
        return forward
    out = function(*inputs)
    outs = out if isinstance(out, tuple) else (out,)
    gradients = tuple(torch.randn_like(out) for out in outs)
    return lambda: torch.autograd.grad(outs, weights, gradients, retain_graph=True)


def copy(stage, row):
    x = stage.normals(row["extents"]["N"])
    y = torch.empty_like(x)
    return {"eager": lambda: y.copy_(x)}


def gemm(stage, row):
    m, n, k = (row["extents"][letter] for letter in "MNK")
    a = stage.normals(k, m).t() if "_am_" in row["name"] else stage.normals(m, k)
    b = stage.normals(k, n) if "_bn_" in row["name"] else stage.normals(n, k).t()
    return {"eager": lambda: a @ b}


def linear(stage, row):
    n, i, o = (row["extents"][letter] for letter in "NIO")
    x, w = stage.normals(n, i, grad=True), stage.normals(o, i, grad=True)
    return {"eager": forward_or_backward(row["direction"], F.linear, (x, w), (x, w))}


def gemm_rows(stage, row):
    n, o, k = (row["extents"][letter] for letter in "NOK")
    x, w = stage.normals(n, k), stage.normals(o, k)
    return {"eager": lambda: F.linear(x, w)}


def attention(stage, row):
    extents = row["extents"]
    decode = row["op"] == "paged_attention"  # one query of each sequence over keys and values that lie side by side here
    b, h, g, d = extents["N" if decode else "B"], extents["H"], extents["G"], extents["D"]
    keys = extents["S"] if decode else extents["T"]
    q = stage.normals(b, h, 1 if decode else keys, d, grad=True)
    k, v = stage.normals(b, g, keys, d, grad=True), stage.normals(b, g, keys, d, grad=True)
    direction = row["direction"]

    def with_backend(backends):
        from torch.nn.attention import sdpa_kernel

        def attend(q, k, v):
            with sdpa_kernel(backends):
                return F.scaled_dot_product_attention(q, k, v, is_causal=not decode, enable_gqa=h != g)

        return lambda: forward_or_backward(direction, attend, (q, k, v), (q, k, v))

    from torch.nn.attention import SDPBackend

    if stage.device == "cpu":
        return {"eager": with_backend([SDPBackend.FLASH_ATTENTION, SDPBackend.MATH])()}
    backends = {
        "flash": SDPBackend.FLASH_ATTENTION,
        "cudnn": SDPBackend.CUDNN_ATTENTION,
        "efficient": SDPBackend.EFFICIENT_ATTENTION,
    }
    return {name: Lazy(with_backend([backend])) for name, backend in backends.items()}


class Lazy:
    """A variant that may not exist for this shape or card: made when first run."""

    def __init__(self, make):
        self.make, self.run = make, None

    def __call__(self):
        self.run = self.run or self.make()
        return self.run()


def elementwise(function, inputs_of):
    """A row-wise op, eager and compiled; `inputs_of` gives the inputs and those that get gradients."""
    compiled = []

    def make(stage, row):
        inputs, weights = inputs_of(stage, row["extents"])
        variants = {"eager": Lazy(lambda: forward_or_backward(row["direction"], function, inputs, weights))}
        if stage.device != "cpu":
            if not compiled:
                compiled.append(torch.compile(function))
            variants["compiled"] = Lazy(lambda: forward_or_backward(row["direction"], compiled[0], inputs, weights))
        return variants

    return make


def rmsnorm_inputs(stage, extents):
    x, gain = stage.normals(extents["N"], extents["C"], grad=True), stage.normals(extents["C"], grad=True)
    return (x, gain), (x, gain)


def rmsnorm_add_inputs(stage, extents):
    x, delta = (stage.normals(extents["N"], extents["C"], grad=True) for _ in range(2))
    gain = stage.normals(extents["C"], grad=True)
    return (x, delta, gain), (x, delta, gain)


def add_rmsnorm(x, delta, gain):
    """The sum and its norm: both leave the op, as in ours."""
    total = x + delta
    return total, F.rms_norm(total, gain.shape, gain, EPS)


def swiglu(gate_up):
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up


def swiglu_inputs(stage, extents):
    x = stage.normals(extents["N"], 2 * extents["F"], grad=True)
    return (x,), (x,)


def rows_inputs(stage, extents):
    x = stage.normals(extents["N"], extents["C"], grad=True)
    return (x,), (x,)


def embedding(stage, row):
    n, c, v = (row["extents"][letter] for letter in "NCV")
    table, ids = stage.normals(v, c, grad=True), stage.ids(n, v)
    return {"eager": forward_or_backward(row["direction"], F.embedding, (ids, table), (table,))}


def head_and_loss(x, w, targets):
    return F.cross_entropy(F.linear(x, w).float(), targets)


def lm_loss(stage, row):
    n, c, v = (row["extents"][letter] for letter in "NCV")
    x, w, targets = stage.normals(n, c, grad=True), stage.normals(v, c, grad=True), stage.ids(n, v)

    def run_of(function):
        if row["direction"] == "fwd":
            return lambda: forward_or_backward("fwd", function, (x, w, targets), None)
        return lambda: lambda: torch.autograd.grad(function(x, w, targets), (x, w))

    variants = {"eager": Lazy(run_of(head_and_loss))}
    if stage.device != "cpu":
        variants["compiled"] = Lazy(run_of(torch.compile(head_and_loss)))
    return variants


def adamw(stage, row):
    """Values, gradients and moments in f32, as ours; a rounded copy for bf16."""
    n = row["extents"]["N"]
    w = torch.nn.Parameter(torch.randn(n, device=stage.device))
    w.grad = torch.randn(n, device=stage.device)
    optimiser = torch.optim.AdamW([w], lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    rounded = torch.empty(n, device=stage.device, dtype=stage.dtype)

    def step():
        optimiser.step()
        if stage.dtype != torch.float32:
            with torch.no_grad():
                rounded.copy_(w)

    return {"fused": step}


def train_step(stage, row):
    extents = row["extents"]
    layers, width, heads, t, b, v = (extents[letter] for letter in "LCHTBV")
    narrow = stage.dtype != torch.float32

    def make(compiled):
        model = Gpt(layers, width, heads, v).to(stage.device)
        optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
        cos, sin = (table.to(stage.device, stage.dtype) for table in rotation(t, width // heads))
        data = torch.randint(v, (b, t + 1), device=stage.device)
        tokens, targets = data[:, :-1].contiguous(), data[:, 1:].contiguous()
        loss_of = torch.compile(model.loss) if compiled else model.loss

        def step():
            with torch.autocast(stage.device, dtype=torch.bfloat16, enabled=narrow):
                loss = loss_of(tokens, targets, cos, sin)
            loss.backward()
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)

        return step

    variants = {"eager": Lazy(lambda: make(False))}
    if stage.device != "cpu":
        variants["compiled"] = Lazy(lambda: make(True))
    return variants


RMSNORM = elementwise(lambda x, gain: F.rms_norm(x, gain.shape, gain, EPS), rmsnorm_inputs)
ADD_RMSNORM = elementwise(add_rmsnorm, rmsnorm_add_inputs)
# In the order in which they are timed, should the time not do for all: bf16 first, then f32.
PEERS = {
    "copy": copy,
    "gemm": gemm,
    "attention": attention,
    "paged_attention": lambda stage, row: attention(stage, row) if "split_keys" in row["name"] else {},
    "train_step": train_step,
    "lm_loss": lm_loss,
    "rmsnorm": lambda stage, row: (ADD_RMSNORM if "_add" in row["direction"] else RMSNORM)(stage, row),
    "adamw": adamw,
    "swiglu": elementwise(swiglu, swiglu_inputs),
    "linear": linear,
    "gemm_rows": gemm_rows,
    "embedding": embedding,
    "softcap": elementwise(lambda x: CAP * torch.tanh(x / CAP), rows_inputs),
}


class Clock:
    """Time on the device: CUDA events, or the host's clock on a CPU."""

    def __init__(self, device):
        self.on_card = device != "cpu"

    def now(self):
        if not self.on_card:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def between_ms(self, start, end):
        return start.elapsed_time(end) if self.on_card else 1e3 * (end - start)

    def wait(self):
        if self.on_card:
            torch.cuda.synchronize()


def median_ms(runs, clock, smoke):
    """The median of batches over `runs`, one set of inputs each."""
    turn = 0

    def batch_of(count):
        nonlocal turn
        for _ in range(count):
            runs[turn % len(runs)]()
            turn += 1

    batch_of(2 * len(runs))
    clock.wait()
    start = clock.now()
    batch_of(len(runs))
    end = clock.now()
    clock.wait()
    once = max(clock.between_ms(start, end) / len(runs), 1e-6)
    batch = min(max(math.ceil(BATCH_MS / once), 1), 200) if clock.on_card else 1
    samples = 3 if smoke else min(max(int(300 / (once * batch)), 5), 100)
    moments = [clock.now()]
    for _ in range(samples):
        batch_of(batch)
        moments.append(clock.now())
    clock.wait()
    return statistics.median(clock.between_ms(a, b) / batch for a, b in zip(moments, moments[1:]))


def sets_of(row, stage):
    """Sets of inputs, each with its variants, more than the L2 cache holds together."""
    make = PEERS[row["op"]]
    if stage.device == "cpu" or row["op"] in ("train_step", "adamw"):
        return [make(stage, row)]
    before = torch.cuda.memory_allocated()
    sets = [make(stage, row)]
    set_bytes = max(torch.cuda.memory_allocated() - before, 1)
    count = min(max(-(-COLD_BYTES // set_bytes), 1), SETS_MAX)
    return sets + [make(stage, row) for _ in range(count - 1)]


def measure(row, device, smoke):
    """Every variant of a row: its median, or why it does not run."""
    results, sets = {}, sets_of(row, Stage(device, TYPES[row["dtype"]]))
    for variant in sets[0]:
        try:
            results[variant] = median_ms([variants[variant] for variants in sets], Clock(device), smoke)
        except Exception as error:  # a backend that does not take the shape: the others still count
            results[variant] = f"{type(error).__name__}: {str(error)[:200]}"
    return results


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--filter", default="")
    parser.add_argument("--seconds", type=float, default=math.inf)
    args = parser.parse_args()
    with sys.stdin if args.rows == "-" else open(args.rows) as file:
        listed = json.loads(file.read().splitlines()[-1])
    torch.manual_seed(0)
    functorch.donated_buffer = False  # backward is run many times over one graph
    device = torch.device(args.device).type
    if device == "cuda":
        torch.cuda.set_device(torch.device(args.device).index or 0)
    name = "cpu" if device == "cpu" else torch.cuda.get_device_name()
    started, out, late = time.perf_counter(), [], 0
    wanted = [row for row in listed["rows"] if row["op"] in PEERS and args.filter in row["name"]]
    for row in sorted(wanted, key=lambda row: (row["dtype"] != "bf16", list(PEERS).index(row["op"]))):
        if time.perf_counter() - started > args.seconds:
            late += 1
            continue
        try:
            variants = measure(row, device, args.smoke)
        except Exception as error:  # memory that does not suffice, for one: the other rows still count
            variants = {"all": f"{type(error).__name__}: {str(error)[:200]}"}
        out.append({"name": row["name"], "shape": row["shape"], "variants": variants})
        shown = {key: round(value, 4) if isinstance(value, float) else value for key, value in variants.items()}
        print(f"{row['name']} {row['shape']} {shown}", flush=True)
        if device != "cpu":
            torch.cuda.empty_cache()
    print(json.dumps({"device": name, "torch": torch.__version__, "rows": out, "rows_not_reached": late}))


if __name__ == "__main__":
    main()
