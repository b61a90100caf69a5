# Thin calls; the work is in tools/ and helpers/. An active conda environment made from environment.yml is used as it is.
ENV := $(if $(filter spreadsheet-to-assistant,$(CONDA_DEFAULT_ENV)),$(CONDA_PREFIX),.venv)
PY := $(ENV)/bin/python
# Everything the course launches runs in the environment that helpers/machine/profile.py describes.
LAUNCH := $(PY) -m helpers.machine.profile

.PHONY: run test lab base homework submit grade bench lock tiny-base clean setup
.DEFAULT_GOAL := run

setup:
	@tools/setup.sh $(ENV)

run: setup
	@$(LAUNCH) $(PY) -m helpers.machine.lessons

lab: setup
	@$(LAUNCH) $(PY) -m jupyter lab --no-browser --allow-root --LabApp.default_url=/lab/tree/notebooks/00_start_here.ipynb

# make base MODEL=name [FROM=hf|modelscope|openxlab] [INTO=folder]; without a name it lists those it knows.
base: setup
	@$(LAUNCH) $(PY) -m helpers.machine.download $(if $(FROM),--from "$(FROM)") $(if $(INTO),--into "$(INTO)") \
		$(if $(MODEL),"$(MODEL)")

# Puts the homework into workspace/homework/; what is there already stays.
homework: setup
	@$(LAUNCH) $(PY) -m helpers.homework.release

submit: setup
	@$(LAUNCH) $(PY) -m helpers.homework.submit

# make grade SUBMISSIONS=folder [RULES=file]
grade: setup
	@$(LAUNCH) $(PY) -m helpers.grading.grade $(if $(RULES),--rules "$(RULES)") $(if $(SUBMISSIONS),"$(SUBMISSIONS)")

# Two workers with a thread each; tests/conftest.py says what shares one.
test: setup
	@$(PY) -m ruff check .
	@$(LAUNCH) env OMP_NUM_THREADS=1 $(PY) -m pytest -q -n 2 --dist loadscope --no-loadscope-reorder --durations=40 \
		--nbval --nbval-current-env --nbval-cell-timeout=1200 tests notebooks

bench: setup
	@$(LAUNCH) $(PY) -m tests.bench
	@$(LAUNCH) $(PY) -m tests.bench_convert
	@$(LAUNCH) $(PY) -m tests.bench_merge
	@$(LAUNCH) $(PY) -m tests.bench_batches
	@$(LAUNCH) $(PY) -m tests.bench_server
	@$(LAUNCH) $(PY) -m tests.bench_grade
	@$(LAUNCH) $(PY) -m tests.bench_retrieve
	@$(LAUNCH) $(PY) -m tests.bench_train

lock: setup
	@$(ENV)/bin/uv pip compile requirements.in --override overrides.txt --python-version 3.11 \
		--python-platform x86_64-manylinux_2_28 --no-annotate --no-header --quiet --output-file requirements.lock

# The full pretraining run behind assets/tiny-base: more than four hours on two cores, resumed where it stopped. It compiles
# the model first, which wants gcc.
tiny-base: setup
	@$(LAUNCH) env TORCHDYNAMO_DISABLE=0 PYTHONPATH=. $(PY) tools/make_tiny_base.py assets/tiny-base

# workspace/ holds the student's work and stays.
clean:
	rm -rf .venv .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './workspace/*' -prune -exec rm -rf {} +
