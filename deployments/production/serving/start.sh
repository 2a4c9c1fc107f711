#!/bin/sh
# Start vLLM by the command that `adapterflow serve … --print` has written, as soon as it is there.
set -eu
: "${VLLM_API_KEY:?is empty: whoever reaches vLLM could have it load adapters}"
written="${1:-/data/home/served/vllm.command}"
trap 'exit 0' TERM
test -s "$written" || echo "waiting for $written; docs/serving.md says how it is written"
until test -s "$written"; do sleep 1; done
# vLLM takes the place of this shell, so that it is vLLM that is asked to stop.
eval "exec env $(cat "$written")"
