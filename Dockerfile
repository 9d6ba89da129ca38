# Trains in a container, as a user without rights, with everything a run leaves in /work:
#   docker build -t kft .
#   docker run --rm -v "$PWD:/work" --user "$(id -u):$(id -g)" kft fit recipe.yaml
# For an NVIDIA GPU: docker build --build-arg EXTRAS=gpu -t kft . ; docker run --gpus all ...
FROM python:3.11-slim

ARG EXTRAS=""
ENV PYTHONUNBUFFERED=1 \
    PIP_NO_CACHE_DIR=1 \
    KFT_HOME=/home/kft/.cache/kerastune_ft \
    MPLCONFIGDIR=/tmp/matplotlib

RUN useradd --create-home --uid 1000 kft
COPY setup.cfg pyproject.toml README.md LICENSE /src/
COPY kerastune_ft /src/kerastune_ft
COPY recipes /src/recipes
RUN python -m pip install "/src${EXTRAS:+[$EXTRAS]}" \
    && mkdir -p "$KFT_HOME" /work \
    && chmod -R a+rwX /home/kft /work

USER kft
WORKDIR /work
ENTRYPOINT ["kft"]
CMD ["--help"]
