# The server in a container, for CPUs. To build a commit, and to serve an exported model:
#   git archive HEAD | docker build -f launch/serve.Dockerfile -t disranker-serve -
#   docker run --read-only --tmpfs /tmp -p 127.0.0.1:8080:8080 -e DISRANKER_TOKEN \
#     -v "$PWD/runs/quickstart/export/student:/model:ro" disranker-serve
# Arguments after the image name are passed to `disranker serve`, such as --max-texts 100. Without
# DISRANKER_TOKEN the server ends with an error, unless --open says that everybody may call it.
ARG PYTHON=python:3.11-slim

# The environment is built in a stage of its own: pip's cache and temporary files stay there.
FROM ${PYTHON} AS build
RUN python -m venv /opt/disranker
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY disranker_jax disranker_jax
RUN /opt/disranker/bin/python -m pip install --no-cache-dir -c constraints.txt ".[serve]"

FROM ${PYTHON}
RUN useradd --system --uid 10001 --home-dir /tmp --shell /usr/sbin/nologin disranker
COPY --from=build /opt/disranker /opt/disranker
ENV PATH=/opt/disranker/bin:$PATH PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1
USER 10001
# The exported model; a read-only mount is enough.
VOLUME /model
EXPOSE 8080
# /health is 503 while the model is loaded, and needs no token. http.client does not read http_proxy,
# which containers may have. To serve on another port, use `docker run -p`, not --port, which this
# check does not know.
HEALTHCHECK --start-period=120s --interval=15s --timeout=5s CMD ["python", "-c", \
  "import http.client; c = http.client.HTTPConnection('127.0.0.1', 8080, timeout=4); \
  c.request('GET', '/health'); raise SystemExit(c.getresponse().status != 200)"]
# All interfaces of the container; `docker run -p` decides which ones of the host are reachable.
ENTRYPOINT ["disranker", "serve", "--model", "/model", "--host", "0.0.0.0", "--port", "8080"]
