#!/bin/bash
# Ends with 0 if a version of $MODEL_NAME is AVAILABLE at the REST port of this container, else with
# 1. Only what bash has is used: TensorFlow Serving's image has no curl.
set -u
seconds=3 # less than the time that HEALTHCHECK allows

exec 3<>"/dev/tcp/127.0.0.1/${REST_PORT:-8501}" || exit 1
printf 'GET /v1/models/%s HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n' \
    "$MODEL_NAME" >&3
read -r -t "$seconds" _ code _ <&3 || exit 1
if [[ $code != 200 ]]; then
    echo "HTTP $code"
    exit 1
fi
# A version that was replaced stays in the list as END: one that is AVAILABLE is enough.
while IFS= read -r -t "$seconds" line <&3 || [[ -n $line ]]; do
    if [[ $line == *'"AVAILABLE"'* ]]; then
        exit 0
    fi
done
echo "no version is AVAILABLE"
exit 1
