# shellcheck shell=sh
# What Ray and MindFu read on every node: `. environment.sh` before `ray start`, `mindfu serve` and everything else.
# shellcheck source=/dev/null
. ~/.config/mindfu/secrets.sh
export MINDFU_API_KEY MINDFU_KEY_PEPPER
export MINDFU_POSTGRES_URL="${MINDFU_POSTGRES_URL:-postgresql://mindfu:$MINDFU_POSTGRES_PASSWORD@${RAY_HEAD_IP:-127.0.0.1}/mindfu}"
export MINDFU_HOME="$HOME/mindfu/.mindfu"
export MINDFU_PARAMS="$HOME/mindfu/cluster/params.yaml"
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH="$HOME/.ray/auth_token"
export RAY_USAGE_STATS_ENABLED=0
export RAY_SERVE_THROUGHPUT_OPTIMIZED=1 RAY_SERVE_REQUEST_PATH_LOG_BUFFER_SIZE=1
export RAY_SERVE_FORCE_STOP_UNHEALTHY_REPLICAS=1
export RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH=2147483647
export RAY_SERVE_ENABLE_DIRECT_INGRESS=0
export RAY_ENABLE_UV_RUN_RUNTIME_ENV=0
export GRPC_ENABLE_FORK_SUPPORT=0
export RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S=1800   # a GPU node boots, and installs
if [ "${RAY_SERVE_ENABLE_HA_PROXY:-0}" = 1 ]; then # set in secrets.sh: HAProxy instead of Serve's own proxy
    export RAY_SERVE_ENABLE_HA_PROXY
    eval "$(cd ~/mindfu && .venv/bin/python -m deployments.front)"
fi
if [ -n "${OTEL_EXPORTER_OTLP_ENDPOINT:-}" ]; then
    export OTEL_EXPORTER_OTLP_ENDPOINT OTEL_SERVICE_NAME=mindfu
    export RAY_SERVE_TRACING_EXPORTER_IMPORT_PATH=deployments.tracing:exporters RAY_SERVE_TRACING_SAMPLING_RATIO=1
fi
