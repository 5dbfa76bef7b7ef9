# An image with bpr-etl and its runtime dependencies: no extra, no build tools, no user with a name. From a checkout:
#   docker build --tag bpr-etl .
#   docker run --read-only --tmpfs /tmp --volume /srv/bpr:/out --env DATABASE_URL bpr-etl run
# /srv/bpr must belong to the user 10001. Nothing but /out and /tmp is written.

FROM python:3.13-slim AS build
WORKDIR /src
COPY pyproject.toml hatch_build.py constraints.txt README.md LICENSE bpr_etl.py bpr_etl.pyi cli.py ./
COPY data data
COPY etl etl
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels . \
 && python -m venv /opt/bpr-etl \
 && /opt/bpr-etl/bin/pip install --no-cache-dir --constraint constraints.txt /wheels/*.whl \
 && /opt/bpr-etl/bin/pip uninstall --yes pip

FROM python:3.13-slim
COPY --from=build /opt/bpr-etl /opt/bpr-etl
RUN install --directory --owner=10001 --group=10001 /out
ENV PATH="/opt/bpr-etl/bin:$PATH" BPR_ETL_OUT=/out
USER 10001:10001
WORKDIR /out
ENTRYPOINT ["bpr-etl"]
CMD ["--help"]
