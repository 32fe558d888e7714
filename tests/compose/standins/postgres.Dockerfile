# In the place of the official PostgreSQL image where no registry can be reached: the server of the pgserver wheel,
# its first start by the same variables.
ARG BASE=python:3.11-slim
FROM ${BASE}
RUN python3 -m venv /opt/postgres \
    && /opt/postgres/bin/pip install --no-cache-dir pgserver==0.1.4 \
    && ln -s /opt/postgres/lib/python3*/site-packages/pgserver/pginstall /opt/pginstall \
    && groupadd --gid 999 postgres \
    && useradd --uid 999 --gid postgres postgres \
    && install --directory --owner postgres --group postgres --mode 700 /var/lib/postgresql/data
COPY postgres-entrypoint.sh /entrypoint.sh
ENV PATH=/opt/pginstall/bin:$PATH PGDATA=/var/lib/postgresql/data
USER 999:999
STOPSIGNAL SIGINT
ENTRYPOINT ["sh", "/entrypoint.sh"]
CMD ["postgres"]
