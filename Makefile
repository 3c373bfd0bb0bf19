# Two commands do all the set-up on a machine with Python 3.11: `make tour` and `make test`.
PYTHON ?= python3
BIN := .venv/bin
# Each worker takes one core; started processes find their modules compiled, where the shell would forbid to keep them.
ONE_THREAD := OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE=
PEERS := openvino openvino-export vllm

.PHONY: tour test check browser test-engine lint docs size results study peers peers-bench smollm2-bench drafted-bench served-bench simulated-bench clean

tour: .venv/.full ## the whole loop on SmolLM2-135M-Instruct: fetch, probe, plan, decode, train, measure, tour/report.html
	$(BIN)/foredraft tour

test: .venv/.dev browser ## tests/light (laws, planner, records, command line) and tests/cpu (what needs torch)
	@echo "All tests: ten to fifteen minutes on two cores. In under two: make check"
	$(ONE_THREAD) $(BIN)/python -m pytest tests -n 2 --dist worksteal

check: .venv/.dev ## in under two minutes: ruff, and of tests/light what is not slow
	$(BIN)/ruff check . && $(BIN)/ruff format --check .
	$(ONE_THREAD) $(BIN)/python -m pytest tests/light -n 2 --dist worksteal -m "not slow"

browser: ## the Chromium of the browser tests, from Debian's or Ubuntu's packages where root runs this; else they are skipped
	@command -v chromium chromium-browser google-chrome chrome > /dev/null || \
	if [ "$$(id -u)" = 0 ] && command -v apt-get > /dev/null; then \
		apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium > /dev/null || \
		echo "Chromium could not be installed: the browser tests are skipped"; \
	else echo "No Chromium: the browser tests are skipped. To run them: sudo apt-get install chromium"; fi

test-engine: .venv/.dev .venv-peers/vllm/.ready ## tests/engine: the drafts in the real vLLM, in its own environment
	FOREDRAFT_VLLM_PYTHON=$(abspath .venv-peers/vllm/bin/python) OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/engine

lint: .venv/.dev docs
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/pyright --pythonpath $(BIN)/python

docs: .venv/.dev ## the docs site, build/site/index.html; a broken link or anchor is an error, links to elsewhere are listed in build/external_links.txt
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

size: ## lines per file, longest first
	@find src -name '*.py' | xargs wc -l | sort -rn

results: .venv/.dev ## measure what README and docs/results.md claim (the peers by make peers-bench), and write them there
	$(BIN)/foredraft validate --out results/validation --json > /dev/null
	$(BIN)/foredraft reproduce sdsl --out results/sdsl --json > /dev/null
	$(BIN)/foredraft reproduce scylla --out results/scylla --json > /dev/null
	$(BIN)/python recipes/dial_forms.py results/dial_forms.json
	$(BIN)/foredraft plan Llama-3.1-70B -m H100 -n 4 -c 1-256 --out build/plan > /dev/null && cp build/plan/speedup.png docs/images/plan.png
	$(BIN)/python benchmarks/plan_speed.py results/plan_speed.json
	$(BIN)/python benchmarks/plan_seeds.py results/plan_seeds.json
	$(BIN)/python benchmarks/cost_defaults.py results/cost_defaults.json
	$(BIN)/python benchmarks/few_rows.py results/few_rows.json
	$(BIN)/python benchmarks/engine_speed.py results/engine_speed.json
	$(BIN)/python benchmarks/near_ties.py results/near_ties.json
	$(BIN)/python recipes/laws.py results/experiment/observations.jsonl.gz results/experiment/laws.json --target results/experiment/tales-11m --machine results/experiment/machine.json
	$(BIN)/foredraft validate results/experiment/observations.jsonl.gz --target results/experiment/tales-11m --machine results/experiment/machine.json --out results/experiment > /dev/null
	$(BIN)/python recipes/compare.py results/experiment/hindsight.json results/experiment results/experiment/measurements.jsonl.gz > /dev/null
	$(BIN)/foredraft tour --out build/tour && cp build/tour/tour.json results/smollm2/tour.json
	$(BIN)/python recipes/results_tables.py
	$(BIN)/python recipes/docs_blocks.py --write

study: .venv/.dev ## observations, fits, grids, the corpus' recipe, figures and environment as build/foredraft-study-0.2.0.tar.gz, which rebuilds itself
	$(BIN)/python recipes/study/pack.py build/foredraft-study-0.2.0.tar.gz

peers: .venv/.dev $(PEERS:%=.venv-peers/%/.ready) ## the engines that ours is measured against, each in a venv of its own

peers-bench: peers ## ours and theirs in turn: same checkpoints, prompts, precision and threads
	$(BIN)/python benchmarks/peers/run.py results/peers.json

smollm2-bench: .venv/.dev ## SmolLM2 with and without the zoo's drafts, by precision, batch and category; an hour and a half on a quiet machine
	$(BIN)/python recipes/smollm2/measure.py build/smollm2/SmolLM2-135M-Instruct results/smollm2/speed.json --batches 1,8 --prompts zoo/prompts.jsonl $(foreach draft,$(dir $(wildcard zoo/*/config.json)),--draft $(notdir $(draft:/=))=$(draft:/=))

drafted-bench: peers .venv-peers/llama-cpp/.ready ## the zoo's drafts on our engine, vLLM, OpenVINO and llama.cpp in turn
	$(BIN)/python benchmarks/peers/drafted.py results/smollm2/peers.json

served-bench: .venv/.dev .venv-peers/vllm/.ready ## the drafts on vLLM's server: acceptance, tokens/s under load, and what was foretold; an hour on a quiet machine
	$(BIN)/python benchmarks/served.py results/smollm2/served.json

simulated-bench: .venv/.dev .venv-peers/vllm/.ready ## simulated drafts on vLLM's server against the real one; a quarter of an hour a lookahead on a quiet machine
	$(BIN)/python benchmarks/simulated.py results/smollm2/simulated.json

.venv-peers/%/.ready: benchmarks/peers/requirements/%.txt
	$(PYTHON) -m venv --clear .venv-peers/$*
	@echo '*' > .venv-peers/.gitignore
	.venv-peers/$*/bin/python -m pip install -q --disable-pip-version-check -r $<
	.venv-peers/$*/bin/python -m pip uninstall -q -y torchvision torchaudio torchcodec # required, not needed, and broken beside a CPU build of torch
	@touch $@

.venv/.full: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q --disable-pip-version-check -e '.[full]'
	@touch $@

.venv/.dev: .venv/.full
	$(BIN)/python -m pip install -q --disable-pip-version-check -e '.[full,dev]'
	@touch $@

clean:
	rm -rf .venv tour
