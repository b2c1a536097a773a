# An image for CPUs with the command line and the HTTP server:
#   docker build -t efficientnetv2 .
FROM python:3.12-slim AS build
WORKDIR /source
COPY . .
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:3.12-slim
# PyTorch's index has builds without CUDA, which are several gigabytes smaller.
RUN pip install --no-cache-dir torch torchvision --index-url https://download.pytorch.org/whl/cpu
RUN --mount=type=bind,from=build,source=/wheels,target=/wheels \
    pip install --no-cache-dir "$(ls /wheels/*.whl)[serve,onnx]"
# Writable for any user of `docker run --user`: weights are downloaded there.
RUN useradd --create-home effnetv2 && chmod 1777 /home/effnetv2
ENV HOME=/home/effnetv2
USER effnetv2
WORKDIR /work
EXPOSE 8000
# For `serve` at its default port. `http.client` uses no proxy of the environment, unlike `urllib`.
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s \
    CMD ["python", "-c", "from http.client import HTTPConnection; c = HTTPConnection('127.0.0.1', 8000, timeout=4); c.request('GET', '/v2/health/live'); assert c.getresponse().status == 200"]
ENTRYPOINT ["effnetv2"]
CMD ["--help"]
