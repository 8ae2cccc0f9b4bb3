# Everything is set up by the targets themselves: a virtual environment in .venv, made once and brought up to date when
# pyproject.toml or constraints.txt changes. Recipes print lines of ours; what pip says goes to a file.
.SILENT:
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
LOG := $(VENV)/install.log
# Stamps: what the library needs is installed; and what tests, lint and training need on top.
CORE := $(VENV)/.core
ALL := $(VENV)/.all
# The oldest transformers that `dependencies` in pyproject.toml allows, and the newest that every test passes with:
# NEWEST_TESTED in eagle/model/support/releases.py. `make lock` holds the pins to the latter and to this torch.
OLDEST := 5.0.0
NEWEST := 5.24.0
TORCH := 2.13.0
UV := 0.13.9
# What this package, deepspeed and wavedrom ask for when they are built.
BUILDS := setuptools wheel setuptools-scm
# What `versions` tries beside the newest.
VERSIONS := $(OLDEST) 5.12.1 5.20.2 5.23.0 $(NEWEST)
WITH := build/transformers-$(VERSION)
# The trainers' own packages, each in an environment of its own, and what they need of theirs to write a head on a CPU.
# One without its dependencies asks for a GPU's, or for a torch of its own.
INTEROP := build/interop
TRAINERS := speculators modelopt specforge angelslim
NEEDS-speculators := speculators==0.9.0
NEEDS-modelopt := nvidia-modelopt==0.47.0 transformers==5.14.1 accelerate peft datasets requests
NEEDS-specforge := transformers==5.8.1 accelerate numpy psutil pydantic pyyaml tqdm
NEEDS-angelslim := transformers==5.8.1 datasets numpy pillow tqdm
ALONE-specforge := specforge==0.2.0 yunchang==0.6.4
ALONE-angelslim := angelslim==0.5.0
# Harnesses of others, in an environment that sees what is installed here and adds what they need; the last two are what
# FastChat's part that Spec-Bench imports asks for. Spec-Bench is no package: a commit of it is fetched.
HARNESSES := build/harnesses
NEEDS-harnesses := lm-eval==0.4.13 "openai<1" anthropic
SPEC-BENCH := https://github.com/hemingkx/Spec-Bench
SPEC-BENCH-COMMIT := 7f214e2319bfedde9ff139979a19bd12d96563cf
# Test files with marks of it; others may import what the oldest transformers does not have.
CONTRACT = $(shell grep -rlE "mark\.contract|^from contract import" --include="test_*.py" tests)
# Every pip that runs below, those that tests start too, takes the pinned versions. As a URL, so that folders may have
# spaces in their names. Older pips build packages under the first, newer ones under the second.
empty :=
comma := ,
export PIP_CONSTRAINT := file://$(subst $(empty) ,%20,$(CURDIR))/constraints.txt
export PIP_BUILD_CONSTRAINT := $(PIP_CONSTRAINT)
# $(call say,WHAT,HOW MUCH): before a stamp is made, for the first time or anew.
say = echo "eagle: $(if $(wildcard $@),bringing $(1) up to date,installing $(1)$(comma) $(2)); pip's output is in $(LOG)"
# $(call pip,ARGUMENTS): installs, and says something only where that fails.
pip = $(BIN)/python -m pip install --no-input --disable-pip-version-check --progress-bar off $(1) >$(LOG) 2>&1 || \
	{ tail -n 15 $(LOG) | cut -c 1-200 >&2; echo "eagle: pip failed; all it said is in $(LOG)" >&2; exit 1; }

# Makes a checkout of one commit, or leaves none.
fetch = rm -rf $(HARNESSES)/spec_bench && git init --quiet $(HARNESSES)/spec_bench && \
	git -C $(HARNESSES)/spec_bench fetch --quiet --depth 1 $(SPEC-BENCH) $(SPEC-BENCH-COMMIT) && \
	git -C $(HARNESSES)/spec_bench checkout --quiet FETCH_HEAD || { rm -rf $(HARNESSES)/spec_bench; false; }

.PHONY: demo test test-oldest test-newest test-with versions nightly interop harnesses lint bench docs site links notebooks \
	release-check lock clean

demo: $(CORE) ## a real trained pair: tokens per step, speeds, equal ids
	$(BIN)/python examples/quickstart.py

test: $(ALL) ## the test suite
	$(BIN)/python -m pytest -n 2 -m "not nightly"

test-oldest: ## what must hold with the oldest supported transformers
	$(MAKE) --no-print-directory test-with VERSION=$(OLDEST)

test-newest: $(ALL) ## the same with the newest that the registry has now, and the newest of what that needs
	newest=$$($(BIN)/python -m pip index versions transformers 2>$(LOG) | sed -n '1s/.*(\(.*\))/\1/p'); \
	test -n "$$newest" || { echo "eagle: no answer to which transformers is the newest; see $(LOG)" >&2; exit 1; }; \
	echo "eagle: the newest transformers is $$newest"; \
	rm -rf build/transformers-$$newest; \
	$(MAKE) --no-print-directory test-with VERSION=$$newest

test-with: $(WITH)/.installed ## the same with any: make test-with VERSION=5.12.1
	PYTHONPATH=$(WITH) $(BIN)/python -c "import transformers as t; assert t.__version__ == '$(VERSION)', t.__file__"
	PYTHONPATH=$(WITH) $(BIN)/python -m pytest -n 2 -m "contract and not nightly" \
		--junitxml build/versions/$(VERSION).xml $(CONTRACT)

versions: $(ALL) ## the same with several, and the table in docs/versions.md from what pytest reports
	rm -rf build/versions
	$(MAKE) --no-print-directory test-newest || true
	for version in $(VERSIONS); do \
		test -e build/versions/$$version.xml || $(MAKE) --no-print-directory test-with VERSION=$$version || true; \
	done
	$(BIN)/python tests/support/versions.py --write build/versions $(VERSIONS)

nightly: $(ALL) ## full products of the cases that `test` runs pairwise
	$(BIN)/python -m pytest -n 2

interop: $(ALL) $(TRAINERS:%=$(INTEROP)/%/.installed) ## heads written and read by the trainers' own packages
	$(BIN)/python -m pytest -n 2 tests/interop

harnesses: $(HARNESSES)/env/.installed ## the loops of lm-evaluation-harness and Spec-Bench over the tiny pair
	test -e $(HARNESSES)/spec_bench/evaluation/eval.py || { $(fetch); } >$(HARNESSES)/spec_bench.log 2>&1 || \
		echo "eagle: $(SPEC-BENCH) cannot be fetched, its tests are skipped; git's words are in $(HARNESSES)/spec_bench.log"
	$(BIN)/python -m pytest -n 2 -rs tests/harnesses

lint: $(ALL) ## format, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(CORE) ## speeds of the tiny pair, alternating rounds
	$(BIN)/python -m eagle.evaluation.bench

docs: $(ALL) ## rewrite the tables in docs/ from what the tests find
	WRITE_DOCS=1 $(BIN)/python -m pytest tests/model/call/test_keywords.py
	$(BIN)/python tests/support/verdicts.py --write

notebooks: $(ALL) ## run the notebooks, and renew the outputs that are shown with them
	$(BIN)/python tests/support/notebooks.py --write

release-check: $(ALL) ## build sdist and wheel, look inside, try the wheel in an environment that holds nothing else
	$(BIN)/python tests/support/release.py

site: $(ALL) ## the pages as a site in build/site, with the Python reference; a warning is an error
	$(BIN)/python -m sphinx --quiet --fail-on-warning --keep-going -c docs . build/site 2>$(LOG) || \
		{ grep -E "WARNING: |ERROR: |rror:" $(LOG) >&2; exit 1; }
	echo "eagle: the site is in build/site/index.html"

links: $(ALL) ## whether the pages' links to elsewhere still lead somewhere; asks the network
	$(BIN)/python -m sphinx --quiet -b linkcheck -c docs . build/links

lock: build/uv-$(UV)/bin/uv ## rewrite constraints.txt: today's releases, for every Python and platform
	printf '%s\n' "torch==$(TORCH)" "transformers<=$(NEWEST)" $(BUILDS) | \
	build/uv-$(UV)/bin/uv pip compile --quiet --python $(BIN)/python --no-python-downloads \
		--universal --python-version 3.10 --extra dev --upgrade --no-annotate --custom-compile-command "make lock" \
		--output-file constraints.txt pyproject.toml - >$(LOG)
	echo "eagle: constraints.txt has $$(grep -c == constraints.txt) pins"

clean:
	rm -rf $(VENV) build

$(BIN)/pip:
	command -v $(PYTHON) >/dev/null || \
		{ echo "eagle: no $(PYTHON) here; name a Python of 3.10 or newer: make PYTHON=python3.12 demo" >&2; exit 1; }
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 10))" || \
		{ echo "eagle: $(PYTHON) is older than 3.10; name a newer Python: make PYTHON=python3.12 demo" >&2; exit 1; }
	$(PYTHON) -c "import ensurepip" 2>/dev/null || \
		{ echo "eagle: $(PYTHON) makes no virtual environments; on Debian: apt install python3-venv" >&2; exit 1; }
	echo "eagle: making $(VENV)"
	$(PYTHON) -m venv $(VENV)

$(CORE): pyproject.toml constraints.txt | $(BIN)/pip
	$(call say,torch and the core,about 250 MB to download (2.8 GB with CUDA): a few minutes)
	$(call pip,--editable .)
	touch $@

$(ALL): $(CORE)
	$(call say,what tests$(comma) lint and training need,about 130 MB more)
	$(call pip,--editable ".[dev]")
	touch $@

# Beside the environment, with dependencies of its own: of the pins only those hold that torch and builds have.
build/transformers-%/.installed: | $(ALL)
	rm -rf $(@D)
	mkdir -p $(@D)
	grep -E "^(torch|setuptools|wheel)==" constraints.txt >$(@D)/constraints.txt
	echo "eagle: installing transformers $* in $(@D)"
	PIP_CONSTRAINT=$(@D)/constraints.txt $(call pip,--target $(@D) "transformers==$*")
	touch $@

# torchvision and torchaudio come for another torch than a CPU's, and would stop transformers from being imported.
$(INTEROP)/%/.installed: | $(ALL)
	rm -rf $(@D)
	mkdir -p $(INTEROP)
	echo "torch==$(TORCH)" >$(INTEROP)/constraints.txt
	echo "eagle: installing $* in $(@D), about 1.5 GB"
	$(PYTHON) -m venv $(@D)
	PIP_CONSTRAINT=$(INTEROP)/constraints.txt $(@D)/bin/python -m pip install --no-input --progress-bar off \
		torch==$(TORCH) safetensors $(NEEDS-$*) >$(@D).log 2>&1 || { tail -n 15 $(@D).log | cut -c 1-200 >&2; exit 1; }
	test -z "$(ALONE-$*)" || PIP_CONSTRAINT= $(@D)/bin/python -m pip install --no-input --no-deps $(ALONE-$*) >>$(@D).log 2>&1
	$(@D)/bin/python -m pip uninstall --yes torchvision torchaudio >>$(@D).log 2>&1
	touch $@

# A line in its site-packages shows the environment what is installed here, torch and transformers among it: kept as
# they are, so that harnesses add a fraction.
$(HARNESSES)/env/.installed: | $(ALL)
	rm -rf $(@D)
	mkdir -p $(HARNESSES)
	echo "torch==$(TORCH)" >$(HARNESSES)/constraints.txt
	echo "eagle: installing the harnesses in $(@D), about 600 MB; pip's output is in $(HARNESSES)/env.log"
	$(BIN)/python -m venv $(@D)
	$(BIN)/python -c "import sysconfig; print(sysconfig.get_path('purelib'))" >$(HARNESSES)/project.pth
	cp $(HARNESSES)/project.pth "$$($(@D)/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")"
	PIP_CONSTRAINT=$(HARNESSES)/constraints.txt $(@D)/bin/python -m pip install --no-input --progress-bar off \
		$(NEEDS-harnesses) >$(HARNESSES)/env.log 2>&1 || { tail -n 15 $(HARNESSES)/env.log | cut -c 1-200 >&2; exit 1; }
	touch $@

build/transformers-/.installed:
	echo "eagle: with which transformers? make test-with VERSION=5.12.1" >&2
	exit 1

build/uv-$(UV)/bin/uv: | $(BIN)/pip
	PIP_CONSTRAINT= $(call pip,--target build/uv-$(UV) "uv==$(UV)")
