#!/usr/bin/env bash
# Builds the wheel, installs it into a new environment without constraints, so with the newest release of everything
# that pyproject.toml allows, and trains the quickstart with warnings as errors. TORCH pins what would be gigabytes.
set -euo pipefail
python=${1:-python3}
torch=${TORCH:-torch}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"$python" -m venv "$folder/venv"
bin="$folder/venv/bin"
"$bin/pip" install --quiet "$torch"
"$bin/pip" wheel --quiet --no-deps --wheel-dir "$folder/wheels" "$(dirname "$0")/.."
"$bin/pip" install --quiet --upgrade --upgrade-strategy eager "$torch" "$folder"/wheels/*.whl
unset PYTHONPATH
cd "$folder" # away from the checkout, whose files would stand in for those of the wheel
"$bin/pip" list 2> /dev/null | grep -E '^(torch|transformers|tokenizers|peft|datasets|huggingface_hub|numpy|pandas|typer) '
# -P: nothing from the current folder; a warning that is raised inside a cell makes that cell fail, and so the run
"$bin/python" -P -W error -m harness run quickstart --set recipe.steps=4 --set recipe.eval_every=2 --results out
"$bin/python" -P -W error -m harness report out
"$bin/python" -P -W error -m harness verify out
