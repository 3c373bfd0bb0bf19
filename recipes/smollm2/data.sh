#!/usr/bin/env bash
# From a corpus to all that the grid reads: prompts, the target's own answers (half greedy, half sampled), token folders.
# Interrupted, the same command goes on. Answers of `published` prompts alone train drafts that are given away.
#     bash recipes/smollm2/data.sh TARGET CORPUS OUT [options of `data regenerate`, such as --device cuda --batch 256]
# TARGET: the folder that `foredraft convert SmolLM2-135M-Instruct.Q4_1.gguf TARGET` makes. Needs `foredraft` on the path.
set -euo pipefail
target=$1 corpus=$2 out=$3 recipe=$(dirname "$0")
mkdir -p "$out"
[ -s "$out/prompts-val.jsonl" ] || python "$recipe/prompts.py" "$corpus" "$out"
grep '"published": true' "$out/prompts-train.jsonl" > "$out/prompts-free.jsonl"
answer() { foredraft data regenerate "$out/$1.jsonl" --target "$target" --out "$out/answers-$2.jsonl" --max-tokens 192 --batch 48 "${@:3}"; }
answer prompts-free free-greedy "${@:4}"
answer prompts-free free-sampled --temperature 1 "${@:4}"
answer prompts-val val --temperature 0 "${@:4}"
prepare() { [ -d "$out/$1" ] || foredraft data prepare "${@:2}" --tokenizer "$target" --out "$out/$1"; }
prepare answers "$out/answers-free-greedy.jsonl" "$out/answers-free-sampled.jsonl" --chat
prepare answers-val "$out/answers-val.jsonl" --chat
prepare text "$corpus"/train-{books,stories,news,math,qa,summarize,code_stdlib}.jsonl.zst
