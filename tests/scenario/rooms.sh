#!/usr/bin/env bash
# An include against the arrow does not compile: with the compile commands of each room, headers of the rooms it may not see are tried.
. "$(dirname "$0")/common.sh"
command -v python3 >/dev/null || exit 77

python3 - "$BUILD/compile_commands.json" "$PROJECT/src" <<'P' || fault "the walls between rooms"
import glob, json, os, shlex, subprocess, sys

sees = {"base": "", "dist": "base", "model": "base", "quant": "base", "calibrate": "base dist model", "adapter": "base dist quant",
        "joint": "base dist quant adapter", "store": "base dist", "solution": "base model quant store dist",
        "export": "base dist model quant store solution", "job": "base model quant"}
sees["session"] = sees["solution"] + " solution job calibrate"
sees["layer"] = sees["session"] + " session adapter joint"
sees["cost"] = sees["layer"] + " layer"
sees["report"] = sees["session"] + " session"
sees["run"] = sees["cost"] + " cost report export"
commands, source = json.load(open(sys.argv[1])), sys.argv[2]
wrong = tried = 0
for room, allowed in sees.items():
    entry = next(c for c in commands if c["file"].startswith(f"{source}/{room}/"))
    words = shlex.split(entry["command"])
    flags = [w for w in words if w.startswith(("-I", "-D", "-std"))]
    flags += [w for i, x in enumerate(words) if x == "-isystem" for w in ("-isystem", words[i + 1])]
    for other in sees:
        header = os.path.basename(sorted(glob.glob(f"{source}/{other}/*.h"))[0])
        code = f'#include "{other}/{header}"\n'
        result = subprocess.run([words[0], *flags, "-fsyntax-only", "-x", "c", "-"], input=code, text=True, capture_output=True, cwd=entry["directory"])
        may = other == room or other in allowed.split()
        tried += 1
        if may != (result.returncode == 0):
            wrong += 1
            print(f"{room} includes {other}/{header}: expected {'to compile' if may else 'an error'}; {result.stderr[:300]}", file=sys.stderr)
print(f"{tried} includes tried, {wrong} wrong")
sys.exit(wrong > 0)
P
finish
