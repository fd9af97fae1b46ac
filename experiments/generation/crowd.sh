#!/usr/bin/env bash
# A thousand requests at once against `cutlayer api` over a split model: every one is answered or refused with status 429, and what
# the memory of both processes does. Prints what README.md has. Builds the program unless $CUTLAYER names it.
#   bash experiments/generation/crowd.sh [REQUESTS]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
built
# Small caches: they are full after the first crowd, and from then on nothing may grow.
start_host --cache-mib 48
start_api --cache-mib 24 --requests-max 128 --waiting-max 640
python3 "$here/experiments/generation/crowd.py" --url "$url" --api "$api" --host "$host" --requests "${1:-1000}"
