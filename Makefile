# make test | demo | lint | mlflow | lock | clean. The first use, or a changed lock, installs the environment, .venv.
#   make demo DATA_DIR=folder BUDGET=...   real beats from that folder, a smaller or larger search
#   make test TORCH=cuda                   CUDA build of torch (default: cuda where nvidia-smi is, else cpu);
#                                          chosen when .venv is made, so `make clean` first to change it
#   make mlflow PORT=5001                  another port
PYTHON ?= $(shell python3.11 --version >/dev/null 2>&1 && echo python3.11 || echo python3)
TORCH ?= $(if $(shell command -v nvidia-smi),cuda,cpu)
PORT ?= 5000

RUN := .venv/bin/python -m
DATA := $(if $(DATA_DIR),--data-dir "$(DATA_DIR)")
# An index that cannot be reached costs at most twice the timeout.
CPU_INDEX := --index-url https://download.pytorch.org/whl/cpu --timeout 6 --retries 1

export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: test demo lint mlflow lock clean

test: .venv/.installed
	$(RUN) pytest

demo: .venv/.installed
	@set -e; prefix=; \
	$(RUN) data get ptb arrhythmia $(DATA) || \
		{ prefix=synthetic-; echo "No real beats here: the demo continues on synthetic beats."; }; \
	$(RUN) pretrain --data $${prefix}ptb $(DATA); \
	$(RUN) finetune tune --encoder checkpoints/$${prefix}ptb_simclr.pt --data $${prefix}arrhythmia $(DATA) \
		$(if $(BUDGET),--budget "$(BUDGET)")

lint: .venv/.installed
	$(RUN) ruff check .
	$(RUN) ruff format --check .
	$(RUN) pyright

mlflow: .venv/.installed
	@echo "MLflow: http://127.0.0.1:$(PORT) (ready in 10 to 20 seconds; Ctrl-C stops it)"
	@MLFLOW_DISABLE_TELEMETRY=true MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false $(RUN) mlflow server \
		--backend-store-uri sqlite:///experiments/mlflow.db --artifacts-destination experiments/mlruns \
		--host 127.0.0.1 --port $(PORT)

# With the CPU wheel in place, the lock's torch is already satisfied; without it, pip takes torch from PyPI.
.venv/.installed: requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11) and "Python 3.11 is needed: make PYTHON=...")'
	$(PYTHON) -m venv .venv
ifeq ($(TORCH),cpu)
	$(RUN) pip install --no-deps $$(grep '^torch==' requirements.lock) $(CPU_INDEX) \
		|| echo "No CPU build of torch from download.pytorch.org: taking torch from PyPI."
endif
	$(RUN) pip install -r requirements.lock
	touch $@

# What the CUDA build of torch brings along depends on the machine: pip resolves it there, the lock leaves it out.
lock:
	@set -e; venv=$$(mktemp -d); trap 'rm -rf "$$venv"' EXIT; $(PYTHON) -m venv "$$venv"; \
	"$$venv/bin/python" -c 'import tomllib; project = tomllib.load(open("pyproject.toml", "rb"))["project"]; \
		print(*project["dependencies"], *project["optional-dependencies"]["dev"], sep="\n")' > "$$venv/wanted"; \
	"$$venv/bin/pip" install --no-deps $$(grep '^torch==' "$$venv/wanted") $(CPU_INDEX) || true; \
	"$$venv/bin/pip" install -r "$$venv/wanted"; \
	"$$venv/bin/pip" freeze --all --exclude pip --exclude wheel > "$$venv/installed"; \
	echo "# Made by 'make lock' (pip freeze of pyproject.toml's dependencies and dev extra)," \
		"for Python 3.11." > requirements.lock; \
	grep -vE '^(nvidia|cuda|triton)' "$$venv/installed" | sed 's/+.*//' | LC_ALL=C sort -f >> requirements.lock

clean:
	rm -rf .venv .pytest_cache .ruff_cache .hypothesis
