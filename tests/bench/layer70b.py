"""Rates of the steps that solved a layer, from its metrics.

    layer70b.py RUN MODEL METHOD LOG SGEMM DGEMM SGEMM DGEMM

LOG holds what tests/bench/measure.py printed of the solve; the rates are GFLOP/s of 2048^3 products on the same ranks before and after it. Counted: m^3 / 3 for
the factor of each of the four Grams (shared by the bits), n m^2 for the codes of each matrix and each number of bits.
"""
import json
import sys


def main():
    run, folder, method, log = sys.argv[1:5]
    rates = [float(x) for x in sys.argv[5:]]
    single, double = max(rates[0::2]), max(rates[1::2])
    with open(f"{folder}/config.json") as f:
        c = json.load(f)
    d, inner = c["hidden_size"], c["intermediate_size"]
    kv = c["num_key_value_heads"] * d // c["num_attention_heads"]
    shapes = [(d, d), (kv, d), (kv, d), (d, d), (inner, d), (inner, d), (d, inner)]
    with open(f"{run}/metrics.jsonl") as f:
        units = [unit for unit in map(json.loads, f) if unit.get("setting", "").startswith(method)]
    count = len(units)
    steps = {}
    for unit in units:
        for step, seconds in unit["seconds"].items():
            steps[step] = steps.get(step, 0.0) + seconds
    total = sum(seconds for step, seconds in steps.items() if step != "write")
    flops = {"factor": 3 * d**3 / 3 + inner**3 / 3, "quantize": count * sum(n * m * m for n, m in shapes)}

    print(f"{method}: {count} numbers of bits, {total:.1f} s without writing; sgemm {single:.1f}, dgemm {double:.1f} GFLOP/s beside it")
    for step, seconds in sorted(steps.items(), key=lambda item: -item[1]):
        rate = f"{1e-9 * flops[step] / seconds:8.1f} GFLOP/s, {1e-9 * flops[step] / seconds / double:.2f} of dgemm" if step in flops and seconds else ""
        print(f"  {step:9} {seconds:9.2f} s {100 * seconds / total:6.1f} %  {rate}")
        print(f"RAW layer70b_{method}_{step} {seconds:.4f}")
    for unit in units:
        print(f"  {unit['setting']}: relative loss {unit['relative_loss_without_adapter']:.4g}, {unit['relative_loss']:.4g} with the adapter")
    last = units[-1]
    if method == "refine":
        print(f"BENCH layer70b_refine_of_peak {last['gflops'] / single:.3f}")
        return
    with open(log) as f:
        gib = next(float(line.split()[2]) for line in f if line.startswith("RAW") and line.split()[1].endswith("_gib"))
    print(f"  memory: {gib:.2f} GiB at once; of a rank {last['private_bytes_peak'] / 2**30:.2f} private, of the team {last['shared_bytes_peak'] / 2**30:.2f} shared")
    both = (flops["factor"] + flops["quantize"]) / (steps["factor"] + steps["quantize"])
    print(f"BENCH layer70b_peak_gib {gib:.2f}\nBENCH layer70b_factor_optq_of_peak {1e-9 * both / double:.3f}\nBENCH layer70b_adapter_share {steps['adapter'] / total:.3f}")


main()
