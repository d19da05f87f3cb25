#!/usr/bin/env python3
"""What plan said of each step, and what it took: usage: plan_vs_measured.py RUN

RUN holds what `cloqwork plan JOB --calibrate-machine` (machine.json) and then `cloqwork run JOB [--layers 0-1]` on as many ranks left there: plan.json, with
which the run set out, and metrics.jsonl. Of one team, and of a run that was not cut short."""
import json, sys
from collections import defaultdict

run = sys.argv[1]
plan = json.load(open(f"{run}/plan.json"))
if plan["rates"] != "measured":
    sys.exit(f"{run}/plan.json: expected measured rates, found guesses: plan --calibrate-machine comes first")
steps = plan["forecast"]["steps"]
measured = {"calibrate": defaultdict(float), "solve": defaultdict(float)}
for line in open(f"{run}/metrics.jsonl"):
    unit = json.loads(line)
    stage = measured["solve" if unit["unit"].startswith("solutions/") else "calibrate"]
    for step, seconds in unit["seconds"].items():
        stage[step] += seconds
expected = {stage: {step: x["seconds"] for step, x in steps[stage].items()} for stage in steps}
forward = expected["calibrate"]
if forward:
    expected["calibrate"] = {"forward_and_grams": sum(forward[k] for k in ("linears", "attention", "grams")), "write": forward["write"]}
print(f"{'stage':<12}{'step':<20}{'predicted s':>12}{'measured s':>12}{'ratio':>8}")
for stage in expected:
    for step, seconds in expected[stage].items():
        took = measured[stage][step]
        print(f"{stage:<12}{step:<20}{seconds:12.3f}{took:12.3f}{seconds / took if took else float('nan'):8.2f}")
    all_expected, all_took = sum(expected[stage].values()), sum(measured[stage].values())
    if all_took:
        print(f"{stage:<12}{'together':<20}{all_expected:12.3f}{all_took:12.3f}{all_expected / all_took:8.2f}")
        print(f"BENCH plan_vs_measured_{stage} {all_expected / all_took:.3f}")
