# Thin calls; the work is in tools/ and helpers/. An active conda environment made from environment.yml is used as it is.
ENV := $(if $(filter spreadsheet-to-assistant,$(CONDA_DEFAULT_ENV)),$(CONDA_PREFIX),.venv)
PY := $(ENV)/bin/python
# Everything the course launches runs in the environment that helpers/profile.py describes.
LAUNCH := $(PY) -m helpers.profile

.PHONY: run test lab homework submit grade bench lock tiny-base clean setup
.DEFAULT_GOAL := run

setup:
	@tools/setup.sh $(ENV)

run: setup
	@$(LAUNCH) $(PY) -m helpers.lessons

lab: setup
	@$(LAUNCH) $(PY) -m jupyter lab --no-browser --allow-root --LabApp.default_url=/lab/tree/notebooks/00_start_here.ipynb

# Puts the homework into workspace/homework/; what is there already stays.
homework: setup
	@$(LAUNCH) $(PY) -m helpers.homework

submit: setup
	@$(LAUNCH) $(PY) -m helpers.submit

# make grade SUBMISSIONS=folder [RULES=file]
grade: setup
	@$(LAUNCH) $(PY) -m helpers.grade $(if $(RULES),--rules "$(RULES)") $(if $(SUBMISSIONS),"$(SUBMISSIONS)")

test: setup
	@$(PY) -m ruff check .
	@$(LAUNCH) $(PY) -m pytest -q --durations=40 --nbval --nbval-current-env --nbval-cell-timeout=1200 tests notebooks

bench: setup
	@$(LAUNCH) $(PY) -m tests.bench
	@$(LAUNCH) $(PY) -m tests.bench_convert
	@$(LAUNCH) $(PY) -m tests.bench_merge
	@$(LAUNCH) $(PY) -m tests.bench_batches
	@$(LAUNCH) $(PY) -m tests.bench_server
	@$(LAUNCH) $(PY) -m tests.bench_grade
	@$(LAUNCH) $(PY) -m tests.bench_train

lock: setup
	@$(ENV)/bin/uv pip compile requirements.in --override overrides.txt --python-version 3.11 \
		--python-platform x86_64-manylinux_2_28 --no-annotate --no-header --quiet --output-file requirements.lock

# The full pretraining run behind assets/tiny-base: an hour or more on two cores, resumed where it stopped.
tiny-base: setup
	@$(LAUNCH) $(PY) -m helpers.pretrain assets/tiny-base

# workspace/ holds the student's work and stays.
clean:
	rm -rf .venv .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './workspace/*' -prune -exec rm -rf {} +
