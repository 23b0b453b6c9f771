# The program `swarm` for machines without a GPU.
#
# In the checkout:  docker build -f deploy/docker/cpu.Dockerfile -t murmuration:cpu .
FROM python:3.11-slim-bookworm

RUN useradd --create-home --uid 1000 swarm && mkdir /data && chown swarm:swarm /data
WORKDIR /src
RUN pip install --no-cache-dir --index-url https://download.pytorch.org/whl/cpu torch==2.13.0
COPY pyproject.toml requirements.lock README.md LICENSE ./
COPY protocols protocols
COPY swarm swarm
COPY node node
RUN pip install --no-cache-dir --constraint requirements.lock ".[otel,gguf]"

USER swarm
ENV SWARM_DATA_DIR=/data PYTHONUNBUFFERED=1
VOLUME /data
EXPOSE 4000 4001 8000 9400
ENTRYPOINT ["swarm"]
CMD ["--help"]
