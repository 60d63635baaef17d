# Every target builds what it needs: a virtual environment in .venv with the versions of constraints.txt.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
SHOWN := '^(accelerate|datasets|diffusers|huggingface_hub|numpy|torch|transformers)=='
OUT ?= outputs
PROMPT ?=

export PROMPT
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# Idle worker threads that spin slow down everything else on small machines.
export OMP_WAIT_POLICY ?= passive

.PHONY: help generate demo web web-libraries test test-web test-all test-wheel test-oldest test-newest lint style faults fuzz coverage mutants accuracy tables figures clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## */  make \1\t/' | expand -t 22

$(VENV)/.installed: setup.py constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -c constraints.txt -e .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/pip install --quiet -c constraints.txt -e ".[dev]"
	@touch $@

generate: $(VENV)/.installed  ## generate images with the bundled model; PROMPT="a red bird with white wings" overrides
ifeq ($(strip $(PROMPT)),)
	$(BIN)/ratlip generate --prompts_file examples/prompts.txt --num_images 4 --output_dir $(OUT)
else
	$(BIN)/ratlip generate "$$PROMPT" --num_images 8 --output_dir $(OUT)
endif

demo: $(VENV)/.installed  ## an app at http://127.0.0.1:8000: type, and a bird appears
	$(BIN)/pip install --quiet -c constraints.txt -e ".[demo]"
	$(BIN)/ratlip demo

web: $(VENV)/.installed  ## a page at http://127.0.0.1:8000 that makes its images in the browser
	$(BIN)/pip install --quiet -c constraints.txt -e ".[web]"
	$(BIN)/ratlip demo --web

# The bytes are the same wherever this runs: `git diff` afterwards shows whether the files are those of the packages.
LIBRARIES := src/ratlip_hf/web/page/libraries
web-libraries:  ## take the page's libraries out of their npm packages again, as the lock file there has them
	cd $(LIBRARIES) && npm ci --ignore-scripts
	cd $(LIBRARIES) && cp node_modules/onnxruntime-web/dist/ort.wasm.bundle.min.mjs \
		node_modules/@huggingface/tokenizers/dist/tokenizers.min.mjs .
	cd $(LIBRARIES) && gzip -9nc node_modules/onnxruntime-web/dist/ort-wasm-simd-threaded.wasm \
		> ort-wasm-simd-threaded.wasm.gz
	rm -r $(LIBRARIES)/node_modules

lint: $(VENV)/.installed-dev  ## ruff, check and format, and mypy on what pyproject.toml names
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

style: $(VENV)/.installed-dev  ## let ruff repair what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

test: lint  ## lint and the fast test suite, offline, in two processes
	HF_HUB_OFFLINE=1 $(BIN)/pytest -n 2 --dist worksteal

test-web: $(VENV)/.installed-dev  ## the tests that drive a browser; installs playwright and Debian's chromium where they lack
	$(BIN)/pip install --quiet -c constraints.txt -e ".[demo]" playwright
	command -v chromium > /dev/null || $$([ "$$(id -u)" = 0 ] || echo sudo) apt-get install --yes chromium
	HF_HUB_OFFLINE=1 $(BIN)/pytest -m "web or slow" tests/test_web_page.py tests/test_app_page.py tests/test_app.py

test-all: lint test-wheel  ## everything, the slow tests and the wheel included
	HF_HUB_OFFLINE=1 $(BIN)/pytest -m "slow or web or not slow"

test-wheel: $(VENV)/.installed-dev  ## build the wheel, install it in a clean environment, generate and train with it
	PYTHON=$(PYTHON) BUILDER=$(BIN)/python tests/wheel/run.sh

$(VENV)-oldest/.installed: setup.py constraints-oldest.txt
	$(PYTHON) -m venv --clear $(VENV)-oldest
	$(VENV)-oldest/bin/pip install --quiet -c constraints-oldest.txt -e ".[dev,plots]"
	@touch $@

test-oldest: $(VENV)-oldest/.installed  ## the fast tests with the oldest versions that setup.py allows
	@$(VENV)-oldest/bin/pip freeze --exclude-editable | grep -E $(SHOWN)
	HF_HUB_OFFLINE=1 $(VENV)-oldest/bin/pytest -n 2 --dist worksteal

# torch is held: without a version pip takes the newest build for GPUs, a download of gigabytes.
test-newest:  ## the fast tests with the newest releases of everything but torch
	$(PYTHON) -m venv $(VENV)-newest
	$(VENV)-newest/bin/pip install --quiet --upgrade --upgrade-strategy eager \
		"$$(grep '^torch==' constraints.txt)" -e ".[dev,plots]"
	@$(VENV)-newest/bin/pip freeze --exclude-editable | grep -E $(SHOWN)
	HF_HUB_OFFLINE=1 $(VENV)-newest/bin/pytest -n 2 --dist worksteal

faults: $(VENV)/.installed-dev  ## kill, fill, damage and collide, and count what is lost: docs/reliability.md (an hour or more)
	$(BIN)/python benchmarks/faults.py

fuzz: $(VENV)/.installed-dev  ## damaged files for every parser, a minute each: docs/reliability.md
	$(BIN)/pip install --quiet -c constraints.txt hypothesis
	$(BIN)/python benchmarks/fuzz.py

coverage: $(VENV)/.installed-dev  ## lines of src that the fast tests run, also in processes that they start: at least 92 %
	$(BIN)/pip install --quiet -c constraints.txt pytest-cov
	HF_HUB_OFFLINE=1 $(BIN)/pytest -n 2 --dist worksteal --cov --cov-report=term-missing:skip-covered

mutants: $(VENV)/.installed-dev  ## change the core line by line and see which changes no test notices (hours)
	$(BIN)/pip install --quiet -c constraints.txt mutmut
	HF_HUB_OFFLINE=1 $(BIN)/mutmut run --max-children 1
	$(BIN)/mutmut results

accuracy: $(VENV)/.installed-dev  ## score the bundled model by its own protocol
	$(BIN)/ratlip evaluate --model synthetic-birds

tables: $(VENV)/.installed-dev  ## write the tables of README and docs again from docs/records
	$(BIN)/python docs/tables.py

# Those of docs/healthy_run.md need the run that they show: examples/plot_run.py RUN.
figures: $(VENV)/.installed-dev  ## make the pictures of README and docs again, from the bundled model and docs/records
	$(BIN)/pip install --quiet -c constraints.txt -e ".[plots]"
	$(BIN)/python docs/figures.py
	$(BIN)/python docs/networks.py
	$(BIN)/python docs/pictures.py
	$(BIN)/python examples/readme_grid.py docs/images/grid.png

clean:  ## remove the environments and build products
	rm -rf $(VENV) $(VENV)-oldest $(VENV)-newest build dist src/*.egg-info mutants
