#!/usr/bin/env bash
# plan of a 70B model from its config.json alone, for a cluster that is not here, by rates that were measured elsewhere; what it says without rates;
# and measuring them. What the counts are worth: unit.forecast.
. "$(dirname "$0")/common.sh"
command -v python3 >/dev/null || exit 77

small_job "$WORK/tiny.yaml" "$WORK/tiny"
on 1 plan "$WORK/tiny.yaml" >"$WORK/out" 2>&1 || fault "plan ended with $?: $(cat "$WORK/out")"
grep -q '^rates  *guesses' "$WORK/out" || fault "expected guesses to be called so, found: $(grep rates "$WORK/out")"
[ -e "$WORK/tiny" ] && fault "plan made a run directory"

# the narrowest matrices alone: no time for more
on 2 plan "$WORK/tiny.yaml" --calibrate-machine --max-hours 1e-6 >"$WORK/out" 2>&1 || fault "--calibrate-machine ended with $?: $(cat "$WORK/out")"
grep -q '^rates  *.*tiny/machine.json: measured .* with 2 ranks' "$WORK/out" || fault "expected rates of 2 ranks, found: $(grep rates "$WORK/out")"
[ "$(ls "$WORK/tiny")" = machine.json ] || fault "expected machine.json alone, found: $(ls "$WORK/tiny")"

mkdir "$WORK/llama"
cat >"$WORK/llama/config.json" <<'J'
{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 8192, "intermediate_size": 28672, "num_attention_heads": 64,
 "num_key_value_heads": 8, "num_hidden_layers": 80, "vocab_size": 32000, "rms_norm_eps": 1e-5, "hidden_act": "silu", "max_position_embeddings": 4096,
 "rope_theta": 10000.0, "tie_word_embeddings": false, "torch_dtype": "float16"}
J
cat >"$WORK/llama.yaml" <<J
model: $WORK/llama
output: $WORK/run
calibration: { tokens: $WORK/no-tokens.npy, windows: 128, length: 2048 }
sweep: { method: [refine, cloq], bits: [2, 3, 4], group: [64], rank: [16, 64] }
parallel: { memory_per_node: 512 }
J
# rates of a round number: what is printed can be computed again
python3 - "$WORK" <<'P'
import json, sys
m = json.load(open(f"{sys.argv[1]}/tiny/machine.json"))
for r in m["rates"].values():
    r["at"] = [[0, {"flop/s": 4e10, "weight/s": 1e8, "byte/s": 1e9}[r["unit"]]]]
m["ranks"] = 64
json.dump(m, open(f"{sys.argv[1]}/cluster.json", "w"))
P
there() { on 1 plan "$WORK/llama.yaml" --machine "$WORK/cluster.json" --nodes 8 --ranks-per-node 64 "$@"; }
there --json >"$WORK/plan.json" 2>"$WORK/err" || fault "the plan of 70B ended with $?: $(cat "$WORK/err")"
there >"$WORK/out" 2>&1 || fault "the plan of 70B ended with $?: $(cat "$WORK/out")"
grep -q 'no weights there: planned from config.json alone' "$WORK/out" || fault "expected a word on weights, found: $(cat "$WORK/out")"
grep -q '^sbatch -N [0-9]* --ntasks-per-node=64 --mem=[0-9]*M -t [0-9]* ' "$WORK/out" || fault "no sbatch line: $(cat "$WORK/out")"
python3 - "$WORK/plan.json" <<'P' || fault "the plan of 70B"
import json, math, sys
p = json.load(open(sys.argv[1]))
f, g = p["forecast"], p["forecast"]["geometry"]
def check(what, found, expected, tolerance=1e-9):
    assert abs(found - expected) <= tolerance * abs(expected), f"{what}: expected {expected}, found {found}"
assert p["rates"] == "measured" and not p["weights"]
assert g == {"nodes": 8, "ranks_per_node": 64, "teams": 8, "ranks_per_team": 64}, g
d, wide, layers, tokens = 8192, 28672, 80, 128 * 2048
params = 2 * d * d + 2 * d * d // 8 + 3 * d * wide
c, s = f["steps"]["calibrate"], f["steps"]["solve"]
check("flops of linears", c["linears"]["flops"], layers * 2 * params * tokens)
check("flops of Grams", c["grams"]["flops"], layers * (3 * d * d + wide * wide) * tokens)
# 512 segments of 512 tokens for 64 ranks are eight steps a layer, just enough for eight teams: ten rounds, and the last team ends seven steps after the first
assert f["steps_a_layer"] == 8
check("seconds of linears", c["linears"]["seconds"], 2 * params * 8 * 512 / 4e10 * (10 + 7 / 8))
check("flops of factors", s["factor"]["flops"], layers * (3 * d**3 + wide**3) / 3 * 2)  # two orders of columns; refine spends its own between
check("disk", p["disk_bytes_grams"], layers * 4 * 128 * 128 * (3 * 64 * 65 // 2 + 224 * 225 // 2))
check("node-hours", f["node_hours"], 8 * (f["calibrate_seconds"] + f["solve_seconds"]) / 3600)
check("stages", p["calibrate_seconds"] + p["solve_seconds"], sum(x["seconds"] for steps in f["steps"].values() for x in steps.values()))
slowest = max((x["seconds"], stage, step) for stage, steps in f["steps"].items() for step, x in steps.items())
assert (f["bottleneck"]["stage"], f["bottleneck"]["step"]) == slowest[1:], (f["bottleneck"], slowest)
options = p["options"]
assert [o["geometry"]["nodes"] for o in options] == [1, 2, 4, 8, 16, 32, 64] and sum(o["recommended"] for o in options) == 1
eight = options[3]
check("an option", eight["solve_seconds"], f["solve_seconds"])
assert all(a["solve_seconds"] >= b["solve_seconds"] for a, b in zip(options, options[1:]))
check("bytes of a node", eight["bytes_a_node"], p["node_bytes"])
assert 10 << 30 < p["node_bytes"] < 512 << 30, p["node_bytes"]
P

refused() { # CODE PATTERN ARGS...
  local code=$1 pattern=$2 rc=0
  shift 2
  on 1 "$@" >/dev/null 2>"$WORK/err" || rc=$?
  [ "$rc" -eq "$code" ] && grep -q "$pattern" "$WORK/err" || fault "$*: expected code $code and '$pattern', found $rc: $(cat "$WORK/err")"
}
refused 3 'expected model.safetensors or' run "$WORK/llama.yaml"
refused 4 'memory of a node: expected at least' plan "$WORK/llama.yaml" --machine "$WORK/cluster.json" --nodes 8 --ranks-per-node 64 --set parallel.memory_per_node=8
refused 3 'config.json' plan "$WORK/tiny.yaml" --machine "$PROJECT/data/tiny/config.json"
refused 3 'nothing.json' plan "$WORK/tiny.yaml" --machine "$WORK/nothing.json"
refused 2 'nodes: expected a count of at least 1, found 0' plan "$WORK/tiny.yaml" --nodes 0
finish
