#!/usr/bin/env python3
"""Puts the parts of tools/gpu-check together: one JSON file, and a table of our times beside PyTorch's.

    python3 tools/peers/report.py FOLDER --device NAME --losses FILE --results FOLDER [--output FILE]
    python3 tools/peers/report.py FOLDER --worst

FOLDER holds NAME.out, NAME.err and NAME.status of every part that ran. `--worst` names the row with the least share of
what the card can do, and its kernel. Exit code 1 when a part failed or the losses are not those that were recorded.
"""

import argparse
import datetime
import json
import math
import pathlib
import re
import sys

PARTS = ["doctor", "bench", "bits_here", "bits_sim", "train_f32", "train_bf16", "peers", "ncu"]
F32_FLOOR = 6 * 2.0**-20
BF16_BOUND = 0.05


def last_object(path):
    """The JSON object in the last line of a file, none where there is none."""
    lines = path.read_text().splitlines() if path.exists() else []
    try:
        value = json.loads(lines[-1]) if lines else None
    except json.JSONDecodeError:
        return None
    return value if isinstance(value, dict) else None


def status(folder, part):
    """Exit code, seconds and limit of a part, with the end of what it said where it failed; none if it did not run."""
    path = folder / f"{part}.status"
    if not path.exists():
        return None
    told = json.loads(path.read_text())
    if told["exit"] != 0:
        told["said"] = (folder / f"{part}.err").read_text()[-2000:]
    return told


def key(row):
    return row["name"], row["shape"]


def share(row):
    """Share of the peak where the row is rated in operations, else of the copy's bandwidth."""
    return row.get("share_of_peak") if row["flops"] else row.get("share_of_copy")


def worst(bench):
    """The bf16 row with the least share, plain twins aside, and the kernel of its name."""
    rated = [row for row in bench["rows"] if row["dtype"] == "bf16" and share(row) and "naive" not in row["name"]]
    row = min(rated, key=share)
    named = [kernel for kernel in row["kernels"] if row["mechanism"] in kernel]
    return row["name"], (named or row["kernels"])[0]


def ratios(bench, peers):
    """For every row that PyTorch ran too: its best variant, and how many times as long that takes as ours."""
    theirs, found = {key(row): row["variants"] for row in peers["rows"]}, []
    for row in bench["rows"]:
        times = {name: ms for name, ms in theirs.get(key(row), {}).items() if isinstance(ms, float)}
        if row.get("ms") and times:
            best = min(times, key=times.get)
            ratio = {"best": best, "peer_ms": times[best], "ms": row["ms"], "speed_of_best": times[best] / row["ms"]}
            found.append({"name": row["name"], "shape": row["shape"], **ratio})
    return found


def bits(here, sim):
    """Rows whose results have the same bits on the card and in the simulator, and those that do not."""
    theirs = {key(row): row.get("digest") for row in sim["rows"]}
    compared = [row for row in here["rows"] if row.get("digest") and theirs.get(key(row))]
    different = [row["name"] for row in compared if row["digest"] != theirs[key(row)]]
    return {"compared": len(compared), "same": len(compared) - len(different), "different": different}


def losses(path):
    """The losses of a run; none for one that is not finite, which JSON has no word for."""
    lines = path.read_text().splitlines() if path.exists() else []
    found = [json.loads(line).get("loss") for line in lines]
    return [loss if loss is not None and math.isfinite(loss) else None for loss in found]


def furthest(a, b):
    if len(a) != len(b) or not a or None in a:
        return math.inf
    return max(abs(x - y) for x, y in zip(a, b))


def training(folder, recorded):
    """The losses of both types beside those recorded. f32 may be as far from the simulator's as twice the CPU is, and a rounding
    of a loss of 6; bf16, whose logits are off by 2^-8 of themselves, 0.05."""
    out = {}
    for dtype in ("f32", "bf16"):
        if not (folder / f"train_{dtype}.status").exists():
            continue
        got = losses(folder / f"metrics_{dtype}.jsonl")
        between = furthest(recorded["cpu"][dtype], recorded["sim"][dtype])
        bound = 2 * between + F32_FLOOR if dtype == "f32" else BF16_BOUND
        far = furthest(got, recorded["sim"][dtype])
        out[dtype] = {"losses": got, "furthest": far if math.isfinite(far) else None, "bound": bound, "holds": far <= bound}
    return out


def rate(row):
    if row.get("counts"):
        ratio = row["counts"]["moved_of_must"]
        return "counted" if ratio is None else f"{ratio:.2f} x the bytes"
    if not row.get("ms"):
        return row.get("error") or ""
    part = share(row)
    percent = f" ({100 * part:.0f} %)" if part else ""
    if row["tokens"]:
        return f"{row['tokens_per_s']:.0f} tokens/s{percent}"
    return (f"{row['tflops']:.2f} TFLOP/s" if row["flops"] else f"{row['gb_per_s']:.0f} GB/s") + percent


def table(result):
    """One line a row, then one a part."""
    beside = {key(row): row for row in result.get("ratios", [])}
    lines = []
    for row in (result["bench"] or {"rows": []})["rows"]:
        ms = f"{row['ms']:.4f} ms" if row.get("ms") else ""
        line = f"{row['name']:<42} {row['shape']:<36} {ms:>13}  {rate(row):<24}"
        peer = beside.get(key(row))
        lines.append(line + (f" {peer['speed_of_best']:.2f} x {peer['best']}" if peer else ""))
    for name, part in result["parts"].items():
        lines.append(f"{name:<12} {'ok' if part['exit'] == 0 else 'FAILED (' + str(part['exit']) + ')'}, {part['seconds']} s")
    if result["doctor"]:
        missed = len(result["doctor"]["not_launched"])
        kernels = result["doctor"]["kernels_for_device"]
        lines.append(f"kernels      {kernels - missed} of {kernels} launched")
    if result["bits"]:
        lines.append(f"bits         {result['bits']['same']} of {result['bits']['compared']} rows as in the simulator")
    for dtype, run in result["training"].items():
        verdict = "as recorded" if run["holds"] else "NOT as recorded"
        lines.append(f"losses {dtype:<5} {verdict}: at most {run['furthest']} away, {run['bound']:.2g} allowed")
    return "\n".join(lines)


def merged(folder, args):
    result = {
        "device": args.device,
        "date": datetime.date.today().isoformat(),
        "command": f"tools/gpu-check --device {args.device}",
        "parts": {part: told for part in PARTS if (told := status(folder, part))},
    }
    for part in ("doctor", "bench", "peers"):
        result[part] = last_object(folder / f"{part}.out")
    if result["bench"]:
        result["commit"], result["device"] = result["bench"]["commit"], result["bench"]["device"]
    here, sim = (last_object(folder / f"bits_{where}.out") for where in ("here", "sim"))
    result["bits"] = bits(here, sim) if here and sim else None
    result["training"] = training(folder, json.loads(pathlib.Path(args.losses).read_text()))
    if result["bench"] and result["peers"]:
        result["ratios"] = ratios(result["bench"], result["peers"])
    if (folder / "ncu.out").exists():
        result["ncu"] = (folder / "ncu.out").read_text()[-60_000:]
    return result


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--worst", action="store_true")
    parser.add_argument("--device", default="")
    parser.add_argument("--losses")
    parser.add_argument("--results")
    parser.add_argument("--output")
    args = parser.parse_args()
    if args.worst:
        bench = last_object(args.folder / "bench.out")
        if not bench:
            sys.exit("no bench")
        print("\t".join(worst(bench)))
        return
    result = merged(args.folder, args)
    name = re.sub(r"[^a-z0-9]+", "-", result["device"].lower()).strip("-")
    output = pathlib.Path(args.output or pathlib.Path(args.results) / f"{name}-{result['date']}.json")
    scratch = output.with_name(output.name + ".part")
    scratch.write_text(json.dumps(result, indent=1, allow_nan=False) + "\n")
    scratch.replace(output)
    print(table(result))
    print(f"written to {output}")
    failed = [part for part, told in result["parts"].items() if told["exit"] != 0]
    failed += [f"losses {dtype}" for dtype, run in result["training"].items() if not run["holds"]]
    if failed:
        sys.exit(f"gpu-check: failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
