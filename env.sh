# Source this file: puts .venv on PATH and tells Dagster and the library where things are. Set any of these before to override.
_dd_here="$(cd "$(dirname "${BASH_SOURCE[0]:-$0}")" && pwd)"
export PATH="$_dd_here/.venv/bin:$PATH"
export DD_ROOT="${DD_ROOT:-$_dd_here/data}"
# Dagster's own records want a folder, also where the results are on an object store.
case "$DD_ROOT" in *://*) _dd_records="$_dd_here/data" ;; *) _dd_records="$DD_ROOT" ;; esac
export DAGSTER_HOME="${DAGSTER_HOME:-$_dd_records/dagster}"
# `dagster asset ...` reads neither workspace.yaml nor pyproject.toml, and takes the module from here; where a workspace is
# named, Dagster refuses to have both.
export DAGSTER_MODULE_NAME="${DAGSTER_MODULE_NAME:-dd_assets.definitions}"
dagster() {
  [ -d "$DAGSTER_HOME" ] || mkdir -p "$DAGSTER_HOME" 2>/dev/null || {
    echo "Error: the folder DAGSTER_HOME=$DAGSTER_HOME cannot be made; check the data root, DD_ROOT=$DD_ROOT" >&2
    return 1
  }
  [ "$(df -Pk "$DAGSTER_HOME" | awk 'END { print $4 }')" -ge 256 ] || {
    echo "Error: the disk is full: nothing can be written to DAGSTER_HOME=$DAGSTER_HOME; free some space" >&2
    return 1
  }
  case " $* " in
    *" -w "* | *" --workspace "* | *" --workspace="*) env -u DAGSTER_MODULE_NAME dagster "$@" ;;
    *) command dagster "$@" ;;
  esac
}
# The `dagster` command recommends `dg` at every call.
export PYTHONWARNINGS="${PYTHONWARNINGS:-ignore:Function \`asset_materialize_command\`}"
mkdir -p "$DAGSTER_HOME" 2>/dev/null && case "$(cksum 2>/dev/null <"$DAGSTER_HOME/dagster.yaml")" in
  # None yet, or that of an earlier version, as it was.
  "" | "889363262 552" | "3574377695 273") cp "$_dd_here/dd_assets/dagster.yaml" "$DAGSTER_HOME/" ;;
esac
[ -x "$_dd_here/.venv/bin/dagster" ] || echo "env.sh: .venv is not set up yet; run 'make setup' first" >&2
unset _dd_here _dd_records
