# The server in a container, for CPUs or NVIDIA GPUs; it runs as a user without rights.
#
#   docker build --target cpu  -t bifrons:cpu .
#   docker build --target cuda -t bifrons:cuda .
#   docker run -p 127.0.0.1:8000:8000 bifrons:cpu                    # the embedded models
#   docker run --gpus all -p 127.0.0.1:8000:8000 -v bifrons-models:/models bifrons:cuda \
#       serve --host 0.0.0.0 -m deepseek-ai/Janus-Pro-1B
#
# Any other command works too: docker run bifrons:cpu info janus-nano

ARG PYTHON=3.12

FROM python:${PYTHON}-slim AS wheel
WORKDIR /src
COPY . .
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:${PYTHON}-slim AS base
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore \
    PYTHONUNBUFFERED=1 HF_HOME=/models
RUN useradd --create-home --uid 10001 bifrons && install --directory --owner=bifrons /models /work
# Whatever the command: while no server answers, as with `bifrons info`, the container is unhealthy and goes on.
HEALTHCHECK --interval=15s --timeout=5s --start-period=10m --start-interval=2s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health', timeout=4)"]
VOLUME /models
EXPOSE 8000
WORKDIR /work
ENTRYPOINT ["bifrons"]
CMD ["serve", "--host", "0.0.0.0"]

FROM base AS cpu
RUN pip install --index-url https://download.pytorch.org/whl/cpu 'torch>=2.6' 'torchvision>=0.21'
RUN --mount=type=bind,from=wheel,source=/wheels,target=/wheels pip install /wheels/*.whl
USER 10001

# PyPI's torch for Linux brings CUDA's libraries; Triton builds its launchers with a C compiler.
FROM base AS cuda
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
RUN --mount=type=bind,from=wheel,source=/wheels,target=/wheels pip install /wheels/*.whl
USER 10001
