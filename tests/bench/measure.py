"""Wall seconds of a command, and the most memory that it and all its descendants held at once (shared pages counted once).

    measure.py NAME COMMAND...     the command's output goes to standard error; prints: RAW NAME_seconds S, RAW NAME_gib G
"""
import os
import subprocess
import sys
import time


def parents():
    found = {}
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/stat") as f:
                found[int(pid)] = int(f.read().rsplit(")", 1)[1].split()[1])
        except OSError:
            pass  # it has ended
    return found


def family(root):
    of, members = parents(), {root}
    while True:
        more = {pid for pid, parent in of.items() if parent in members} - members
        if not more:
            return members
        members |= more


def proportional_bytes(pid):
    try:
        with open(f"/proc/{pid}/smaps_rollup") as f:
            return sum(int(line.split()[1]) for line in f if line.startswith("Pss:")) * 1024
    except OSError:
        return 0


def main():
    name, command = sys.argv[1], sys.argv[2:]
    start, most = time.monotonic(), 0
    process = subprocess.Popen(command, stdout=sys.stderr)
    while process.poll() is None:
        before = time.process_time()
        most = max(most, sum(map(proportional_bytes, family(process.pid))))
        time.sleep(max(0.05, 50 * (time.process_time() - before)))  # looking takes at most 2 % of one core
    print(f"RAW {name}_seconds {time.monotonic() - start:.3f}\nRAW {name}_gib {most / 2**30:.3f}")
    sys.exit(process.returncode)


main()
