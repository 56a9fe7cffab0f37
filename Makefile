# make demo        train a small network on sample photographs and repair a photograph with it
# make evaluate    evaluate the shipped weights and the classical methods, with tables, plots and pictures
# make figures     redraw the pictures of the docs and rerun the notebook, with the shipped weights
# make app         open the page on which holes are painted and filled
# make site        write that page for a static host: the network then runs in the visitor's browser
# make bench       measure speed and memory against rivals: nine minutes on an idle machine
# make test        run the tests       make test-slow   tests that take minutes: kills, several processes, long runs
# make test-gpu    GPU tests           make bench-gpu   GPU benchmarks
# make lint        ruff and mypy       make clean       remove the environment
# The environment is created once, in .venv. VENV=DIR selects another, PYTHON=... another Python (3.10 or later).

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
DEMO := configs/demo.yml
RUN := runs/demo
MASKS := datasets/masks_evaluation
EVALUATION := runs/evaluation

.PHONY: demo app site evaluate bench bench-gpu figures test test-slow test-gpu lint clean

$(VENV)/installed: requirements.txt
	@echo "Installing requirements.txt into $(VENV): a few minutes, 6 GB with torch's CUDA build. Without a GPU the CPU"
	@echo "build is enough, 200 MB: README.md, The commands, says how."
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --requirement requirements.txt
	touch $@

$(VENV)/installed-dev: $(VENV)/installed requirements-dev.txt
	$(BIN)/pip install --quiet --requirement requirements-dev.txt
	touch $@

# A demo starts from scratch: it replaces datasets/masks_demo and runs/demo.
demo: $(VENV)/installed
	@echo "A small network learns on three photographs, then repairs a fourth: about three minutes on two CPU cores."
	@echo "1/3 masks"
	$(BIN)/python masks.py --config $(DEMO) --force
	@echo "2/3 training"
	rm -rf $(RUN)
	$(BIN)/python main.py --config $(DEMO)
	@echo "3/3 prediction"
	$(BIN)/python predict.py --image docs/chelsea.jpg --mask docs/chelsea_mask.png \
		--model $(RUN)/weights.safetensors --output $(RUN)/chelsea_repaired.png
	$(BIN)/python -m evaluation.before_after docs/chelsea.jpg docs/chelsea_mask.png \
		$(RUN)/chelsea_repaired.png $(RUN)/before_after.png
	@echo "Before and after, side by side: $(RUN)/before_after.png; the repaired photograph: $(RUN)/chelsea_repaired.png"
	@echo "Sheets of the held-out picture during training: $(RUN)/samples"
	@echo "Curves: $(BIN)/tensorboard --logdir runs"
	@echo "To call the scripts by hand: . $(BIN)/activate"

# An evaluation starts from scratch too.
evaluate: $(VENV)/installed
	$(BIN)/python masks.py --benchmark $(MASKS) --per-bin 4 --size 256 masks.style=contours --force
	rm -rf $(EVALUATION)
	$(BIN)/python evaluate.py --images sample --masks $(MASKS) --model shipped --baseline all --out $(EVALUATION)

$(VENV)/installed-app: $(VENV)/installed requirements-app.txt
	$(BIN)/pip install --quiet --requirement requirements-app.txt
	touch $@

app: $(VENV)/installed-app
	$(BIN)/python app.py

$(VENV)/installed-export: $(VENV)/installed requirements-export.txt
	$(BIN)/pip install --quiet --requirement requirements-export.txt
	touch $@

site: $(VENV)/installed-export
	$(BIN)/python build_site.py

bench: $(VENV)/installed
	$(BIN)/python -m benchmarks

test: $(VENV)/installed-dev
	$(BIN)/python -m pytest -q -n 2 --dist loadfile -m "not slow"

test-slow: $(VENV)/installed-dev
	$(BIN)/python -m pytest -q -n 2 --dist loadfile -m slow

# --overwrite stores the outputs in the notebook.
figures: $(VENV)/installed-dev
	$(BIN)/python -m evaluation.showcase docs
	$(BIN)/python -m tests.screenshot docs/app.png
	$(BIN)/python -m pytest -q -c /dev/null -p no:cacheprovider --nbmake --overwrite --nbmake-timeout=1800 notebooks/inpainting.ipynb

test-gpu: $(VENV)/installed-dev
	$(BIN)/python -m pytest -q -m cuda

bench-gpu: $(VENV)/installed
	$(BIN)/python -m benchmarks.gpu

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV)
