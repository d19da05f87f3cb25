#!/usr/bin/env bash
# The pictures of a run for a paper: RUN/figures/NAME.pdf and NAME.svg beside their data, NAME.csv, and the gnuplot script NAME.gp that draws them.
#
#   ./jobs/figures.sh RUN [--settings PATTERN]
#
# Change a script and draw it alone: cd RUN/figures && gnuplot -e "set terminal pdfcairo; set output 'rank.pdf'" rank.gp
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

case ${1:-} in
-h | --help) sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "$0"; exit 0 ;;
'') die "figures: expected a run directory, found no argument" ;;
esac

run=$1
[ -d "$run" ] || die "figures: $run: expected a run directory"
need_packages gnuplot-nox
command -v gnuplot >/dev/null || die "figures: gnuplot: expected it on the path, found none"
run_environment
"${CLOQWORK:-$ROOT/build/cloqwork}" report "$@" >/dev/null </dev/null
cd "$run/figures"
for script in *.gp; do
    name=${script%.gp}
    # inches of the page's 640 points; a script sets no terminal of its own
    size=$(sed -n 's/.*viewBox="0 0 \([0-9]*\) \([0-9]*\)".*/\1 \2/p' "$name.svg" | awk '{ printf "%.2f,%.2f", $1 / 100, $2 / 100; exit }')
    LC_ALL=C.UTF-8 gnuplot -d -e "set terminal pdfcairo size $size font 'sans,11'; set output '$name.pdf'" "$script"
    printf '%s\n' "$run/figures/$name.pdf"
done
