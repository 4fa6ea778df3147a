#!/usr/bin/env bash
# A Ray cluster on one machine: a head and workers, each a process of its own, so that a job meets what it will meet on
# a real cluster. Token auth is on, and all of it listens on loopback only.
#   cluster/local.sh up [--workers N] [--cpus N] [--port P] [--dashboard-port P] [--folder DIR]
#   cluster/local.sh down [--folder DIR]
# `down` ends the processes that `up` started in the same folder, and no others.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
workers=1
cpus=8 # logical ones, per node: with 2, Ray Data's actors and their neighbours wait on each other for ever
port=6379
dashboard_port=8265
folder=$root/storage/local-cluster # pids and logs
object_store=1073741824            # bytes per node; by default each node would take a third of the machine

fail() {
  echo "local.sh: $*" >&2
  exit 2
}

# When a process was born, or nothing where it is gone: a pid alone may by now be somebody else's.
born() {
  local stat fields
  if [[ ! -d /proc/self ]]; then
    LC_ALL=C ps -o lstart= -p "$1" | xargs
    return
  fi
  { stat=$(<"/proc/$1/stat"); } 2>/dev/null || return 0
  read -ra fields <<<"${stat##*) }"
  if [[ ${fields[0]} != Z ]]; then echo "${fields[19]}"; fi # in ticks since the machine started
}

ours() { # FILE: whether the process that the pid file names is still the one that was started
  local pid birth
  { read -r pid && read -r birth; } <"$1" || return 1
  [[ -n $birth && $(born "$pid") == "$birth" ]]
}

running() {
  local file
  for file in "$folder"/*.pid; do
    if [[ -e $file ]] && ours "$file"; then return 0; fi
  done
  return 1
}

start() { # NAME NUMBER OPTIONS...: one node, in a process group of its own, so that Ctrl-C here does not reach it
  # Nodes on one machine must not hand out the same ports to their workers, nor share a folder: a job's first worker on
  # a node unpacks its working directory anew, and would take it away from under the job's driver on another node.
  local name=$1 first=$((20000 + 1000 * $2)) temporary=/tmp/ray-$port/$2
  shift 2
  nohup "$ray" start --block --node-ip-address=127.0.0.1 --num-cpus="$cpus" --object-store-memory="$object_store" \
    --min-worker-port="$first" --max-worker-port="$((first + 999))" --dashboard-agent-listen-port=0 \
    --temp-dir="$temporary" --disable-usage-stats "$@" >"$folder/$name.log" 2>&1 </dev/null &
  local pid=$!
  printf '%s\n%s\n' "$pid" "$(born "$pid")" >"$folder/$name.pid"
  local try
  for ((try = 0; try < 600; try++)); do
    if grep -q 'Ray runtime started' "$folder/$name.log"; then
      echo "$name: pid $pid, log $folder/$name.log"
      return 0
    fi
    ours "$folder/$name.pid" || break
    sleep 0.2
  done
  echo "local.sh: $name did not start; the end of $folder/$name.log:" >&2
  tail -n 15 "$folder/$name.log" >&2
  down >&2
  exit 1
}

up() {
  if running; then fail "already up; end it with: cluster/local.sh down --folder $folder"; fi
  ray=$root/.venv/bin/ray
  [[ -x $ray ]] || ray=$(command -v ray) || fail "no ray: run make setup first"
  mkdir -p "$folder"
  PATH=$(dirname "$ray"):$PATH # the python of a job's command line is this one

  # Ray itself would write the token readable for everybody.
  export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=${RAY_AUTH_TOKEN_PATH:-$HOME/.ray/auth_token}
  unset RAY_AUTH_TOKEN RAY_ADDRESS
  umask 077
  if [[ ! -s $RAY_AUTH_TOKEN_PATH ]]; then
    mkdir -p "$(dirname "$RAY_AUTH_TOKEN_PATH")"
    od -An -N32 -tx1 /dev/urandom | tr -d ' \n' >"$RAY_AUTH_TOKEN_PATH"
  fi
  chmod 600 "$RAY_AUTH_TOKEN_PATH"

  export RAY_ENABLE_UV_RUN_RUNTIME_ENV=0 RAY_USAGE_STATS_ENABLED=0 RAY_worker_niceness=0 RAY_TRAIN_V2_ENABLED=1
  export RAY_CHDIR_TO_TRIAL_DIR=0
  export RAY_JOB_STOP_WAIT_TIME_S=120 # then SIGKILL; a stopped run puts its books in order first

  set -m
  local client_port=$((port + 1)) # nobody uses it, but Ray opens it, always the same one unless told otherwise
  ((client_port != dashboard_port)) || client_port=$((port + 2))
  start head 0 --head --port="$port" --ray-client-server-port="$client_port" \
    --dashboard-host=127.0.0.1 --dashboard-port="$dashboard_port"
  local n
  for ((n = 1; n <= workers; n++)); do
    start "worker-$n" "$n" --address="127.0.0.1:$port"
  done
  cat <<END
cluster: 127.0.0.1:$port, $((workers + 1)) nodes of $cpus logical CPUs
dashboard: http://127.0.0.1:$dashboard_port, which asks for the token in $RAY_AUTH_TOKEN_PATH

next: export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$RAY_AUTH_TOKEN_PATH
      $(dirname "$ray")/bridge-ray submit demo --storage $root/storage --follow \\
        --address http://127.0.0.1:$dashboard_port
then: cluster/local.sh down --folder $folder
END
}

# Workers first. Ray ends a node's processes when its `ray start --block` is told to stop, or is gone.
down() {
  local file pid try name
  for name in worker head; do
    for file in "$folder/$name"*.pid; do
      [[ -e $file ]] || continue
      if ours "$file"; then
        read -r pid <"$file"
        kill -TERM "$pid" || true
        for ((try = 0; try < 150; try++)); do
          ours "$file" || break
          sleep 0.2
        done
        if ours "$file"; then kill -KILL "$pid" || true; fi
        echo "ended $(basename "$file" .pid), pid $pid"
      fi
      rm -f "$file"
    done
  done
}

number() { # OPTION VALUE
  [[ $2 =~ ^[0-9]+$ ]] || fail "$1 takes a number, not '$2'"
  echo "$2"
}

action=${1:-}
shift || true
while (($#)); do
  option=$1 value=${2:-}
  [[ -n $value ]] || fail "$option needs a value"
  case $option in
    --workers) workers=$(number "$option" "$value") ;;
    --cpus) cpus=$(number "$option" "$value") ;;
    --port) port=$(number "$option" "$value") ;;
    --dashboard-port) dashboard_port=$(number "$option" "$value") ;;
    --folder) folder=$value ;;
    *) fail "unknown option $option; see the head of this file" ;;
  esac
  shift 2
done
case $action in
  up) up ;;
  down) down ;;
  *) fail "usage: local.sh up [--workers N] [--cpus N] [--port P] [--dashboard-port P] [--folder DIR] | down" ;;
esac
