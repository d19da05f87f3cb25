#!/usr/bin/env bash
# What a user sees of a run: a line per unit in the log, status of a running, a killed, a failed and a finished job, report.html with and without gnuplot,
# --json and --csv that agree with each other and with the page.
. "$(dirname "$0")/common.sh"
command -v python3 >/dev/null || exit 77

small_job "$WORK/job.yaml" "$WORK/run"
# state_is RUN STATE: what status --json says of the job
state_of() { on 1 status "$1" --json | python3 -c 'import json, sys; print((json.load(sys.stdin)["job"] or {}).get("state"))'; }
state_is() {
  local found
  found=$(state_of "$1")
  [ "$found" = "$2" ] || fault "status of $1: expected a job that is $2, found $found"
}

# ---- a job that is killed, goes on, and fails
state_is "$WORK/job.yaml" None
LIMIT=600 on 1 run "$WORK/job.yaml" --set calibration.windows=2000 --set output="$WORK/long" >/dev/null 2>&1 &
for _ in $(seq 200); do
  pid=$(awk '{ print $3 }' "$WORK/long/.lock" 2>/dev/null)
  [ -n "$pid" ] && grep -q 'calibrate layer' "$WORK/long/progress.json" 2>/dev/null && break
  sleep 0.1
done
state_is "$WORK/long" running
on 1 status "$WORK/long" >"$WORK/out"
grep -q 'calibrate layer [0-9]* of 6, [0-9]* of 6 done: ' "$WORK/out" && grep -q '^not complete yet$' "$WORK/out" || fault "status of a running job: $(cat "$WORK/out")"
kill -KILL "$pid"
wait
state_is "$WORK/long" dead
on 1 status "$WORK/long" | grep -q 'ended without a word' || fault "status of a killed job says nothing of it"
rm -rf "$WORK/long"

on 2 run "$WORK/job.yaml" >"$WORK/table" 2>"$WORK/err" || fault "the run ended with $?: $(cat "$WORK/err")"
state_is "$WORK/run" 'done'
for unit in grams/layer-003 solutions/cloq-b2-g64-magr_K_10/layer-005; do
  [ "$(grep -c " $unit: [0-9.]* s, " "$WORK/err")" = 1 ] || fault "expected one line of the log for $unit"
  [ "$(grep -c " $unit: [0-9.]* s, " "$WORK/run/run.log")" = 1 ] || fault "expected one line of run.log for $unit"
done
cp -r "$WORK/run" "$WORK/other"
on 1 calibrate "$WORK/other" --set calibration.seed=9 >/dev/null 2>&1 && fault "expected a refusal of other tokens"
state_is "$WORK/other" failed
on 1 status "$WORK/other" | grep -q 'made from something else' || fault "status does not say what failed"

# ---- the report: with gnuplot where there is one, and without; a folder whose name means something to a shell, to gnuplot and to HTML
odd="we'ird & <name>, \"\$(touch $(basename "$WORK"))\"-b2-g64"
cp -r "$WORK/run/solutions/cloq-b4-g64-magr_K_10" "$WORK/run/solutions/$odd"
mkdir "$WORK/run/finetune"
python3 - "$odd" >"$WORK/run/finetune/results.json" <<'P'
import json, sys

keys = "setting perplexity_before first_loss last_loss rate perplexity_after deviation seeds".split()
rows = [["original", 28.5, 3.3, 3.2, 5e-4, 27.25, None, 1], [sys.argv[1], 61.5, 4.1, 3.9, 5e-4, 41.5, 0.25, 3], ["cloq-b2-g64-magr_K_10", None, 9, 5, 1e-3, 77.5, None, 1]]
print(json.dumps({"made_from": {"steps": 40, "batch": 1, "length": 512, "windows": 8}, "table": [dict(zip(keys, r)) for r in rows], "results": []}))
P
on 1 report "$WORK/run" >"$WORK/out" 2>"$WORK/err" || fault "the report ended with $?: $(cat "$WORK/err")"
head -3 "$WORK/out" | diff - <(head -3 "$WORK/table") >/dev/null || fault "expected the table of the run on standard output, found: $(head -3 "$WORK/out")"
LC_ALL=C on 1 report "$WORK/run" --out "$WORK/plain-locale" >/dev/null 2>"$WORK/err" || fault "in a plain locale: ended with $?: $(cat "$WORK/err")"
grep -q 'warning' "$WORK/err" && fault "in a plain locale gnuplot warns: $(head -n 2 "$WORK/err")"
mkdir "$WORK/nothing"
PATH="$WORK/nothing" OMPI_MCA_ess_singleton_isolated=1 "$CLOQWORK" report "$WORK/run" --out "$WORK/plain" >/dev/null 2>"$WORK/err" || fault "without gnuplot: ended with $?: $(cat "$WORK/err")"
grep -q 'gnuplot is not installed' "$WORK/err" || fault "expected a line on the missing gnuplot, found: $(cat "$WORK/err")"
[ -z "$(find "$WORK" -name "$(basename "$WORK")" -mindepth 1)" ] || fault "a name was run as a command"
on 1 report "$WORK/run" --json >"$WORK/report.json" || fault "no JSON: $?"
on 1 report "$WORK/run" --csv >"$WORK/report.csv" || fault "no CSV: $?"

python3 - "$WORK" "$(command -v gnuplot)" <<'P' || fault "the report"
import csv, html.parser, json, os, re, sys

work, gnuplot = sys.argv[1:]
wrong = []
void = "meta br".split()


class Page(html.parser.HTMLParser):
    """Tags that are closed in order, ids that are there once, pictures, text."""

    def __init__(self, path):
        super().__init__()
        self.open, self.ids, self.links, self.svg, self.text = [], [], [], 0, ""
        self.feed(open(path, encoding="utf-8").read())
        self.close()

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.ids += [attrs["id"]] if "id" in attrs else []
        self.links += [v for k, v in attrs.items() if k in ("href", "xlink:href", "src")]
        self.svg += tag == "svg"
        if tag in ("script", "link", "img", "iframe"):
            wrong.append(f"the page holds a <{tag}>")
        if tag not in void:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            wrong.append(f"</{tag}> closes something else at {self.getpos()}")

    def handle_data(self, data):
        self.text += data


report = json.load(open(f"{work}/report.json"))
rows = list(csv.DictReader(open(f"{work}/report.csv", newline="")))
for folder, drawn in (("run", bool(gnuplot)), ("plain", False)):
    page = Page(f"{work}/{folder}/report.html")
    names = sorted(n[:-3] for n in os.listdir(f"{work}/{folder}/figures") if n.endswith(".gp"))
    if page.open or len(set(page.ids)) != len(page.ids):
        wrong.append(f"{folder}: tags left open {page.open}, ids twice {sorted(set(i for i in page.ids if page.ids.count(i) > 1))[:3]}")
    if any(not link.startswith("#") or link[1:] not in page.ids for link in page.links):
        wrong.append(f"{folder}: expected links to places of the page alone, found {page.links[:9]}")
    if page.svg != (len(names) if drawn else 0) or ("gnuplot is not installed" in page.text) == drawn:
        wrong.append(f"{folder}: {page.svg} pictures of {len(names)}")
    for need in "frontier-calibration frontier-heldout heat-1 heat-3 rank spectrum-gram spectrum-residual time training".split():
        if need not in names or sum(1 for _ in open(f"{work}/{folder}/figures/{need}.csv")) < 3:
            wrong.append(f"{folder}: no picture or no data of {need}: {names}")
    for s in report["settings"]:
        if page.text.count(s["name"]) < 3:
            wrong.append(f"{folder}: {s['name']} is not on the page")

trained = list(csv.DictReader(open(f"{work}/run/figures/training.csv", newline="")))
if [t["perplexity_after"] for t in trained] != ["27.25", "41.5", "77.5"] or [t["deviation"] for t in trained] != ["", "0.25", ""] or trained[2]["point_before"]:
    wrong.append(f"training: {trained}")

if [s["stage"] for s in report["story"]["stages"]] != ["calibrate", "solve"]:
    wrong.append(f"stages {report['story']['stages']}")
for stage in report["story"]["stages"]:
    if not (0 < stage["of_peak"] < 3 and stage["planned_seconds"] > 0 and 0 < stage["private_bytes"] < 1 << 30):
        wrong.append(f"a stage: {stage}")
if stage["units"] != 12 or abs(sum(stage["steps"].values()) - stage["seconds"]) > 1e-6 * stage["seconds"]:
    wrong.append(f"solve: {stage}")

# one number, three ways: JSON's list, CSV's line, the mean over layers
by = {(r["setting"], r["layer"], r["matrix"], int(r["rank"])): r for r in rows}
if len(by) != len(rows) or len(rows) != 3 * 3 * (8 + 42):
    wrong.append(f"CSV: {len(rows)} lines, {len(by)} different ones")
for s in report["settings"]:
    if not all(m["off_certificate"] < 1e-6 and m["numerical_rank"] <= m["in"] for m in s["every_matrix"]) or len(s["every_matrix"]) != 42:
        wrong.append(f"{s['name']}: certificates")
    for p, rank in enumerate(s["ranks"]):
        for key in ("relative_loss", "relative_loss_heldout"):
            product, count = 1.0, 0
            for m in s["every_matrix"]:
                line = by[s["name"], str(m["layer"]), m["type"], rank]
                if abs(float(line[key]) / m[key][p] - 1) > 1e-8:
                    wrong.append(f"{s['name']} {m['name']}: CSV says {line[key]}, JSON {m[key][p]}")
                product, count = product * m[key][p] ** (1 / 42), count + 1
            mean, line = s["matrices"]["all"][key][p], by[s["name"], "", "all", rank]
            if abs(product / mean - 1) > 1e-6 or abs(float(line[key]) / mean - 1) > 1e-6:
                wrong.append(f"{s['name']} rank {rank}: means {product} {mean} {line[key]}")
for line in wrong[:20]:
    print(line, file=sys.stderr)
sys.exit(len(wrong) > 0)
P

# ---- the pictures for paper
if command -v gnuplot >/dev/null; then
  bash "$PROJECT/jobs/figures.sh" "$WORK/run" >"$WORK/out" 2>"$WORK/err" || fault "figures.sh ended with $?: $(cat "$WORK/err")"
  while read -r file; do
    [ "$(head -c 5 "$file")" = %PDF- ] || fault "$file: expected a PDF"
  done <"$WORK/out"
  [ "$(wc -l <"$WORK/out")" = "$(find "$WORK/run/figures" -name '*.svg' | wc -l)" ] || fault "expected a PDF of every picture, found: $(cat "$WORK/out")"
fi
finish
