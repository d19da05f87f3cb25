#!/usr/bin/env bash
# `cmake --install` into a prefix of its own: the program runs from there, pkg-config and `module load` find it, the manual page is well-formed and
# knows every verb and every option that --help and the program know, no more.
. "$(dirname "$0")/common.sh"
export OMPI_MCA_ess_singleton_isolated=1
p=$WORK/prefix

cmake --install "$BUILD" --prefix "$p" >"$WORK/out" 2>&1 || fault "cmake --install ended with $?: $(tail -3 "$WORK/out")"
version=$("$p/bin/cloqwork" --version)
[[ $version =~ ^cloqwork\ [0-9]+\.[0-9]+\.[0-9]+$ ]] || fault "expected a version, found $version"
version=${version#* }
if command -v pkg-config >/dev/null; then
  found=$(PKG_CONFIG_PATH=$p/share/pkgconfig pkg-config --modversion cloqwork)
  [ "$found" = "$version" ] || fault "pkg-config: expected $version, found $found"
  found=$(PKG_CONFIG_PATH=$p/share/pkgconfig pkg-config --variable=bindir cloqwork)
  [ "$found/cloqwork" -ef "$p/bin/cloqwork" ] || fault "pkg-config: expected the program in bindir, found $found"
fi
[ -e "$p/share/modulefiles/cloqwork/$version" ] || fault "expected a module file for $version"
if command -v modulecmd >/dev/null; then
  found=$(eval "$(MODULEPATH=$p/share/modulefiles modulecmd bash load cloqwork 2>"$WORK/err")" && command -v cloqwork)
  [ "$found" -ef "$p/bin/cloqwork" ] || fault "module load: expected $p/bin/cloqwork, found $found $(cat "$WORK/err")"
fi
for file in CHANGELOG.md CITATION.cff README.md; do
  [ -s "$p/share/doc/cloqwork/$file" ] || fault "expected $file among the documents"
done
grep -q "^version: $version$" "$p/share/doc/cloqwork/CITATION.cff" || fault "CITATION.cff: expected version $version"
grep -q "^## $version " "$p/share/doc/cloqwork/CHANGELOG.md" || fault "CHANGELOG.md: expected a section of $version"

# ---- the manual page against the program
page=$p/share/man/man1/cloqwork.1
if command -v man >/dev/null; then
  found=$(man --warnings -l "$page" 2>&1 >/dev/null)
  [ -z "$found" ] || fault "the manual page: $found"
fi
"$p/bin/cloqwork" --help | sed -n 's/^  \([a-z]*\)  .*/\1/p' | sort >"$WORK/verbs"
sed -n '/^\.Sh VERBS/,/^\.Sh OPTIONS/s/^\.It Cm //p' "$page" | sort | diff "$WORK/verbs" - >"$WORK/out" || fault "verbs of --help and of the page: $(cat "$WORK/out")"
options() { grep -o -- '--[a-z][a-z-]*' | sort -u; }
while read -r verb; do
  "$p/bin/cloqwork" "$verb" --help >"$WORK/help" || fault "$verb --help ended with $?"
  head -1 "$WORK/help" | grep -q "^usage: .*cloqwork $verb" || fault "$verb --help: expected how it is called, found $(head -1 "$WORK/help")"
  cat "$WORK/help"
done <"$WORK/verbs" | cat - <(echo --help --version) | options >"$WORK/helped"
sed -n 's/Fl -\([a-z]\)/\n--\1/gp' "$page" | grep -o -- '^--[a-z-]*' | sort -u | diff "$WORK/helped" - >"$WORK/out" || fault "options of VERB --help and of the page: $(cat "$WORK/out")"
grep -o '"--[a-z-]*"' "$PROJECT/src/main.c" | tr -d '"' | sort -u | diff - "$WORK/helped" >"$WORK/out" || fault "options of the program and of --help: $(cat "$WORK/out")"
finish
