# make start       environment, lesson 01 on the data at hand, its results, JupyterLab (NO_LAB=1 stops before JupyterLab)
# make test        environment, then everything: sync, lint, tests, every notebook (ARGS="-k metrics" passes arguments to pytest)
# make lab         JupyterLab on the course
# make serve P=1   the service of a project on a port of this machine (ARGS="--port 9000" passes arguments)
# make demo P=1    its demo in the browser; make demo opens all of them on one page
# make bench       services under load beside LitServe, and search beside bm25s and faiss
# make fuzz        the fuzz of the services at full length (N=100000), its figures kept in tests/campaigns
# make kills       kill -9 while an index is written (K=50), likewise
# make reference   for contributors: refresh kept outputs, reference rows and tables (FULL=1 measures the full profile too)

PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)

.PHONY: start test lab serve demo bench fuzz kills reference clean

start: .venv/ready
	@.venv/bin/nlp-portfolio start $(if $(NO_LAB),--no-lab)

test: .venv/ready
	@.venv/bin/python -m pytest $(ARGS)

lab: .venv/ready
	@.venv/bin/python -m jupyterlab nbs/0_start/00_start.ipynb

P ?= 1

serve: .venv/ready
	@.venv/bin/python projects/$(P)_*/service.py $(ARGS)

demo: .venv/ready
	@.venv/bin/python projects/$(if $(filter file,$(origin P)),,$(P)_*/)app.py $(ARGS)

bench: .venv/ready
	@.venv/bin/python benchmarks/serving.py $(ARGS)
	@.venv/bin/python benchmarks/moderation.py
	@.venv/bin/python benchmarks/retrieval.py

N ?= 100000

fuzz: .venv/ready
	@NLP_PORTFOLIO_CAMPAIGN=$(N) .venv/bin/python -m pytest -q -k "test_fuzz" $(ARGS)

K ?= 50

kills: .venv/ready
	@NLP_PORTFOLIO_CAMPAIGN=$(K) .venv/bin/python -m pytest -q -k "kill_9" $(ARGS)

reference: .venv/ready
	@.venv/bin/nlp-portfolio reference $(if $(FULL),--full)

# Set-up runs again only when what it installs has changed.
.venv/ready: bootstrap.py pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "The course needs Python 3.11 or newer: install one from https://www.python.org/downloads/"; exit 1; }
	@$(PYTHON) bootstrap.py

clean:
	rm -rf .venv .cache runs
