#!/bin/bash
# Starts TensorFlow Serving on what `kft export` wrote, which lies at /models/$MODEL_NAME.
#
#   MODEL_NAME  as models.config names it
#   BATCHING    on joins requests as batching.config says. It is off unless it is asked for, because
#               a request that fails, such as one with a picture that cannot be read, fails all
#               requests that were joined with it.
#
# Further flags of tensorflow_model_server may be given; its numbers of threads are rounded up.
# --check only looks whether all is there.
set -euo pipefail

fail() {
    printf 'serve: %s\n' "$1" >&2
    exit 2
}

base="${MODEL_BASE_PATH:-/models}/$MODEL_NAME"
for name in models.config batching.config monitoring.config; do
    [[ -r $base/$name ]] ||
        fail "'$base/$name' is missing, or user $EUID may not read it; put the folder there that 'kft export' wrote: -v \"\$PWD/runs/NAME/export:$base:ro\", or --build-context export=runs/NAME/export."
done
[[ $(<"$base/models.config") == *"name: \"$MODEL_NAME\""* ]] ||
    fail "'$base/models.config' is of another model than '$MODEL_NAME'; set MODEL_NAME (of a build --build-arg MODEL=) to its name, or export again with --name $MODEL_NAME."
compgen -G "$base/[1-9]*/saved_model.pb" >/dev/null ||
    fail "'$base' has no version, such as 1/saved_model.pb; run 'kft export' again."

options=(
    --port=8500
    --rest_api_port=8501
    "--model_config_file=$base/models.config"
    "--monitoring_config_file=$base/monitoring.config"
)
case ${BATCHING:-off} in
    on) options+=(--enable_batching "--batching_parameters_file=$base/batching.config") ;;
    off) ;;
    *) fail "BATCHING is '$BATCHING'; expected on or off." ;;
esac
if [[ ${1-} == --check ]]; then
    exit 0
fi
[[ $(<"$base/models.config") == *"base_path: \"$base\""* ]] ||
    fail "'$base/models.config' says with base_path that the model lies elsewhere, which is what the server reads; leave MODEL_BASE_PATH at /models and put the folder there, or say '$base' in it."
# A limit of Docker may be a part of a processor; the server knows whole threads alone.
for flag; do
    if [[ $flag =~ ^(--tensorflow_int(er|ra)_op_parallelism=)([0-9]*)\.([0-9]+)$ ]]; then
        whole=$((10#0${BASH_REMATCH[3]}))
        if [[ ${BASH_REMATCH[4]} == *[1-9]* ]]; then
            whole=$((whole + 1))
        fi
        flag=${BASH_REMATCH[1]}$whole
    fi
    options+=("$flag")
done
exec tensorflow_model_server "${options[@]}"
