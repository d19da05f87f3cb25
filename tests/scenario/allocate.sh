#!/usr/bin/env bash
# Bits, group and rank that differ between matrices, and allocate, through the whole program: what is solved is what was asked for, matrix
# by matrix; what allocate promised is what solve then finds; it never loses to the best setting that is the same everywhere.
. "$(dirname "$0")/common.sh"
command -v python3 >/dev/null || exit 77

cat >"$WORK/job.yaml" <<J
model: $PROJECT/data/tiny
output: $WORK/run
calibration: { tokens: $PROJECT/data/tiny/calib.npy, windows: 16, length: 128 }
heldout: { tokens: $PROJECT/data/tiny/heldout.npy, windows: 8, length: 128 }
targets: [q_proj, k_proj, o_proj, up_proj, down_proj]
sweep:
  - { method: cloq, bits: [2, 3, 4], rank: [4, 32] }
  - $WORK/mixed.yaml
options: { magr_K: 10 }
J
cat >"$WORK/mixed.yaml" <<J
method: cloq
bits: { default: 2, down_proj: 4, layers 0-1: 3, layers.5.self_attn.q_proj: 8 }
group: { default: 64, o_proj: 32 }
rank: { default: 8, down_proj: 16, layer 3: 4 }
label: mixed
J
run() {
  local ranks=$1
  shift
  on "$ranks" "$@" >"$WORK/out" 2>"$WORK/err" || fault "$* on $ranks ended with $?: $(cat "$WORK/err")"
}
refuse() { # EXIT PATTERN ARGS...: one line
  local code=$1 pattern=$2 found
  shift 2
  on 1 "$@" >"$WORK/out" 2>"$WORK/err"
  found=$?
  [ $found = "$code" ] || fault "$*: expected exit code $code, found $found"
  grep -Eq "^cloqwork: .*$pattern" "$WORK/err" || fault "$*: expected a line with $pattern, found: $(cat "$WORK/err")"
}

# no curves yet
refuse 3 'expected a setting like cloq-b2-g64-magr_K_10 with all 6 layers solved' allocate "$WORK/job.yaml" --budget 5

run 2 run "$WORK/job.yaml" --quiet
run 1 status "$WORK/run" --complete # by the resolved job, in which the map stands instead of its file
run 3 verify "$WORK/run"
rm "$WORK/mixed.yaml"
cp "$WORK/run/job.yaml" "$WORK/resolved.yaml"
lines=$(wc -l <"$WORK/run/metrics.jsonl")
run 1 solve "$WORK/run" --quiet
[ "$(wc -l <"$WORK/run/metrics.jsonl")" = "$lines" ] || fault "a second solve: expected nothing to do"

# the budget; JSON holds what the table does
refuse 2 'expected at least 3.* bits per weight .2 bits and the smallest rank everywhere., found 2' allocate "$WORK/run" --budget 2
refuse 2 'budget: expected bits per weight above 0, found many' allocate "$WORK/run" --budget many
refuse 2 'budget: expected bits per weight, such as 2.75, found nothing' allocate "$WORK/run"
refuse 2 'expected settings of the job .* of method loftq, found none' allocate "$WORK/run" --budget 5 --method loftq
refuse 2 'expected all layers' allocate "$WORK/run" --budget 5 --layers 0-2
refuse 2 'name: expected fewer than' allocate "$WORK/run" --budget 5 --name ../x
echo '{ down_prj: 2 }' >"$WORK/weights.yaml"
refuse 2 'down_prj: .*did you mean down_proj' allocate "$WORK/run" --budget 5 --weights "$WORK/weights.yaml"
for budget in 4 5 6.5; do
  run 2 allocate "$WORK/run" --budget $budget --json
  cp "$WORK/out" "$WORK/budget$budget.json"
done
run 1 allocate "$WORK/run" --budget 5 # again: the same, as a table
grep -q 'optimality gap' "$WORK/out" || fault "the table: expected the optimality gap"
echo '{ down_proj: 20 }' >"$WORK/weights.yaml"
refuse 2 'expected no other allocation of this name' allocate "$WORK/run" --budget 5 --weights "$WORK/weights.yaml"
run 1 allocate "$WORK/run" --budget 5 --weights "$WORK/weights.yaml" --name heavy --json
cp "$WORK/out" "$WORK/heavy.json"

# settings like any other from now on; codes and fits that others have are taken over
run 2 solve "$WORK/run" --quiet
run 2 verify "$WORK/run" --settings '*-budget*'
run 2 eval "$WORK/run" --settings '*-budget5' --json
grep -q budget5 "$WORK/out" || fault "eval: expected the allocation's points"
mv "$WORK/run" "$WORK/moved"
name=$(sed -n 's/^  "setting": "\(.*\)",*$/\1/p' "$WORK/budget5.json")
run 2 export "$WORK/moved" --setting "$name" --to dense --merge --out "$WORK/export"
run 1 report "$WORK/moved"
grep -q "$name" "$WORK/out" || fault "report: expected $name"
grep -q -- '-mixed   2 to 8 bits, ' "$WORK/out" || fault "report: expected the bits of the mixed setting, found: $(grep -- '-mixed  ' "$WORK/out")"

# methods whose codes belong to one rank: candidates are the ranks that have some; the allocations above keep their own options here
sed "s|^output: .*|output: $WORK/moved|; /^sweep:/,\$d" "$WORK/job.yaml" >"$WORK/joint.yaml"
cat >>"$WORK/joint.yaml" <<J
sweep:
  - { method: loftq, bits: [2, 4], rank: [4, 16], options: { loftq_T: 2 } }
  - { method: refine, bits: [2, 4], rank: [4, 8, 16], options: { refine_rounds: 3+2 } }
J
run 2 solve "$WORK/joint.yaml" --quiet
run 2 allocate "$WORK/joint.yaml" --method loftq --budget 5 --name joint --json
cp "$WORK/out" "$WORK/joint.json"
run 1 allocate "$WORK/joint.yaml" --method refine --budget 5 --name joint-refine --json
cp "$WORK/out" "$WORK/joint-refine.json"
run 1 plan "$WORK/joint.yaml"
grep -q '^codes refined for a rank  *30  *0  *' "$WORK/out" || fault "plan: expected 30 refined matrices that are all there, found: $(grep refined "$WORK/out")"
run 2 solve "$WORK/joint.yaml" --quiet
run 2 verify "$WORK/joint.yaml" --settings '*-joint*'

python3 - "$WORK" "$WORK/moved" <<'P' || fault "the numbers"
import json, re, subprocess, sys
work, folder = sys.argv[1:]
wrong = 0
def check(what, good):
    global wrong
    if not good:
        wrong += 1
        print("expected", what, file=sys.stderr)

def solved(name):  # {"layers.0.self_attn.q_proj": (bits, group, rank, relative losses)}
    out = {}
    for layer in range(6):
        text = subprocess.run(["h5dump", "-m", "%.17g", f"{folder}/solutions/{name}/layer-{layer:03d}.h5"], capture_output=True, text=True, check=True).stdout
        for block in re.split(r'\n   GROUP "', text)[1:]:
            number = lambda a: float(re.search(r'ATTRIBUTE "%s" \{.*?\(0\): ([-+.e0-9]+)' % a, block, re.S).group(1))
            data = re.search(r'DATASET "loss" \{.*?DATA \{(.*?)\n      ? *\}', block, re.S).group(1)
            losses = [float(x) for x in re.sub(r"\(\d+\):", "", data).replace(",", " ").split()]
            out[f"layers.{layer}." + block.split('"')[0]] = int(number("bits")), int(number("group")), len(losses) - 1, [x / number("reference") for x in losses]
    return out

def expected_mixed(name):
    layer, target = int(name.split(".")[1]), name.split(".")[-1]
    bits = 8 if name == "layers.5.self_attn.q_proj" else 4 if target == "down_proj" else 3 if layer < 2 else 2
    return bits, 32 if target == "o_proj" else 64, 16 if target == "down_proj" else 4 if layer == 3 else 8

plain = {b: solved(f"cloq-b{b}-g64-magr_K_10") for b in (2, 3, 4)}
mixed = solved("cloq-b2-g64-magr_K_10-mixed")
check("30 matrices", len(mixed) == 30)
for name, (bits, group, rank, losses) in mixed.items():
    check(f"{name}: {expected_mixed(name)}, found {(bits, group, rank)}", expected_mixed(name) == (bits, group, rank))
    if group == 64 and bits < 8:  # every matrix as in the setting that has its bits everywhere: settings do not change each other
        same = plain[bits][name][3]
        check(f"{name}: the losses of {bits} bits everywhere", all(abs(a - b) <= 1e-6 * b for a, b in zip(losses, same)))

def mean(found):
    return sum(l[-1] for _, _, _, l in found.values()) / len(found)

for budget, name in (("4", "budget4"), ("5", "budget5"), ("6.5", "budget6.5"), ("5", "joint"), ("5", "joint-refine")):
    a = json.load(open(f"{work}/{name}.json"))
    ours, control = a["allocation"], a["control"]
    check(f"{name}: at most the budget", ours["bits_per_weight"] <= float(budget) and control["bits_per_weight"] <= float(budget))
    check(f"{name}: no worse than {control['setting']}", ours["relative_loss"] <= control["relative_loss"])
    most = 0.05 if name.startswith("budget") else 1  # two ranks are few
    check(f"{name}: a gap below {most}, found {a['optimality_gap']}", 0 <= a["optimality_gap"] < most)
    check(f"{name}: the held-out loss", ours["relative_loss_heldout"] > 0 and control["relative_loss_heldout"] > 0)
    found = solved(a["setting"])
    for m in a["matrices"]:
        bits, _, rank, losses = found[m["matrix"]]
        check(f"{name}: {m['matrix']} as it was chosen: {m}, found {bits}, {rank}, {losses[-1]}",
              (bits, rank) == (m["bits"], m["rank"]) and abs(losses[-1] - m["relative_loss"]) <= 1e-9 * losses[-1])
    check(f"{name}: the mean that was promised", abs(mean(found) - ours["relative_loss"]) <= 1e-6 * mean(found))
for name in ("joint", "joint-refine"):
    for m in json.load(open(f"{work}/{name}.json"))["matrices"]:
        check(f"{name}: a rank with codes of its own: {m}", m["rank"] in (4, 16) and m["bits"] in (2, 4))
heavy, five = (json.load(open(f"{work}/{n}.json"))["matrices"] for n in ("heavy", "budget5"))
down = lambda a: sum(m["relative_loss"] for m in a if m["matrix"].endswith("down_proj"))
check("a heavy target to lose less", down(heavy) < down(five))
sys.exit(wrong > 0)
P
finish
