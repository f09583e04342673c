# The service in a small image: docker build -t savepoint . (docs/deploying.md)
FROM python:3.13-slim-trixie AS packages
COPY requirements.txt .
RUN python3 -m venv /opt/venv && /opt/venv/bin/pip install --no-cache-dir --require-hashes --requirement requirements.txt

FROM python:3.13-slim-trixie
# `manage.py save` and `load` need PostgreSQL's programs: --build-arg PACKAGES=postgresql-client
ARG PACKAGES=""
RUN useradd --uid 10001 --no-create-home savepoint \
    && install --directory --owner savepoint --mode 700 /data \
    && if [ -n "$PACKAGES" ]; then apt-get update && apt-get install --yes --no-install-recommends $PACKAGES \
    && rm -rf /var/lib/apt/lists/*; fi
COPY --from=packages /opt/venv /opt/venv
WORKDIR /app
# What .dockerignore lets through. It belongs to root: the service cannot change its own code.
COPY . .
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 ENVIRONMENT=production SAVES_DIR=/data/saves
USER savepoint
VOLUME /data
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s \
    CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8000/healthz', timeout=4)"]
CMD ["uvicorn", "main:app", "--http", "server.protocol:BoundedProtocol", "--host", "0.0.0.0", "--port", "8000", \
     "--no-access-log", "--timeout-keep-alive", "75"]
