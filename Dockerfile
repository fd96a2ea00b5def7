# docs/deploy.md says how this is built, and what of it was run without a container engine.
FROM python:3.11.14-bookworm AS build
WORKDIR /opt/genctl
COPY constraints.txt dist/genctl-*.whl ./
# The versions that the tests ran with, and the wheel that they ran. The cache stays in this stage.
# hadolint ignore=DL3042
RUN python3 -m venv --without-pip env && \
    pip --python env/bin/python install --quiet --no-compile --only-binary :all: \
        --constraint constraints.txt genctl-*.whl
# botocore brings all services of AWS: credentials need these few. uvloop brings its debug symbols.
RUN find env/lib/python3*/site-packages/botocore/data -mindepth 1 -maxdepth 1 -type d \
        ! -name sqs ! -name sts ! -name 'sso*' ! -name signin -exec rm -r {} + && \
    strip env/lib/python3*/site-packages/uvloop/*.so && \
    env/bin/python -m compileall -q --invalidation-mode unchecked-hash env/lib

FROM python:3.11.14-slim-bookworm
COPY --from=build /opt/genctl/env /opt/genctl/env
ENV PATH=/opt/genctl/env/bin:$PATH PYTHONDONTWRITEBYTECODE=1
USER 10001:10001
# the port of the API, or the --metrics-port of a worker
HEALTHCHECK --interval=30s --timeout=10s --start-period=20s --retries=4 \
    CMD ["genctl", "health", "--port", "8787", "--port", "9090"]
ENTRYPOINT ["genctl"]
CMD ["--help"]
