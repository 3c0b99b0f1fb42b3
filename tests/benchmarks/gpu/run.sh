#!/usr/bin/env bash
# Runs the GPU checks from this checkout, which need not be installed. Needs no network.
#
#   [PYTHON=python3] [SITE=FOLDER] tests/benchmarks/gpu/run.sh [--device cpu] [--small] [--limit SECONDS] [--models FOLDER]
#
# PYTHON needs torch and transformers. SITE is a folder with packages that it lacks, made on a machine with network by
#   pip install --target FOLDER --no-deps omegaconf==2.3.1 antlr4-python3-runtime==4.9.3
set -euo pipefail
cd "$(dirname "$0")/../../.."
python=${PYTHON:-python3}
installation=$(mktemp -d)
trap 'rm -rf "$installation"' EXIT
# What an installation would add to the checkout: the package of plugins under its name, and the entry points to them.
ln -s "$PWD/plugins" "$installation/compressor_plugins"
"$python" - "$installation" << 'END'
import sys, tomllib
from pathlib import Path

project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
folder = Path(sys.argv[1], f"{project['name']}-{project['version']}.dist-info")
folder.mkdir()
(folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
lines = [f"{name} = {module}" for name, module in project["entry-points"]["compressor"].items()]
(folder / "entry_points.txt").write_text("\n".join(["[compressor]", *lines, ""]))
END
export PYTHONPATH=$installation${SITE:+:$SITE}${PYTHONPATH:+:$PYTHONPATH}
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false PYTHONUNBUFFERED=1
"$python" -m tests.benchmarks gpu "$@"
