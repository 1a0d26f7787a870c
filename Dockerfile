# medtransfer at run time: no network, no root, nothing written outside /data and /tmp.
#
#   docker build -t medtransfer .
#   docker run --rm --network none --read-only --tmpfs /tmp -v "$PWD":/data medtransfer predict model.onnx scan.nii.gz
#   docker run -d --network none --read-only --tmpfs /tmp -v "$PWD":/data --entrypoint python medtransfer \
#       /opt/medtransfer/examples/watch_folder.py model.onnx inbox outbox
#
# On hosts without a GPU, give the CPU build of torch as a wheel folder: --build-arg PIP_FIND_LINKS=wheels
FROM python:3.12-slim

ARG PIP_FIND_LINKS=
COPY pyproject.toml README.md LICENSE constraints.txt /opt/medtransfer/
COPY medtransfer /opt/medtransfer/medtransfer
COPY examples /opt/medtransfer/examples
RUN pip install --no-cache-dir -c /opt/medtransfer/constraints.txt "/opt/medtransfer[codecs,dicom-out,onnx]" \
    && useradd --uid 10001 --create-home --shell /usr/sbin/nologin reader \
    && mkdir /data && chown reader /data

ENV MEDTRANSFER_HOME=/data/.medtransfer \
    MEDTRANSFER_CACHE=/tmp/medtransfer \
    MPLCONFIGDIR=/tmp/matplotlib \
    PYTHONUNBUFFERED=1
USER 10001
WORKDIR /data
ENTRYPOINT ["medtransfer"]
CMD ["--help"]
