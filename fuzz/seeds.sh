#!/bin/sh
# Fills fuzz/corpus with what each target starts from: bundled files, and documents that ramrs makes of them. RAMRS: how to run it.
set -eu
cd "$(dirname "$0")"
data=../tests/data
for target in config gguf index safetensors saved sensitivity; do mkdir -p corpus/$target; done
cp $data/gguf/*.gguf $data/gguf_files/*.gguf corpus/gguf
cp $data/*.safetensors corpus/safetensors
for model in $data/stories260k $data/tiny-llama-* ../examples/*; do
    cp "$model/config.json" "corpus/config/$(basename "$model").json"
done
grep -v 'biases\|scales' $data/tiny-llama-mlx-mixed/model.safetensors.index.json > corpus/index/tiny-llama.json

ramrs=${RAMRS:-ramrs}
model=$data/tiny-llama-bf16
scratch=$(mktemp -d)
trap 'rm -r "$scratch"' EXIT
$ramrs probe $model --tokens 16 -q -o "$scratch/probe"
$ramrs analyze $model --sensitivity "$scratch/probe" -q -o "$scratch/analysis.json"
$ramrs plan "$scratch/analysis.json" --budget 5.0 -q -o "$scratch/plan.json"
$ramrs quantize $model --sensitivity weights --budget 5.0 -q -o "$scratch/output"
cp "$scratch/probe" corpus/sensitivity/probe
cp "$scratch/analysis.json" corpus/saved/analysis
cp "$scratch/plan.json" corpus/saved/plan
cp "$scratch"/output/*manifest.json corpus/saved/manifest
