# shellcheck shell=bash
# Sourced by the other scripts: what a machine needs before cloqwork runs on it.
#
#   need_packages NAME...   Debian packages, installed only where missing; "${PACKAGES[@]}" is what building and running takes
#   run_environment         MPI, BLAS and thread settings for our processes; the system's own choices stay as they are
#   build_program           build/cloqwork (or, with FOLDER OPTIONS...: a build of its own, in build/FOLDER, with these options of CMake)
#   run_job JOB DIR         the job on $RANKS ranks (default 2), its table, and where everything lies; ends the script if the run fails
#   export_setting RUN SETTING RANK FORMAT   RUN/export/SETTING-rRANK-FORMAT, made unless it is there and right, and how to load it
#   need_venv GROUP         .venv with pinned Python packages; GROUP is `data` (light) or `tests` (torch and the libraries that load exports too)
#
# What a user may set:
#   CLOQWORK_SUDO     the command that gives root (default: none as root, else sudo); set but empty: never become root
#   CLOQWORK_BLAS     `system` keeps the machine's BLAS and LAPACK whatever they are (default: BLIS for our processes)
#   BUILD_JOBS        compiler processes (default: the number of cores)

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

# shellcheck disable=SC2034  # used by the scripts that source this one
PACKAGES=(build-essential cmake pkg-config openmpi-bin libopenmpi-dev libscalapack-openmpi-dev libhdf5-openmpi-dev
    libblis-serial-dev liblapack-dev libjansson-dev libfyaml-dev libcmocka-dev libssl-dev gnuplot-nox)

# Modules are compiled when they are first imported, not at installation: few of these packages' 14000 ever are.
# Torch comes first and alone, so that no other package chooses its version. A CPU build is enough: point pip to an index that has one
# (PIP_INDEX_URL, PIP_EXTRA_INDEX_URL or PIP_FIND_LINKS), or the default index may bring the larger CUDA build.
PINS_TORCH=(torch==2.13.0)
PINS_DATA=(numpy==2.2.6 tokenizers==0.23.3 safetensors==0.8.0 gguf==0.17.1 PyYAML==6.0.3)
# The tests load exports with the libraries that people use; gptqmodel comes as source, and one of its parts (pypcre) compiles against Python.h.
PINS_TESTS=("${PINS_DATA[@]}" transformers==5.23.0 peft==0.21.2 accelerate==1.15.0 optimum==2.3.0 gptqmodel==7.6.0 torchao==0.18.0
    bitsandbytes==0.50.2 compressed-tensors==0.20.0 h5py==3.16.0)

say() { printf '%-10s %s\n' "$1" "$2" >&2; }
die() {
    printf 'cloqwork: %s\n' "$*" >&2
    exit 1
}

# quiet LOG WHAT COMMAND...: runs the command with its output in LOG; shows the end of LOG only if it fails.
quiet() {
    local log=$1 what=$2 rc=0
    shift 2
    mkdir -p "$(dirname "$log")"
    "$@" >"$log" 2>&1 </dev/null || rc=$?
    [ $rc -eq 0 ] && return 0
    tail -n 40 "$log" >&2
    die "$what failed with code $rc; the whole log is $log"
}

# as_root COMMAND...: fails with 126 where root is not to be had.
as_root() {
    if [ -n "${CLOQWORK_SUDO+set}" ]; then
        [ -n "$CLOQWORK_SUDO" ] || return 126
        $CLOQWORK_SUDO "$@"
    elif [ "$(id -u)" -eq 0 ]; then
        "$@"
    elif command -v sudo >/dev/null; then
        if [ -t 0 ]; then sudo "$@"; else sudo -n "$@"; fi
    else
        return 126
    fi
}

# missing_packages NAME...: those that dpkg does not hold as installed.
missing_packages() {
    local name
    for name in "$@"; do
        [ "$(dpkg-query -W -f '${db:Status-Status}' "$name" 2>/dev/null)" = installed ] || echo "$name"
    done
}

# install_packages NAME...: the package lists are fetched first, once, and only if something is to be installed.
install_packages() {
    as_root env DEBIAN_FRONTEND=noninteractive apt-get update -q
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends "$@"
}

need_packages() {
    local missing
    if ! command -v dpkg-query >/dev/null || ! command -v apt-get >/dev/null; then
        say packages "not a Debian system: taking what is here for $*"
        return 0
    fi
    mapfile -t missing < <(missing_packages "$@")
    [ ${#missing[@]} -eq 0 ] && return 0
    as_root true 2>/dev/null || die "setup: packages: missing and no root to install them: ${missing[*]}"
    say packages "installing ${missing[*]}"
    quiet "$ROOT/build/packages.log" "installing packages" install_packages "${missing[@]}"
}

run_environment() {
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} BLIS_NUM_THREADS=${BLIS_NUM_THREADS:-1} OPENBLAS_NUM_THREADS=${OPENBLAS_NUM_THREADS:-1}

    # Open MPI refuses root and more ranks than cores unless told otherwise (the PRTE names are those of version 5).
    if [ "$(id -u)" -eq 0 ]; then
        export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
    fi
    export OMPI_MCA_rmaps_base_oversubscribe=1 PRTE_MCA_rmaps_default_mapping_policy=${PRTE_MCA_rmaps_default_mapping_policy:-:oversubscribe}
    # Its own parallel file layer has corrupted parallel HDF5 data in 4.1.x: ROMIO, under the name this version has for it.
    local romio
    if [ -z "${OMPI_MCA_io:-}" ] && command -v ompi_info >/dev/null; then
        romio=$(ompi_info --parsable 2>/dev/null | grep -o 'mca:io:romio[0-9]*' | head -n 1 || true)
        [ -n "$romio" ] && export OMPI_MCA_io=${romio##*:}
    fi
    # These scripts run on one machine, where networks are of no use: sockets are noisy if there is none, and looking for fabrics takes
    # a second and a half at every start and end (Debian's Open MPI 4.1.4: `mpirun -n 2 build/cloqwork methods` 1.6 s against 0.2 s).
    if [ "${SLURM_JOB_NUM_NODES:-1}" -eq 1 ]; then
        export OMPI_MCA_btl=${OMPI_MCA_btl:-^tcp,ofi,openib,usnic} OMPI_MCA_pml=${OMPI_MCA_pml:-ob1}
    fi
    # Containers commonly forbid the system call behind single-copy transfers (Open MPI then fills the terminal with errors), and give
    # /dev/shm a size that the weights of a layer do not fit.
    if [ -e /.dockerenv ] || [ -e /run/.containerenv ]; then
        export OMPI_MCA_btl_vader_single_copy_mechanism=${OMPI_MCA_btl_vader_single_copy_mechanism:-none}
    fi
    local free dir name
    free=$(df -Pk /dev/shm 2>/dev/null | awk 'NR == 2 { print $4 }')
    if [ "${free:-0}" -lt $((1 << 20)) ]; then
        dir=${TMPDIR:-/tmp}
        for name in btl_vader btl_sm osc_sm osc_rdma; do
            export "OMPI_MCA_${name}_backing_directory=$dir"
        done
        say memory "/dev/shm has only $((${free:-0} / 1024)) MiB free: shared memory goes to $dir"
    fi

    # At build time our program is linked with BLIS itself (build_program); ScaLAPACK and the reference LAPACK take libblas.so.3 and
    # liblapack.so.3 from the system's alternatives. Where those hold something else, that choice stays: only our own processes are led
    # to BLIS and the reference LAPACK.
    local blas lapack lib
    lib=$(library_folder)
    blas=$(readlink -f "$lib/libblas.so.3" || true)
    lapack=$(readlink -f "$lib/liblapack.so.3" || true)
    if [ "${CLOQWORK_BLAS:-}" = system ]; then
        say blas "the system's: ${blas:-?}, ${lapack:-?}"
    elif [[ $blas != */blis-*/* || $lapack != */lapack/* ]] && have_blis "$lib"; then
        export LD_LIBRARY_PATH=$lib/blis-serial:$lib/lapack${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
        say blas "the system has ${blas:-?}; our processes take $lib/blis-serial (CLOQWORK_BLAS=system to keep it)"
    fi
}

library_folder() { echo "/usr/lib/$(gcc -print-multiarch 2>/dev/null || echo "$(uname -m)-linux-gnu")"; }

have_blis() { [ -e "$1/blis-serial/libblis.so" ] && [ -e "$1/blis-serial/libblas.so.3" ] && [ -e "$1/lapack/liblapack.so" ]; }

# yield_if_oversubscribed RANKS: ranks that wait give the core away where there are more ranks than cores.
yield_if_oversubscribed() {
    if [ "$1" -gt "$(cores)" ]; then
        export OMPI_MCA_mpi_yield_when_idle=1
    fi
}

# nproc alone says 1 where OMP_NUM_THREADS does, as run_environment has it.
cores() { env -u OMP_NUM_THREADS -u OMP_THREAD_LIMIT nproc; }

build_program() {
    local b=$ROOT/build${1:+/$1} home lib which
    mkdir -p "$b"
    lib=$(library_folder)
    which=(-UBLAS_LIBRARIES -ULAPACK_LIBRARIES)                            # CMake's own choice, which prefers OpenBLAS where it is installed
    if [ "${CLOQWORK_BLAS:-}" != system ] && have_blis "$lib"; then
        which=("-DBLAS_LIBRARIES=$lib/blis-serial/libblis.so" "-DLAPACK_LIBRARIES=$lib/lapack/liblapack.so")
    fi
    home=$(sed -n 's/^CMAKE_HOME_DIRECTORY:INTERNAL=//p' "$b/CMakeCache.txt" 2>/dev/null || true)
    if [ -n "$home" ] && [ "$home" != "$ROOT" ]; then                      # the tree was copied or moved
        rm -rf "$b/CMakeCache.txt" "$b/CMakeFiles"
    fi
    {
        flock 9
        quiet "$b/configure.log" "configuring" cmake -S "$ROOT" -B "$b" -DCMAKE_BUILD_TYPE=Release "${which[@]}" "${@:2}"
        quiet "$b/build.log" "building" cmake --build "$b" -j "${BUILD_JOBS:-$(cores)}"
    } 9>"$b/.lock"
}

# need_venv data|tests: adds what is missing to .venv; a group that is complete is left alone. Sets PYTHON.
need_venv() {
    local group=$1 v=$ROOT/.venv base=/usr/bin/python3 pins
    if [ "$group" = tests ]; then pins=("${PINS_TORCH[@]}" "${PINS_TESTS[@]}"); else pins=("${PINS_DATA[@]}"); fi
    PYTHON=$v/bin/python
    venv_has "$group" "${pins[@]}" || venv_has tests "${PINS_TORCH[@]}" "${PINS_TESTS[@]}" && return 0 # the tests' group holds the other
    [ -x "$base" ] || base=$(command -v python3 || echo "$base")
    "$base" -c 'import ensurepip, venv' 2>/dev/null || need_packages python3-venv
    if [ "$group" = tests ] && ! have_python_headers "$base"; then need_packages python3-dev; fi
    {
        flock 9
        if ! venv_has "$group" "${pins[@]}"; then
            say python "installing ${pins[*]} into .venv"
            "$PYTHON" -m pip --version >/dev/null 2>&1 || quiet "$ROOT/build/venv.log" "making .venv" "$base" -m venv --clear "$v"
            if [ "$group" = tests ]; then
                quiet "$ROOT/build/pip-torch.log" "installing torch" "$PYTHON" -m pip install --no-compile "${PINS_TORCH[@]}"
            fi
            quiet "$ROOT/build/pip.log" "installing Python packages" "$PYTHON" -m pip install --no-compile "${pins[@]}"
            printf '%s\n' "${pins[@]}" >"$v/complete-$group.tmp" && mv "$v/complete-$group.tmp" "$v/complete-$group"
        fi
    } 9>"$ROOT/.venv.lock"
}

have_python_headers() { "$1" -c 'import os, sysconfig; os.stat(sysconfig.get_path("include") + "/Python.h")' 2>/dev/null; }

venv_has() {
    local group=$1 v=$ROOT/.venv
    shift
    [ -e "$v/complete-$group" ] && [ "$(cat "$v/complete-$group")" = "$(printf '%s\n' "$@")" ] && "$v/bin/python" -c '' 2>/dev/null
}

run_job() {
    local job=$1 dir=$2 ranks=${RANKS:-2} rc=0
    yield_if_oversubscribed "$ranks"
    say run "mpirun -n $ranks build/cloqwork run $job"
    mpirun -n "$ranks" build/cloqwork run "$job" </dev/null || rc=$?
    if [ $rc -ne 0 ]; then
        say stopped "code $rc; the log is $dir/run.log"
        exit $rc
    fi
    mpirun -n 1 build/cloqwork report "$dir" >/dev/null </dev/null || die "the report ended with code $?"
    printf '\n'
    printf '%-44s %s\n' "$dir/report.html" "the results as a page with figures; their data and scripts are in $dir/figures" \
        "$dir/run.h5" "everything, by links: jobs/read_container.py shows how to read it" \
        "$dir/solutions/SETTING/" "codes, scales and adapters, a file per layer" \
        "$dir/grams/, $dir/heldout/" "what calibration left; any further setting starts from it" \
        "$dir/run.log, metrics.jsonl" "what was done, when, how fast" \
        "$job" "the job; change it, or add --set key=value, and run again"
}

export_setting() {
    local run=$1 setting=$2 rank=$3 format=$4 ranks=${RANKS:-2} rc=0
    local out=$run/export/$setting-r$rank-$format
    yield_if_oversubscribed "$ranks"
    if [ -e "$out" ] && ! mpirun -n "$ranks" build/cloqwork verify "$out" --run "$run" >/dev/null 2>&1 </dev/null; then
        say stale "$out is not what $run gives now: made anew"
        rm -r "$out"
    fi
    if [ ! -e "$out" ]; then
        say export "mpirun -n $ranks build/cloqwork export $run --setting $setting --rank $rank --to $format"
        mpirun -n "$ranks" build/cloqwork export "$run" --setting "$setting" --rank "$rank" --to "$format" >/dev/null </dev/null || rc=$?
        [ $rc -eq 0 ] || die "the export ended with code $rc"
    fi
    printf '%-44s %s\n' "$out/base" "the quantized model, for $format loaders" "$out/adapter" "its LoRA adapter, for PEFT; README.md in both"
    # the model card's own lines, with the folders as seen from here
    printf '\nTo load them, generate ten tokens and go on training (%s):\n\n' "$(sed -n 's/^    \(pip install .*\)/\1/p' "$out/adapter/README.md")"
    sed -n '/^```python/,/^```/p' "$out/adapter/README.md" | sed -e '/^```/d' -e '/^# in this folder/d' -e "s|\"\.\./base\"|\"$out/base\"|" \
        -e "s|(base, \"\.\"|(base, \"$out/adapter\"|"
}
