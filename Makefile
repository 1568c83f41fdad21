# Two commands do all the set-up: `make demo` and `make test`. Both need git, make and Python 3.11 to 3.13.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null \
	&& echo $$p && break; done)
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt

# the longest first, since two run at a time
RUNS := shapes-cogvideox-50 shapes-wan-50 shapes-hunyuan-50 shapes-wan-20
# on models that are in RUNS with many steps
FEW_STEPS := shapes-cogvideox-20 shapes-hunyuan-20
ALL_RUNS := $(RUNS:%=bench-%) $(FEW_STEPS:%=bench-%)

.PHONY: demo test test-all test-ranks test-batch test-comfyui batch-bars check lint format support bench bench-few-steps $(ALL_RUNS) bench-quick bench-default bench-hard cadences cliff gate gate-anew overhead joined clean

.venv/installed: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "mixcache needs Python 3.11 to 3.13 with venv (on Debian: python3 and python3-venv)"; exit 2; }
	$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear .venv
	$(PIP) --editable .
	touch $@

.venv/installed-test: .venv/installed
	$(PIP) --editable '.[test]'
	touch $@

demo: .venv/installed
	$(BIN)/mixcache demo --force

# a process for each core, of one thread; whoever is done takes over from the others
PARALLEL := --numprocesses auto --dist worksteal

test test-all test-ranks test-batch test-comfyui support batch-bars: export OMP_NUM_THREADS = 1

# the batch and its page have a target of their own, with Ray and Gradio
test: .venv/installed-test
	$(BIN)/python -m pytest $(PARALLEL) --ignore tests/batch

test-all: .venv/installed-test
	$(BIN)/python -m pytest $(PARALLEL) -m ""

# a real ComfyUI, in an environment of its own, which stands on this one
test-comfyui: .venv/installed-test
	$(BIN)/python comfyui/tests/environment.py build/comfyui
	build/comfyui/venv/bin/python -m pytest --numprocesses 2 --dist loadfile -c comfyui/tests/pytest.ini \
		--rootdir comfyui/tests comfyui/tests

# Ray and Gradio have an environment of their own: what `make test` needs stays small
.venv-batch/installed: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "mixcache needs Python 3.11 to 3.13 with venv (on Debian: python3 and python3-venv)"; exit 2; }
	$(PYTHON) -m venv --clear .venv-batch
	.venv-batch/bin/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt --editable '.[test,ray,web]'
	touch $@

# a file of tests stays in one process: its cluster and its page are begun once
test-batch: .venv-batch/installed
	.venv-batch/bin/python -m pytest -m "" --numprocesses 2 --dist loadfile tests/batch

batch-bars: .venv-batch/installed
	MIXCACHE_BARS=1 .venv-batch/bin/python -m pytest -q -s tests/batch/test_wall.py -k ten_thousand
	.venv-batch/bin/python -m studies.batch --out docs/results/batch.json

test-ranks: .venv/installed-test
	$(BIN)/python -m pytest -q -m "ranks and not slow" tests/ranks

lint: .venv/installed-test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

format: .venv/installed-test
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

check: lint
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(MAKE) test

support: .venv/installed-test
	$(BIN)/python -m pytest -q $(PARALLEL) -m "" tests/conformance --support-table docs/support.md

.venv/installed-bench: .venv/installed
	$(PIP) --editable '.[bench]'
	touch $@

# one thread is as fast as two on so small a model, and two runs of one thread each did not slow each other down
bench bench-few-steps $(ALL_RUNS) bench-quick bench-default bench-hard cadences cliff overhead: export OMP_NUM_THREADS = 1

# with RESUME=1 a run that was cut off goes on
bench: .venv/installed-bench
	$(MAKE) --jobs 2 $(RUNS:%=bench-%)

bench-few-steps: .venv/installed-bench
	$(MAKE) --jobs 2 $(FEW_STEPS:%=bench-%)

# bench-MODEL-STEPS
$(ALL_RUNS): bench-%: .venv/installed-bench
	$(BIN)/mixcache bench --model $(word 1,$(subst -, ,$*))-$(word 2,$(subst -, ,$*)) --steps $(lastword $(subst -, ,$*)) \
		--methods all --num-prompts 4 $(if $(RESUME),--resume) --force --out docs/results/$*

# the default alone, on the captions of the runs above; beside their peers in docs/results/README.md
bench-default: $(ALL_RUNS:bench-%=default-%)

$(ALL_RUNS:bench-%=default-%): default-%: .venv/installed-bench
	$(BIN)/mixcache bench --model $(word 1,$(subst -, ,$*))-$(word 2,$(subst -, ,$*)) --steps $(lastword $(subst -, ,$*)) \
		--methods hold --num-prompts 4 --force --out docs/results/default-$*

bench-quick: .venv/installed-bench
	$(BIN)/mixcache bench --methods quick --num-prompts 6 --force --out docs/results/quick

# settings in which models amplify an error as real ones do; a run that was cut off goes on from build/hard
bench-hard: .venv/installed-bench
	$(BIN)/python -m studies.hard_page --out docs/results/hard

comma := ,
space := $(subst ,, )
ERRORS := 0.001 0.00135 0.0018 0.0025 0.0033 0.0045 0.006 0.008 0.011 0.015 0.02 0.027
CLIFF := $(subst $(space),$(comma),$(ERRORS:%=hindsight:error=%))

cliff: .venv/installed-bench
	$(BIN)/mixcache bench --methods $(CLIFF) --num-prompts 16 --force --out docs/results/cliff
	$(BIN)/python -m studies.targets docs/results/cliff/results.json

# hold beside the cadences of about its work, and the paper's policy at its most
AT_MOST := :granularities=step:num_warmup_steps=2:num_cooldown_steps=1:max_age=9:max_cached_run=9
CADENCES := $(foreach predictor,reuse line,$(foreach period,2.5 3 3.5 4,every_nth:period=$(period):predictor=$(predictor)$(AT_MOST)))
FASTEST := mixcache:first_interval=6:max_interval=8:max_cached_run=8:max_age=8:delta_1=0.3:delta_2=0.5

cadences: .venv/installed-bench
	$(BIN)/mixcache bench --methods $(subst $(space),$(comma),hold:speedup=2.5 hold:speedup=2.0 $(CADENCES) $(FASTEST)) \
		--num-prompts 16 --steps 20 --force --out docs/results/cadences-20

GATE := $(BIN)/mixcache bench --methods quick --steps 20 --num-prompts 1 --force --out build/gate

gate: .venv/installed
	@mkdir -p build
	$(GATE) >build/gate.log 2>&1 || { cat build/gate.log; exit 1; }
	$(BIN)/mixcache compare tests/gate.json build/gate/results.json

gate-anew: .venv/installed
	$(GATE)
	cp build/gate/results.json tests/gate.json

overhead: .venv/installed
	$(BIN)/python -m studies.overhead --num-pairs 20 --num-steps 25 --out docs/results

joined: .venv/installed
	$(BIN)/python -m studies.joined --out docs/results

clean:
	rm -rf .venv .venv-batch build dist
