# MindFu in a container: the graph, the stores' clients, and training. docker-compose.yml uses it; docs/docker.md.
#
#   docker build -t mindfu .                                       for CPUs
#   docker build -t mindfu-gpu --build-arg ACCELERATOR=gpu .       llama.cpp and PyTorch with CUDA
#   docker build -t mindfu-vllm --build-arg ACCELERATOR=vllm .     and vLLM
ARG ACCELERATOR=cpu

FROM ubuntu:24.04 AS build-cpu
ENV CMAKE_ARGS="-DLLAVA_BUILD=OFF -DGGML_NATIVE=OFF" TORCH_BACKEND=cpu EXTRAS="--extra train --extra s3"
# GGML_NATIVE=OFF: for any x86-64 with AVX2, not just the machine that builds

FROM nvidia/cuda:12.8.1-devel-ubuntu24.04 AS build-gpu
# Ampere, Ada, Hopper, Blackwell; PyTorch as the package index has it, which is with CUDA
ENV CMAKE_ARGS="-DLLAVA_BUILD=OFF -DGGML_NATIVE=OFF -DGGML_CUDA=on -DCMAKE_CUDA_ARCHITECTURES=80;86;89;90;120" \
    TORCH_BACKEND="" EXTRAS="--extra train --extra s3"

FROM build-gpu AS build-vllm
ENV EXTRAS="--extra train --extra s3 --extra vllm"

FROM ubuntu:24.04 AS run-cpu
ENV PACKAGES=""

FROM nvidia/cuda:12.8.1-runtime-ubuntu24.04 AS run-gpu
ENV PACKAGES=""

FROM nvidia/cuda:12.8.1-devel-ubuntu24.04 AS run-vllm
# vLLM compiles kernels for the model when it starts
ENV PACKAGES="gcc g++ python3-dev"

# hadolint ignore=DL3006
FROM build-${ACCELERATOR} AS build
# hadolint ignore=DL3008
RUN apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -yq --no-install-recommends \
        build-essential cmake git python3-dev python3-venv && rm -rf /var/lib/apt/lists/*
WORKDIR /srv/mindfu
# What changes rarely comes first: a change of ours does not compile llama.cpp again.
COPY Makefile pyproject.toml uv.lock README.md LICENSE ./
RUN PIP_NO_CACHE_DIR=1 make .venv/llama
COPY app app
COPY deployments deployments
COPY train train
# hadolint ignore=SC2086
RUN make install && .venv/bin/uv sync --quiet --frozen --inexact --no-dev ${EXTRAS} \
        --no-install-package torch --no-install-package llama-cpp-python

# hadolint ignore=DL3006
FROM run-${ACCELERATOR}
# hadolint ignore=DL3008,SC2086
RUN apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -yq --no-install-recommends \
        ca-certificates libgomp1 python3 ${PACKAGES} && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 10001 mindfu && install -d -o mindfu /srv/mindfu /data
WORKDIR /srv/mindfu
COPY --from=build --chown=mindfu /srv/mindfu /srv/mindfu
COPY --chown=mindfu serve_config.yaml params.yaml ./
USER 10001
ENV MINDFU_HOME=/data PATH=/srv/mindfu/.venv/bin:$PATH
VOLUME /data
EXPOSE 11434
HEALTHCHECK --interval=10s --timeout=10s --start-period=15m --retries=3 \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:11434/health', timeout=8)"]
STOPSIGNAL SIGINT
CMD ["mindfu", "serve"]
