#!/usr/bin/env bash
# A finished run: its files' modes, and single flipped bits in them: verify finds each, or the bit carries nothing.
#
#   FLIPS   how many (default 40; files take turns, the bit within a file is drawn)
#   SEED    of the draw (default 1)
#
# Carries nothing: after the flip every attribute, link, type and shape of a container reads as before (h5dump -A); the data does, too, for
# verify compares its SHA-256. A flip in job.yaml that changes none of what decides results: the run directory's own name, how many ranks
# and how much memory to use, and what to evaluate on (eval/*.json says what it was made from). The log, metrics, plan.json and progress.json are no results.
. "$(dirname "$0")/common.sh"
command -v python3 >/dev/null && command -v h5dump >/dev/null || exit 77

# A run directory whose name a shell would obey; none is asked. Modes follow umask, here one that lets a group read.
cd "$WORK" || exit 1
run="$WORK/a run; touch obeyed && x 'y \$(touch obeyed)"
umask 027
small_job "$WORK/job.yaml" "$WORK/run"
on 1 run "$WORK/job.yaml" --set output="\"$run\"" --quiet >/dev/null || fault "run: code $?"
on 1 allocate "$run" --budget 3.5 --quiet >/dev/null || fault "allocate: code $?"
on 1 run "$run" --quiet >/dev/null || fault "run with the allocation: code $?"
on 1 eval "$run" --quiet >/dev/null || fault "eval: code $?"
on 1 verify "$run" --quiet >/dev/null || fault "verify of the whole run: code $?"
[ ! -e obeyed ] && [ ! -e "$run/obeyed" ] || fault "a shell was called with the name of the run directory"
modes=$(find "$run" -type f -printf '%m\n' -o -type d -printf 'd%m\n' | sort -u | tr '\n' ' ')
[ "$modes" = "640 d750 " ] || fault "expected files of mode 640 in folders of mode 750, found $modes"

OMPI_MCA_ess_singleton_isolated=1 python3 - "$CLOQWORK" "$run" "${FLIPS:-40}" "${SEED:-1}" <<'P' || fault "flips went unnoticed"
import json, os, random, re, subprocess, sys

program, run, flips, seed = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
draw = random.Random(seed)
files = sorted(os.path.join(d, f) for d, _, fs in os.walk(run) for f in fs if f not in ("run.log", "metrics.jsonl", "plan.json", "progress.json"))
draw.shuffle(files)
NO_RESULT = re.compile(r"^(output:|parallel:|eval:|  (team|teams|memory_per_node|checkpoint_minutes):)")


def verify(path):
    layer = re.search(r"layer-(\d+)\.h5$", path)
    layers = int(layer.group(1)) if layer else 0
    for _ in range(3):
        done = subprocess.run([program, "verify", run, "--quiet", "--layers", f"{layers}-{layers}"], capture_output=True, text=True,
                              errors="replace", timeout=60)
        if "MPI_INIT" not in done.stderr:  # a start of MPI that failed tells nothing
            break
    return done.returncode, done.stdout + done.stderr


def content(path):
    if path.endswith(".h5"):
        return subprocess.run(["h5dump", "-A", path], capture_output=True).stdout
    text = open(path, "rb").read()
    if path.endswith(".json"):
        tree = json.loads(text)
        tree.pop("sha256", None)
        return tree
    if path.endswith("/job.yaml"):
        section, kept = "", []
        for line in text.decode("utf-8", "replace").split("\n"):
            section = line if line[:1] not in (" ", "") else section
            if not NO_RESULT.match(section):
                kept.append(line)
        return kept
    return text


detected, silent, missed = 0, 0, []
for i in range(flips):
    path = files[i % len(files)]
    good = open(path, "rb").read()
    before = content(path)
    at, bit = draw.randrange(len(good)), draw.randrange(8)
    with open(path, "r+b") as f:
        f.seek(at)
        f.write(bytes([good[at] ^ 1 << bit]))
    code, text = verify(path)
    where = f"{os.path.relpath(path, run)}: byte {at}, bit {bit}"
    if code == 0:
        if content(path) == before:
            silent += 1
        else:
            missed.append(where + ": unnoticed")
    elif code in (2, 3) and path.endswith(".h5") and os.path.relpath(path, run) not in text:
        missed.append(f"{where}: not named: {text[:300]}")
    elif code in (2, 3):
        detected += 1
    else:
        missed.append(f"{where}: code {code}: {text[:300]}")
    with open(path, "r+b") as f:
        f.write(good)
print(f"{flips} flips over {len(files)} files, seed {seed}: {detected} detected, {silent} in bytes that carry nothing, {len(missed)} missed")
for line in missed:
    print("  " + line)
sys.exit(bool(missed))
P
finish
