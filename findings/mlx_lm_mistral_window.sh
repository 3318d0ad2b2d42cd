#!/usr/bin/env bash
# mlx-lm 0.32.2 (mlx 0.32.4 on a CPU) with a Mistral whose config.json has a sliding_window, as
# Mistral-7B-v0.1's has (4096): it computes full attention in silence. It reads `mistral` with its
# model of Llama, which has windows only for layers that `layer_types` names, and Mistral's
# configuration has no such key. transformers 5.23.0 attends to the window. A random model of two
# layers with a window of 4 says of 12 tokens, by the largest difference of the last logits:
#
# Seen on 2026-11-28:
#   mlx-lm to transformers with the window: far apart
#   mlx-lm to transformers with full attention: equal
#
# Ends with 0 while that is so, with 1 once it is not.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
    "mlx[cpu]==0.32.4" mlx-lm==0.32.2 transformers==5.23.0 torch==2.13.0
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import sys

import mlx.core as mx
import numpy as np
import torch
from mlx_lm.utils import load_model
from pathlib import Path
from transformers import MistralConfig, MistralForCausalLM

torch.manual_seed(0)
config = MistralConfig(
    vocab_size=64, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
    num_attention_heads=4, num_key_value_heads=2, head_dim=16, sliding_window=4,
    initializer_range=0.3,
)
model = MistralForCausalLM(config).eval()
model.save_pretrained("model")
ids = torch.randint(64, (1, 12))


def last_logits(window):
    config.sliding_window = window
    other = MistralForCausalLM(config).eval()
    other.load_state_dict(model.state_dict())
    with torch.inference_mode():
        return other(ids).logits[0, -1].numpy()


loaded, _ = load_model(Path("model"))
mx.set_default_device(mx.cpu)
found = np.array(loaded(mx.array(ids.numpy()))[0, -1].astype(mx.float32))
windowed, full = (float(np.abs(found - last_logits(w)).max()) for w in (4, None))
far, equal = windowed > 0.1, full < 1e-3
print(f"mlx-lm to transformers with the window: {'far apart' if far else 'near'}")
print(f"mlx-lm to transformers with full attention: {'equal' if equal else 'not equal'}")
sys.exit(not (far and equal))
PYTHON
