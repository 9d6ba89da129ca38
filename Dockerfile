# Trains and serves in containers, as users without rights. Targets, of which `train` is the default:
#
#   train      kft: data, training, export
#   serve      TensorFlow Serving with one export inside, the image to ship
#   server     the same without an export, which is mounted instead (compose.yaml does)
#   serve-kft  `kft serve` on a mounted export, without TensorFlow Serving
#
#   docker build -t kft .
#   docker build -t kft:gpu --build-arg EXTRAS=gpu .
#   docker run --rm -v "$PWD:/work" --user "$(id -u):$(id -g)" kft fit recipe.yaml
#   docker run --rm -v "$PWD:/work" --user "$(id -u):$(id -g)" --gpus all kft:gpu fit recipe.yaml
#   docker build -t mobilenet:1 --target serve --build-arg MODEL=mobilenet \
#       --build-context export=runs/mobilenet/export .
#   docker run --rm --init -p 8500:8500 -p 8501:8501 mobilenet:1
#
# It needs BuildKit, the builder of Docker since 23.0: named contexts come from there, and stages that
# a target does not use are left out.
#
# Bases are pinned by tag. A tag can move; a digest cannot. `docker buildx imagetools inspect TAG`
# shows it, and `--build-arg PYTHON_IMAGE=python:3.11-slim-bookworm@sha256:...` builds on exactly that.
# There is one base for processors and GPUs: EXTRAS=gpu installs CUDA's libraries from the package
# index, and the driver comes from the host (NVIDIA Container Toolkit, `--gpus all`).
ARG PYTHON_IMAGE=python:3.11-slim-bookworm
# The release that was built with TensorFlow 2.21, which exports are written by; for NVIDIA GPUs
# tensorflow/serving:2.21.0-gpu. Known: tensorflow-serving-api 2.21.0 is on the package index, and
# people have published what this image answered them. Not known: whether it can be pulled from
# where you are; it was not pulled when this was written. It is built for x86-64 alone.
ARG SERVING_IMAGE=tensorflow/serving:2.21.0

FROM ${PYTHON_IMAGE} AS dependencies
ENV PYTHONUNBUFFERED=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_ROOT_USER_ACTION=ignore \
    KFT_HOME=/home/kft/.cache/kerastune_ft \
    MPLCONFIGDIR=/tmp/matplotlib
# Whoever `--user` names must be able to write there, without being known in the image.
RUN useradd --create-home --uid 1000 kft \
    && mkdir -p "$KFT_HOME" /work \
    && chmod -R a+rwX /home/kft /work
# Of setup.cfg alone, so that a change of code installs none of this again.
ARG EXTRAS=""
COPY setup.cfg containers/requirements.py /src/
RUN python /src/requirements.py /src/setup.cfg "$EXTRAS" > /tmp/requirements.txt \
    && python -m pip install -r /tmp/requirements.txt \
    && rm /tmp/requirements.txt

# Everything that a run leaves lies in /work, which is mounted: runs/NAME/ with the model, scores and
# figures, runs/NAME/export/ after `kft export`. Weights that were fetched lie in KFT_HOME; mount that
# as well to fetch them once.
FROM dependencies AS kft
COPY pyproject.toml README.md LICENSE /src/
COPY recipes /src/recipes
COPY kerastune_ft /src/kerastune_ft
RUN python -m pip install --no-deps /src \
    && python -m pip check \
    && rm -rf /src/build /src/*.egg-info
# Of whoever runs it; without it a user that the image does not know would be at home in /.
ENV HOME=/home/kft
# kft, by number: Kubernetes' runAsNonRoot cannot look a name up.
USER 1000:1000
WORKDIR /work
ENTRYPOINT ["kft"]
CMD ["--help"]

FROM kft AS serve-kft
USER 0
RUN python /src/requirements.py /src/setup.cfg serve > /tmp/requirements.txt \
    && python -m pip install -r /tmp/requirements.txt \
    && rm /tmp/requirements.txt
USER 1000:1000
EXPOSE 8500 8501
HEALTHCHECK --interval=10s --timeout=5s --start-period=2m --retries=3 \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8501/readyz', timeout=4)"]
CMD ["serve", "/export", "--host", "0.0.0.0", "--port", "8501"]

# Replaced by the folder of `--build-context export=...`; without it there is nothing to serve, and
# the check below says so.
FROM scratch AS export

FROM ${SERVING_IMAGE} AS server
ENV MODEL_NAME=model \
    MODEL_BASE_PATH=/models \
    BATCHING=off
COPY containers/serve.sh containers/healthy.sh /opt/kft/
EXPOSE 8500 8501
# nobody
USER 65534:65534
# The image has no curl and no Python; bash opens the connection itself.
HEALTHCHECK --interval=10s --timeout=5s --start-period=2m --retries=3 \
    CMD ["/bin/bash", "/opt/kft/healthy.sh"]
# In place of the image's own, which passes --model_name and knows none of the three files.
ENTRYPOINT ["/bin/bash", "/opt/kft/serve.sh"]

FROM server AS serve
# Not called MODEL_NAME, which the image has in its environment: that would win.
ARG MODEL=model
ENV MODEL_NAME=${MODEL}
COPY --from=export --chown=65534:65534 / /models/${MODEL}/
RUN ["/bin/bash", "/opt/kft/serve.sh", "--check"]

FROM kft AS train
