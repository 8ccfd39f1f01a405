#!/usr/bin/env python3
"""Times a training step of our plain backbone in eager PyTorch on the CPU, in f32.

    python3 tools/peers/torch_gpt_cpu.py LAYERS WIDTH HEADS LENGTH ROWS VOCABULARY [STEPS]
    python3 tools/peers/torch_gpt_cpu.py 6 384 6 256 8 65

The model is that of the bench `train_step_adamw_f32`: RMSNorm before attention and SwiGLU, rotary positions, fused
q-k-v and gate-up products, no biases, head apart from the embedding. A step is forward, loss, backward, AdamW and the
clearing of gradients. Prints one line: the median step in ms, tokens per second, and the most memory held above what
was held before the model was made. Needs torch.
"""

import statistics
import sys
import time

import torch
from torch import nn
from torch.nn import functional as F

WARM_UP_STEPS = 2
THETA = 10000.0
EPS = 1e-5


def status_mib(field):
    """A size out of /proc/self/status."""
    with open("/proc/self/status") as status:
        for line in status:
            if line.startswith(field + ":"):
                return int(line.split()[1]) / 1024
    return float("nan")


def rotation(length, head_dim):
    """Cosine and sine, each [length, head_dim / 2]."""
    frequency = THETA ** (-torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
    angle = torch.arange(length, dtype=torch.float64)[:, None] * frequency[None, :]
    return angle.cos().float(), angle.sin().float()


def rotate(x, cos, sin):
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


class Block(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        hidden = -(-(8 * width // 3) // 64) * 64
        self.heads = heads
        self.attention_norm = nn.RMSNorm(width, eps=EPS)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.output = nn.Linear(width, width, bias=False)
        self.mlp_norm = nn.RMSNorm(width, eps=EPS)
        self.gate_up = nn.Linear(width, 2 * hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, h, cos, sin):
        b, t, c = h.shape
        packed = self.qkv(self.attention_norm(h)).view(b, t, 3, self.heads, c // self.heads)
        q, k, v = (part.transpose(1, 2) for part in packed.unbind(2))
        mixed = F.scaled_dot_product_attention(rotate(q, cos, sin), rotate(k, cos, sin), v, is_causal=True)
        h = h + self.output(mixed.transpose(1, 2).reshape(b, t, c))
        gate, up = self.gate_up(self.mlp_norm(h)).chunk(2, dim=-1)
        return h + self.down(F.silu(gate) * up)


class Gpt(nn.Module):
    def __init__(self, layers, width, heads, vocabulary):
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.blocks = nn.ModuleList([Block(width, heads) for _ in range(layers)])
        self.norm = nn.RMSNorm(width, eps=EPS)
        self.head = nn.Linear(width, vocabulary, bias=False)

    def loss(self, tokens, targets, cos, sin):
        h = self.embedding(tokens)
        for block in self.blocks:
            h = block(h, cos, sin)
        logits = self.head(self.norm(h))
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def main():
    if not 7 <= len(sys.argv) <= 8:
        sys.exit(__doc__)
    layers, width, heads, length, rows, vocabulary = map(int, sys.argv[1:7])
    steps = int(sys.argv[7]) if len(sys.argv) == 8 else 10
    torch.manual_seed(0)
    before_mib = status_mib("VmRSS")
    model = Gpt(layers, width, heads, vocabulary)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, foreach=True)
    cos, sin = rotation(length, width // heads)
    data = torch.randint(vocabulary, (rows, length + 1))
    tokens, targets = data[:, :-1].contiguous(), data[:, 1:].contiguous()
    seconds = []
    for _ in range(WARM_UP_STEPS + steps):
        start = time.perf_counter()
        loss = model.loss(tokens, targets, cos, sin)
        loss.backward()
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        loss.item()
        seconds.append(time.perf_counter() - start)
    median = statistics.median(seconds[WARM_UP_STEPS:])
    print(
        f"L{layers} C{width} H{heads} T{length} B{rows} V{vocabulary}: median {1e3 * median:.1f} ms,"
        f" {rows * length / median:.0f} tokens/s, peak {status_mib('VmHWM') - before_mib:.0f} MiB"
        f" (torch {torch.__version__}, {torch.get_num_threads()} threads)"
    )


if __name__ == "__main__":
    main()
