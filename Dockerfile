# medtransfer at run time: no network, no root, nothing written outside /data and /tmp.
#
#   docker build -t medtransfer .
#   alias contained='docker run --network none --read-only --tmpfs /tmp --user "$(id -u):$(id -g)" -v "$PWD":/data'
#   contained --rm medtransfer predict model.onnx scan.nii.gz
#   contained -d --entrypoint python medtransfer /opt/medtransfer/examples/watch_folder.py model.onnx inbox outbox
#
# --user: files in this folder are read and written as yours. Without it the user is 10001, who may write where all may.
# For hosts without a GPU, put the CPU builds of torch and torchvision, for this Python, into a folder wheels/ beforehand.
FROM python:3.12-slim

COPY pyproject.toml README.md LICENSE constraints.txt /opt/medtransfer/
COPY LICENSE wheel[s] /opt/wheels/
COPY medtransfer /opt/medtransfer/medtransfer
COPY examples /opt/medtransfer/examples
RUN pip install --no-cache-dir --find-links /opt/wheels -c /opt/medtransfer/constraints.txt "/opt/medtransfer[codecs,dicom-out,onnx]" \
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
