"""llama.cpp on this CPU: seconds of a prompt of 256 tokens, and of a token behind it.

    python3 tools/peers/llama_cpu.py MODEL.gguf [THREADS]

Needs llama-cpp-python. Prints medians and the peak of the process, which includes Python.
"""

import resource
import statistics
import sys
import time

import llama_cpp

PROMPT, TOKENS, RUNS = 256, 64, 5


def main():
    path = sys.argv[1]
    threads = int(sys.argv[2]) if len(sys.argv) > 2 else 2
    began = time.perf_counter()
    model = llama_cpp.Llama(path, n_ctx=2048, n_threads=threads, n_threads_batch=threads, verbose=False)
    opening = time.perf_counter() - began
    prompts, tokens = [], []
    for run in range(RUNS):
        model.reset()
        began = time.perf_counter()
        model.eval([(i * 37 + run * 1001) % 49000 + 100 for i in range(PROMPT)])
        prompts.append(time.perf_counter() - began)
        for i in range(TOKENS):
            began = time.perf_counter()
            model.eval([i * 7 + 100])
            tokens.append(time.perf_counter() - began)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    prompt, token = PROMPT / statistics.median(prompts), 1 / statistics.median(tokens)
    print(f"prompt {prompt:.1f} tokens/s, decode {token:.1f} tokens/s; opened in {opening:.2f} s, peak {peak} MiB")


if __name__ == "__main__":
    main()
