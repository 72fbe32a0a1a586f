# polymodal on the CPU: docker build -t polymodal . && docker run --rm -v "$PWD/cache:/cache" polymodal doctor
# A server: docker run --rm -p 8000:8000 -v "$PWD/runs:/runs" polymodal serve /runs/mine --host 0.0.0.0 --api-key KEY
FROM python:3.11-slim

RUN apt-get update \
    && apt-get install --yes --no-install-recommends espeak-ng \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /polymodal
COPY pyproject.toml README.md LICENSE ./
COPY src src
RUN pip install --no-cache-dir --extra-index-url https://download.pytorch.org/whl/cpu '.[npm,hub,page,video]'

RUN useradd --create-home user && mkdir /cache /runs && chown user /cache /runs
USER user
WORKDIR /runs
ENV POLYMODAL_CACHE=/cache
VOLUME ["/cache", "/runs"]
EXPOSE 8000
ENTRYPOINT ["polymodal"]
CMD ["--help"]
