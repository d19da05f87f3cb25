"""What a run of tests/bench/run.sh printed, with what it ran on, as JSON; and a table of its figures.

    record.py LOG OUT.json LOAD_AT_START COMPLETE      LOAD: a line of /proc/loadavg; COMPLETE: true or false
"""
import json
import os
import platform
import subprocess
import sys


def answer(*command):
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return ""


def first_line(text):
    return text.splitlines()[0] if text else ""


def processor():
    with open("/proc/cpuinfo") as f:
        return next((line.split(":", 1)[1].strip() for line in f if line.startswith("model name")), platform.machine())


def main():
    log, out, load, complete = sys.argv[1:]
    figures, raw = {}, {}
    with open(log) as f:
        for line in f:
            word = line.split()
            if word[:1] == ["BENCH"] and len(word) == 3:
                figures[word[1]] = float(word[2])
            elif word[:1] in (["RAW"], ["JUDGE"]):
                raw.setdefault(word[1], []).extend(float(x) for x in word[2:])
    packages = ("libblis4-serial", "liblapack3", "libscalapack-openmpi2.2", "libhdf5-openmpi-103-1")
    with open("/proc/loadavg") as f:
        load_end = f.read().strip()
    record = {
        "complete": complete == "true",
        "machine": {"processor": processor(), "cores": os.cpu_count(), "memory_gib": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1),
                    "system": platform.platform()},
        "load": {"start": load, "end": load_end},
        "versions": {"cloqwork": answer("build/cloqwork", "--version"), "commit": answer("git", "describe", "--always", "--dirty"),
                     "mpirun": first_line(answer("mpirun", "--version")), "compiler": first_line(answer("cc", "--version")),
                     "packages": answer("dpkg-query", "-W", *packages).splitlines(),
                     "python": [line for line in answer(".venv/bin/python", "-m", "pip", "list", "--format", "freeze").splitlines()
                                if line.split("==")[0].lower() in ("torch", "numpy", "transformers", "gptqmodel")]},
        "figures": figures, "raw": raw}
    os.makedirs(os.path.dirname(out) or ".", exist_ok=True)
    with open(out + ".tmp", "w") as f:
        json.dump(record, f, indent=1)
    os.replace(out + ".tmp", out)
    print(f"\nload average {load} at the start, {load_end} at the end; everything is in {out}")
    for name, value in figures.items():
        print(f"  {name:36} {value:10.3f}")


main()
