.PHONY: install test slow torture lint ci

install:
	python3 -m pip install -e ".[test]"

test:
	pytest

slow:
	pytest -m "slow or network"

torture:
	KFT_KILLS=50 pytest -m slow -n 0 tests/test_resume.py -k killed
	KFT_EXHAUSTIVE=1 pytest -m slow -n 0 tests/test_strategies.py -k slowly
	KFT_EXHAUSTIVE=1 pytest -m slow -n 1 tests/test_contract.py tests/test_models.py \
	    tests/test_backbones.py tests/test_hub.py
	KFT_EXHAUSTIVE=1 pytest -m "slow or network" -n 1 tests/test_containers.py \
	    tests/test_devices.py tests/test_exports.py tests/test_folds.py tests/test_format_exports.py \
	    tests/test_formats.py tests/test_mismatch.py tests/test_optimizers.py \
	    tests/test_rate_finder.py tests/test_resume.py tests/test_shared_training.py \
	    tests/test_suspects.py

lint:
	ruff check .
	ruff format --check .
	mypy

ci:
	bash .ci/run
