"""Medians and ratios of what `compare-llama` logged."""

import re
import statistics
import sys
from collections import defaultdict

ours, theirs = defaultdict(list), defaultdict(list)
for line in open(sys.argv[1]):
    if line.startswith("llama.cpp"):
        for name, rate in re.findall(r"(prompt|decode) ([0-9.]+) tokens/s", line):
            theirs[name].append(float(rate))
    else:
        row, seconds = line.rsplit(" ", 1)
        tokens = 256 if "prompt" in row else 8 if row.endswith("N8") else 1
        ours[row].append(tokens / float(seconds))

for row, rates in ours.items():
    peer = statistics.median(theirs["prompt" if "prompt" in row else "decode"])
    rate = statistics.median(rates)
    print(f"{row}: {rate:.0f} tokens/s, {rate / peer:.2f} x llama.cpp's {peer:.0f}")
