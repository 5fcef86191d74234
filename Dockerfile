# One image for every service: docker run IMAGE run completion-recorder
# PYTHON_IMAGE may name a digest: docker compose build --build-arg PYTHON_IMAGE=python@sha256:...
ARG PYTHON_IMAGE=python:3.13-slim
FROM ${PYTHON_IMAGE} AS build
RUN pip install --no-cache-dir --disable-pip-version-check uv==0.13.9
ENV UV_LINK_MODE=copy UV_COMPILE_BYTECODE=1 UV_NO_CACHE=1
WORKDIR /src
COPY requirements.txt .
RUN uv venv --python /usr/local/bin/python3 /opt/stepstream \
 && uv pip install --python /opt/stepstream/bin/python --require-hashes -r requirements.txt
COPY pyproject.toml README.md LICENSE ./
COPY launcher launcher
COPY migrations migrations
COPY schemas schemas
COPY services services
COPY clients/python/stepstream_client clients/python/stepstream_client
# The lock is of uv, and everybody may write to it.
RUN uv pip install --python /opt/stepstream/bin/python --no-deps . && rm -f /opt/stepstream/.lock

FROM ${PYTHON_IMAGE}
COPY --from=build /opt/stepstream /opt/stepstream
ENV PATH=/opt/stepstream/bin:$PATH PYTHONUNBUFFERED=1 STEPSTREAM_HTTP_HOST=0.0.0.0
USER 10001:10001
EXPOSE 8080
STOPSIGNAL SIGTERM
ENTRYPOINT ["stepstream"]
CMD ["--help"]
