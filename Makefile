.PHONY: install test slow lint ci

install:
	python3 -m pip install -e ".[test]"

test:
	pytest

slow:
	pytest -m "slow or network"

lint:
	ruff check .
	ruff format --check .
	mypy

ci:
	bash .ci/run
