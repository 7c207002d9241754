# syntax=docker/dockerfile:1
#
# The pipeline in one image.
#
#   docker build -t wgates .
#   docker run --rm -v wgates-runs:/workspace/runs wgates run --target ort-cpu --budget 0.6x --out runs/demo
#
# BASE    what lies below Python. The default has no CUDA libraries of its own; that is enough for CPU
#         targets, and for training on a GPU, because torch brings the CUDA libraries it needs. A target
#         that loads CUDA or cuDNN from the system needs NVIDIA's base and `docker run --gpus all`:
#           --build-arg BASE=nvidia/cuda:13.0.1-cudnn-runtime-ubuntu24.04
#         Any Debian or Ubuntu image does, if its python3 is 3.11 or later.
# EXTRAS  which parts of the project: names from pyproject.toml. `train` brings torch and, with it, about
#         6 GB, whatever BASE is. A device that only measures and serves takes far less:
#           --build-arg EXTRAS=ort-cpu
# A package mirror is named in a pip.conf that no layer keeps:
#           --secret id=pip_conf,src=pip.conf

ARG BASE=python:3.12.12-slim-bookworm

# both stages start from one Python: an environment works only where its interpreter is
FROM ${BASE} AS base
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
# no apt version is pinned: the distribution replaces its Python by security fixes only
# hadolint ignore=DL3008
RUN if ! command -v python3 > /dev/null; then \
        apt-get update \
        && apt-get install -y --no-install-recommends python3 python3-venv \
        && rm -rf /var/lib/apt/lists/*; \
    fi \
    && python3 -c 'import sys; assert sys.version_info >= (3, 11), sys.version'


FROM base AS builder
ARG EXTRAS=train,ort-cpu,openvino,triton
ENV PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python3 -m venv /opt/venv
WORKDIR /src
# dependencies first, with empty packages: an edit of the code then reuses this layer
COPY LICENSE README.md pyproject.toml ./
RUN --mount=type=cache,target=/root/.cache/pip \
    --mount=type=secret,id=pip_conf,target=/etc/pip.conf \
    mkdir calibration pipeline targets \
    && touch calibration/__init__.py pipeline/__init__.py targets/__init__.py \
    && /opt/venv/bin/pip install ".[${EXTRAS}]"
COPY calibration calibration
COPY pipeline pipeline
COPY targets targets
RUN --mount=type=cache,target=/root/.cache/pip \
    --mount=type=secret,id=pip_conf,target=/etc/pip.conf \
    rm -rf build \
    && /opt/venv/bin/pip install --no-deps --force-reinstall . \
    && /opt/venv/bin/pipeline --help > /dev/null


FROM base AS runtime
ARG REVISION=unknown
LABEL org.opencontainers.image.title="wgates" \
      org.opencontainers.image.description="Prune a CNN to a millisecond budget and hand over a verified engine" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.revision="${REVISION}"
# /workspace belongs to everybody, like /tmp, so that `docker run --user "$(id -u)"` can write to a mounted folder
RUN useradd --uid 10001 --user-group --no-create-home --shell /usr/sbin/nologin wgates \
    && mkdir -p /workspace/runs \
    && chown -R wgates:wgates /workspace \
    && chmod 1777 /workspace /workspace/runs
COPY --from=builder /opt/venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH \
    HOME=/workspace \
    PYTHONUNBUFFERED=1
USER 10001:10001
WORKDIR /workspace
VOLUME ["/workspace/runs"]
ENTRYPOINT ["pipeline"]
CMD ["--help"]
