#!/usr/bin/env bash
# Every node, once and again: packages, the shared folders, MindFu from the lock. `node.sh train` adds what tuning needs,
# `node.sh vllm` vLLM. Where there is a GPU, llama.cpp is compiled for it, which takes the CUDA toolkit.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=/dev/null
. ~/.config/mindfu/secrets.sh
chmod 600 ~/.ray/auth_token ~/.config/mindfu/secrets.sh

sudo DEBIAN_FRONTEND=noninteractive apt-get update -q > /dev/null
sudo DEBIAN_FRONTEND=noninteractive apt-get install -yq python3-venv build-essential cmake > /dev/null

# Adapters, datasets and runs are the same on all nodes; everything else of the home is each node's own.
mkdir -p .mindfu
if [ -n "${MINDFU_BUCKET:-}" ]; then
    sudo DEBIAN_FRONTEND=noninteractive apt-get install -yq s3fs > /dev/null
    sudo mkdir -p /mnt/mindfu
    mountpoint -q /mnt/mindfu || sudo s3fs "$MINDFU_BUCKET" /mnt/mindfu \
        -o "${MINDFU_BUCKET_OPTIONS:-iam_role=auto},allow_other,uid=$(id -u),gid=$(id -g),umask=077"
fi
if mountpoint -q /mnt/mindfu; then  # or what you mounted there: NFS, a file system of the cloud
    for part in adapters datasets runs; do
        mkdir -p "/mnt/mindfu/$part"
        ln -sfn "/mnt/mindfu/$part" ".mindfu/$part"
    done
fi

export PATH="$PATH:/usr/local/cuda/bin"
if nvidia-smi -L > /dev/null 2>&1; then
    if command -v nvcc > /dev/null; then
        export CMAKE_ARGS="-DLLAVA_BUILD=OFF -DGGML_CUDA=on" PIP_NO_CACHE_DIR=1
    else
        echo "There is a GPU, and no nvcc to compile llama.cpp for it: install the CUDA toolkit to serve GGUF models." >&2
    fi
fi
make install
case "${1:-}" in
    train)
        .venv/bin/uv sync --quiet --frozen --inexact --no-dev --extra train \
            --no-install-package torch --no-install-package llama-cpp-python
        ;;
    vllm) make .venv/vllm ;;
esac
