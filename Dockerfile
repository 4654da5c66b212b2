FROM python:3.11-slim

# Another package index, for a CPU-only torch: docker build --build-arg PIP_EXTRA_INDEX_URL=...
ARG PIP_EXTRA_INDEX_URL

RUN useradd --create-home streamproc \
    && install -d -o streamproc -g streamproc /home/streamproc/.cache/huggingface

WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY streamproc streamproc
COPY kernels kernels
COPY topics topics
RUN pip install --no-cache-dir -c constraints.txt '.[worker]'

USER streamproc
WORKDIR /home/streamproc
ENTRYPOINT []
CMD ["streamproc", "run"]
