# Locked dependencies in one stage, the program in the next; runs as nobody, on a read-only root.
FROM python:3.11-slim-bookworm AS build
RUN python -m venv /opt/onward
COPY requirements.lock /src/
RUN /opt/onward/bin/pip install --no-cache-dir --require-hashes -r /src/requirements.lock
COPY . /src
RUN /opt/onward/bin/pip install --no-cache-dir --no-deps --no-build-isolation /src

FROM python:3.11-slim-bookworm
COPY --from=build /opt/onward /opt/onward
ENV PATH=/opt/onward/bin:$PATH PYTHONUNBUFFERED=1 ONWARD_DATA_DIR=/data ONWARD_LOG_FORMAT=json
RUN useradd --system --uid 10001 onward && install -d -o onward /data
USER 10001
VOLUME /data
ENTRYPOINT ["onward"]
CMD ["worker"]
