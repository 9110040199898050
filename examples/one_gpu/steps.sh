# Functions that the other scripts here source; their arguments are FOLDER and MINUTES.
set -eu

[ $# -eq 2 ] || { echo "expected FOLDER and MINUTES, got $# arguments" >&2; exit 2; }
deadline=$((SECONDS + 60 * $2))
processes=${PROCESSES:-$(nproc)}
mkdir -p "$1/log"
cd "$1"

say() { echo "$(date +%T) $*"; }

# precompute CACHE RECIPE ...: encode in one process per core, then finish the cache.
precompute() {
  local cache=$1 part
  shift
  [ ! -e "log/$cache.done" ] || return 0
  say "$cache"
  for part in $(seq "$processes"); do
    sememe precompute "$@" --output-dir "$cache" --part "$part/$processes" > "log/$cache.$part" 2>&1 &
  done
  wait
  sememe precompute "$@" --output-dir "$cache" > "log/$cache" 2>&1 || fail "$cache"
  touch "log/$cache.done"
}

# train RUN MINUTES RECIPE ...: a training of MINUTES in total, continued in this call for its remaining time.
train() {
  local run=$1 minutes=$2 left=$((deadline - SECONDS))
  shift 2
  [ ! -d "$run/model" ] || return 0
  [ "$left" -gt 0 ] || fail "$run"
  say "$run"
  sememe train "$@" --output-dir "$run" --max-minutes "$minutes" --set training.prefetch_batches=2 \
    --set training.stop_after_minutes="$(awk "BEGIN { print $left / 60 }")" > "log/$run" 2>&1 || fail "$run"
  [ -d "$run/model" ] || fail "$run"
}

# fail STEP: report the step that ended this call. Steps in parallel continue to the end of their own time.
fail() {
  say "$1 is not done: see $PWD/log, and call the same again to go on" >&2
  exit 1
}

# finish PID ...: wait for parallel trainings, all of them even if one fails.
finish() {
  local process status=0
  for process in "$@"; do wait "$process" || status=1; done
  [ "$status" -eq 0 ] || exit 1
}
