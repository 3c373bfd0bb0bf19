# Two images: `docker build --target light .` plans, fits and asks running servers (no torch); the default also trains, decodes and measures.
FROM python:3.11-slim AS source
WORKDIR /foredraft
COPY pyproject.toml README.md LICENSE ./
COPY src ./src

FROM source AS light
RUN pip install --no-cache-dir '.[endpoint,page,report]' && useradd --create-home foredraft
USER foredraft
WORKDIR /home/foredraft
ENTRYPOINT ["foredraft"]
CMD ["--help"]

FROM source AS full
# The compiler builds the CPU kernels at their first use.
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/* \
    && pip install --no-cache-dir '.[full]' && useradd --create-home foredraft
USER foredraft
WORKDIR /home/foredraft
ENTRYPOINT ["foredraft"]
CMD ["--help"]
