#!/usr/bin/env bash
# Runs suite, benchmarks and soak on the GPU of this machine, and writes one page of results.
#
#   tests/gpu.sh [page] [folder of wheels]
#
# The page is gpu.md by default. Where there is no network, a folder holds the wheels that are missing.
set -uo pipefail
cd "$(dirname "$0")/.."
page=${1:-gpu.md}
wheels=${2:-}
python=${PYTHON:-python3}

if ! "$python" -c "import snntorch, pytest, pytest_benchmark" 2>/dev/null; then
    offline=${wheels:+--no-index --find-links "$wheels"}
    # shellcheck disable=SC2086  # two options, or none
    "$python" -m pip install --quiet $offline snntorch numpy pytest pytest-benchmark || exit 1
fi
"$python" -c "import sys, torch; sys.exit(not torch.cuda.is_available())" || {
    echo "A GPU should be there for these tests. Found none that torch sees." >&2
    exit 1
}

run() { # title, seconds, command...
    local title=$1 limit=$2
    shift 2
    printf '\n## %s\n\n```\n' "$title" >>"$page"
    timeout "$limit" "$@" >>"$page" 2>&1
    local code=$?
    printf '```\n\nexit status %s\n' "$code" >>"$page"
    return $code
}

"$python" - >"$page" <<'PYTHON'
import torch
print(f"# {torch.cuda.get_device_name()}, torch {torch.__version__}, CUDA {torch.version.cuda}")
PYTHON
status=0
SNN_HOMEOSTASIS_DEVICE=cuda run "Suite" 210 "$python" -m pytest -q --maxfail=20 tests \
    --ignore=tests/benchmarks --ignore=tests/test_notebooks.py --ignore=tests/test_tutorials.py || status=1
run "Overheads" 150 "$python" -m tests.benchmarks --device cuda shown trained || status=1
run "CUDA graphs" 60 "$python" -m tests.benchmarks --device cuda compiled || status=1
run "Soak of 20,000 iterations" 110 "$python" tests/soak.py 20000 cuda || status=1
exit $status
