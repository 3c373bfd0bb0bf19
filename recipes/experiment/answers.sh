#!/usr/bin/env bash
# The target's own answers: sampled ones to train drafts on, since a small model's greedy answers repeat themselves; greedy ones, on prompts
# of held-out documents, to watch acceptance on.
#     bash recipes/experiment/answers.sh TARGET EXP        (EXP: what prepare.py made; needs `foredraft` on the path)
set -euo pipefail
target=$1 exp=$2
ask() { foredraft data regenerate "$exp/$1.jsonl" --target "$target" --out "$exp/answers-$1.jsonl" --batch 32 --on-error skip "${@:2}"; }
ask plain-train --plain --prompt-tokens 64 --max-tokens 128 --temperature 0.8
ask chat-train --max-tokens 128 --temperature 0.8
ask plain-val --plain --prompt-tokens 64 --max-tokens 64
ask chat-val --max-tokens 64
mkdir -p "$exp/answers"
for part in train val; do
  foredraft data prepare "$exp/answers-plain-$part.jsonl" "$exp/answers-chat-$part.jsonl" --out "$exp/answers/$part" --tokenizer "$target" --chat
done
