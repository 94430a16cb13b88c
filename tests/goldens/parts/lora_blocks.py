"""At which scale diffusers applies a LoRA to each module, by the weights that `set_adapters` takes.

The UNet has SD1.5's blocks and little in them. What counts is which modules there are.
"""

import copy
import json
from pathlib import Path

from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from peft import LoraConfig, inject_adapter_in_model
from transformers import CLIPTextConfig, CLIPTextModel

from . import made_with

# One module of each kind: an attention, what is beside it, a ResNet, what resizes.
TARGETS = r".*(attn2\.to_q|proj_in|conv1|samplers\.0\.conv)|.*self_attn\.q_proj"
CASES = {
    "all at once": {"text_encoder": 0.5, "unet": 0.25},
    "one side": {"unet": {"down": 0.5}},
    "the middle": {"unet": {"mid": [0.5]}},
    "every form": {
        "text_encoder": 0.75,
        "unet": {"down": 0.9, "mid": 2, "up": {"block_1": 0.5, "block_2": [0.4, 0.8, 0], "block_3": [-1]}},
    },
    "a list for a side": {"unet": {"down": [0.25, 0.5], "up": [1.5, 0, 3]}},
    "no attention in some blocks": {"unet": {"down": 0.125, "up": 0.25}},
    "nothing": {},
}
REFUSED = {
    "too few for the layers": {"unet": {"up": {"block_1": [1, 1]}}},
    "too many for the layers": {"unet": {"down": [1, 1, 1]}},
}


def pipeline() -> StableDiffusionPipeline:
    unet = UNet2DConditionModel(
        block_out_channels=(8, 8, 8, 8), norm_num_groups=4, cross_attention_dim=8, attention_head_dim=2, sample_size=8
    )
    sizes = dict(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, vocab_size=8)
    text_encoder = CLIPTextModel(CLIPTextConfig(**sizes))
    for model in (unet, text_encoder):
        # As `add_adapter` does; that of transformers asks for a later version of peft.
        config = LoraConfig(r=2, lora_alpha=2, target_modules=TARGETS)
        inject_adapter_in_model(config, model, "style")
        model.peft_config, model._hf_peft_config_loaded = {"style": config}, True
    parts = dict(vae=None, tokenizer=None, scheduler=None, safety_checker=None, feature_extractor=None)
    return StableDiffusionPipeline(unet=unet, text_encoder=text_encoder, **parts)


def scales(pipe: StableDiffusionPipeline, weights: dict) -> dict[str, dict[str, float]]:
    pipe.set_adapters("style", adapter_weights=copy.deepcopy(weights))
    return {
        part: {name: layer.scaling["style"] for name, layer in getattr(pipe, part).named_modules() if hasattr(layer, "scaling")}
        for part in ("unet", "text_encoder")
    }


def make(folder: Path) -> None:
    pipe = pipeline()
    cases = [{"name": name, "weights": weights, "scales": scales(pipe, weights)} for name, weights in CASES.items()]
    refused = []
    for name, weights in REFUSED.items():
        try:
            scales(pipe, weights)
        except ValueError:
            refused.append({"name": name, "weights": weights})
            continue
        raise AssertionError(f"diffusers takes {name}")
    text = json.dumps({"made_with": made_with("diffusers", "peft"), "cases": cases, "refused": refused}, indent=1)
    (folder / "lora-blocks.json").write_text(text + "\n")
