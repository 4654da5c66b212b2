# The machine code of the CPU engine is compiled here; the image that runs has no compiler.
FROM python:3.11 AS build
WORKDIR /src
COPY pyproject.toml setup.py README.md LICENSE ./
COPY streamproc streamproc
COPY kernels kernels
COPY topics topics
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:3.11-slim

# Another package index, for a CPU-only torch: docker build --build-arg PIP_EXTRA_INDEX_URL=...
ARG PIP_EXTRA_INDEX_URL

RUN useradd --create-home streamproc \
    && install -d -o streamproc -g streamproc /home/streamproc/.cache/huggingface

COPY constraints.txt /tmp/
COPY --from=build /wheels /wheels
RUN pip install --no-cache-dir -c /tmp/constraints.txt "$(echo /wheels/*.whl)[worker]"

USER streamproc
WORKDIR /home/streamproc
ENTRYPOINT []
CMD ["streamproc", "run"]
