"""LoRA files as peft, diffusers and LyCORIS write them, and the weights that each library itself merges from them.

The model is a handful of layers under names of SD1.5's: a linear one, one with bias, a 1x1 and a 3x3 convolution, two norms and a
layer of the text encoder.
"""

import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers.loaders import StableDiffusionLoraLoaderMixin
from diffusers.utils import convert_state_dict_to_kohya
from lycoris.modules.full import FullModule
from lycoris.modules.ia3 import IA3Module
from lycoris.modules.locon import LoConModule
from lycoris.modules.loha import LohaModule
from lycoris.modules.lokr import LokrModule
from lycoris.modules.norms import NormModule
from peft import IA3Config, LoHaConfig, LoKrConfig, LoraConfig, get_peft_model
from peft.utils import get_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor, nn

from . import made_with, metadata, sort_metadata

BLOCK = "down_blocks.0.attentions.0"
UNET = {
    f"{BLOCK}.transformer_blocks.0.attn1.to_q": lambda: nn.Linear(16, 24, bias=False),
    f"{BLOCK}.transformer_blocks.0.attn1.to_out.0": lambda: nn.Linear(24, 16),
    f"{BLOCK}.proj_in": lambda: nn.Conv2d(24, 16, 1),
    "down_blocks.0.resnets.0.conv1": lambda: nn.Conv2d(8, 24, 3, padding=1),
    f"{BLOCK}.norm": lambda: nn.GroupNorm(4, 24),
}
TEXT = {
    "text_model.encoder.layers.0.self_attn.q_proj": lambda: nn.Linear(16, 16),
    "text_model.encoder.layers.0.layer_norm1": lambda: nn.LayerNorm(16),
}
# The same layers under the names of the original code.
LDM = {
    f"{BLOCK}.transformer_blocks.0.attn1.to_q": "input_blocks.1.1.transformer_blocks.0.attn1.to_q",
    f"{BLOCK}.transformer_blocks.0.attn1.to_out.0": "input_blocks.1.1.transformer_blocks.0.attn1.to_out.0",
    f"{BLOCK}.proj_in": "input_blocks.1.1.proj_in",
    "down_blocks.0.resnets.0.conv1": "input_blocks.1.0.in_layers.2",
}
TARGETS = ["to_q", "to_out.0", "proj_in", "conv1", "q_proj"]
PROJECTIONS = ["to_q", "to_out.0"]
Weights = dict[str, Tensor]


def build(layers: dict[str, Callable[[], nn.Module]]) -> nn.Module:
    """A model with these layers, the same in every call."""
    root = nn.Module()
    torch.manual_seed(7)
    for path, layer in layers.items():
        *parents, name = path.split(".")
        module = root
        for parent in parents:
            if not hasattr(module, parent):
                module.add_module(parent, nn.Module())
            module = getattr(module, parent)
        module.add_module(name, layer())
    for parameter in root.parameters():
        nn.init.normal_(parameter, std=0.3)
    return root.requires_grad_(False)


def scramble(parameters) -> None:
    """Random values where a fresh adapter has zeros; about 1 stays about 1."""
    for parameter in parameters:
        parameter.data.mul_(0.1).add_(torch.randn_like(parameter) * 0.3 if parameter.abs().mean() < 0.5 else 0.9 + torch.rand_like(parameter))


class Goldens:
    """Collects the cases and writes them."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.merged: Weights = {}
        self.scales: dict[str, float] = {}
        self.libraries: dict[str, str] = {}

    def add(self, name: str, library: str, file: Weights | None, merged: dict[str, Weights], scale: float = 1.0) -> None:
        """`file` is written here, unless the library has done so; `merged` holds the changed tensors by component."""
        if file is not None:
            file = {key: torch.as_tensor(value).detach().clone().contiguous() for key, value in file.items()}
            save_file(file, self.folder / f"{name}.safetensors", {"format": "pt"})
        for component, tensors in merged.items():
            for key, tensor in tensors.items():
                self.merged[f"{name}/{component}/{key}"] = tensor.detach().clone().contiguous()
        self.scales[name], self.libraries[name] = scale, library


def peft_model(layers: dict, config) -> tuple[Weights, Weights]:
    """The adapter's state and the tensors it changes once peft has merged it."""
    base = build(layers).state_dict()
    model = get_peft_model(build(layers), config)
    torch.manual_seed(11)
    adapter = {name: p for name, p in model.named_parameters() if any(mark in name for mark in ("lora_", "hada_", "lokr_", "ia3_"))}
    scramble(p for _, p in sorted(adapter.items()))
    state = {key: value.clone() for key, value in get_peft_model_state_dict(model).items()}
    merged = model.merge_and_unload().state_dict()
    return state, {key: value for key, value in merged.items() if not torch.equal(value, base[key])}


def peft_pair(config: Callable[[], object]) -> tuple[dict[str, Weights], dict[str, Weights]]:
    unet, text = peft_model(UNET, config()), peft_model(TEXT, config())
    return {"unet": unet[0], "text_encoder": text[0]}, {"unet": unet[1], "text_encoder": text[1]}


def plain(state: Weights) -> Weights:
    return {key.removeprefix("base_model.model."): value for key, value in state.items()}


def peft_cases(goldens: Goldens) -> None:
    lora = dict(r=2, lora_alpha=2, target_modules=TARGETS, init_lora_weights=False)
    hada = dict(r=2, alpha=2, target_modules=TARGETS)
    cases = {
        "peft-lora": lambda: LoraConfig(**lora),
        "peft-lora-bias": lambda: LoraConfig(**(lora | {"target_modules": ["to_out.0", "q_proj"]}), lora_bias=True),
        "peft-dora": lambda: LoraConfig(**lora, use_dora=True),
        "peft-loha": lambda: LoHaConfig(**hada),
        "peft-loha-tucker": lambda: LoHaConfig(**hada, use_effective_conv2d=True),
        "peft-lokr": lambda: LoKrConfig(**hada),
        "peft-lokr-both": lambda: LoKrConfig(**(hada | {"r": 1, "alpha": 1}), decompose_both=True),
        "peft-lokr-tucker": lambda: LoKrConfig(**hada, use_effective_conv2d=True),
        "peft-lokr-full": lambda: LoKrConfig(**(hada | {"r": 16, "alpha": 16})),
        "peft-ia3": lambda: IA3Config(target_modules=TARGETS, feedforward_modules=["to_q", "conv1"]),
    }
    for name, config in cases.items():
        states, merged = peft_pair(config)
        goldens.add(name, "peft", states["unet"] | states["text_encoder"], merged)


def diffusers_cases(goldens: Goldens) -> None:
    """What diffusers writes: with settings in the metadata, and under the names it used before peft."""
    settings = dict(r=3, lora_alpha=5, target_modules=TARGETS, init_lora_weights=False)
    patterns = dict(rank_pattern={"conv1": 2}, alpha_pattern={"conv1": 7, "attn1.to_[qk]": 4})
    for name, more in {"diffusers-lora": patterns, "diffusers-rslora": {"use_rslora": True}}.items():
        def config() -> LoraConfig:
            return LoraConfig(**settings, **more)
        states, merged = peft_pair(config)
        about = {key: sorted(value) if isinstance(value, set) else value for key, value in config().to_dict().items()}
        about = {key: value for key, value in about.items() if isinstance(value, (str, int, float, bool, dict, list, type(None)))}
        layers = {f"{part}_lora_layers": plain(state) for part, state in states.items()}
        layers |= {"unet_lora_adapter_metadata": dict(about), "text_encoder_lora_adapter_metadata": dict(about)}
        StableDiffusionLoraLoaderMixin.save_lora_weights(goldens.folder, weight_name=f"{name}.safetensors", **layers)
        sort_metadata(goldens.folder / f"{name}.safetensors")
        goldens.add(name, "diffusers", None, merged)

    config = dict(r=2, lora_alpha=2, init_lora_weights=False)
    states, merged = peft_pair(lambda: LoraConfig(**config, target_modules=TARGETS))
    unet, text = plain(states["unet"]), plain(states["text_encoder"])
    down_up = lambda key, mark: key.replace("lora_A", f"{mark}.down").replace("lora_B", f"{mark}.up")
    file = {f"unet.{down_up(key, 'lora')}": value for key, value in unet.items()}
    file |= {f"text_encoder.{down_up(key, 'lora_linear_layer')}": value for key, value in text.items()}
    goldens.add("diffusers-down-up", "diffusers (names)", file, merged)
    file = convert_state_dict_to_kohya({f"unet.{key}": value for key, value in unet.items()})
    file |= convert_state_dict_to_kohya({f"text_encoder.{key}": value for key, value in text.items()})
    goldens.add("kohya-by-diffusers", "diffusers", file, merged)

    unet, merged_unet = peft_model(UNET, LoraConfig(**config, target_modules=PROJECTIONS))
    legacy = lambda key: key.replace(".attn1.", ".attn1.processor.").replace(".to_out.0.", ".to_out.")
    legacy_key = lambda key: legacy(key).replace(".lora_A", "_lora.down").replace(".lora_B", "_lora.up")
    file = {f"unet.{legacy_key(key)}": value for key, value in plain(unet).items()}
    goldens.add("diffusers-processors", "diffusers (names)", file, {"unet": merged_unet})


def lycoris_case(goldens: Goldens, name: str, make, layers: dict | None = None, scale: float = 1.0, forward: bool = False, ldm: bool = False) -> None:
    """`make(name, layer)` is LyCORIS' module for a layer. Its own merged weight is the golden value.

    For LoHa and LoKr, `get_merged_weight` of 4.1.3 scales with alpha / rank twice, the forward pass that trains them once. With
    `forward`, it is the weight of the forward pass that counts.
    """
    file: Weights = {}
    merged: dict[str, Weights] = {"unet": {}, "text_encoder": {}}
    for component, prefix, part in [("unet", "lora_unet_", UNET), ("text_encoder", "lora_te_", TEXT)]:
        model = build(part)
        torch.manual_seed(13)
        for path in part:
            layer = model.get_submodule(path)
            if isinstance(layer, (nn.GroupNorm, nn.LayerNorm)) != (layers == "norms") or (ldm and path not in LDM):
                continue
            shape = layer.weight.shape
            module = make(path, layer)
            scramble(p for key, p in sorted(module.named_parameters()) if not key.endswith("scalar"))
            if isinstance(getattr(module, "scalar", None), nn.Parameter):
                module.scalar.data.fill_(0.7)
            if isinstance(module, FullModule):
                module.apply_to()
            kohya = prefix + (LDM[path] if ldm else path).replace(".", "_")
            file |= {f"{kohya}.{key}": value for key, value in module.state_dict().items()}
            if forward:
                weight, bias = layer.weight + module.get_weight(module.shape) * module.scalar, None
            else:
                weight, bias = module.get_merged_weight(scale, shape)
            merged[component][f"{path}.weight"] = weight
            if bias is not None:
                merged[component][f"{path}.bias"] = bias
    goldens.add(name, "LyCORIS", file, merged, scale)


def lycoris_cases(goldens: Goldens) -> None:
    def case(name: str, kind, forward: bool = False, scale: float = 1.0, layers: str = "", ldm: bool = False, **options) -> None:
        make = lambda path, layer: kind(path.replace(".", "_"), layer, 1.0, **options)
        lycoris_case(goldens, f"lycoris-{name}", make, layers, scale, forward, ldm)

    locon = dict(lora_dim=2, alpha=1)
    case("locon", LoConModule, **locon)
    case("locon-negative", LoConModule, scale=-0.5, **locon)
    case("locon-ldm-names", LoConModule, ldm=True, **locon)
    case("locon-mid", LoConModule, use_tucker=True, **locon)
    case("locon-rank-stabilised", LoConModule, rs_lora=True, **locon)
    case("locon-scalar", LoConModule, use_scalar=True, **locon)
    case("dora-by-output", LoConModule, weight_decompose=True, wd_on_out=True, **locon)
    case("dora-by-input", LoConModule, weight_decompose=True, wd_on_out=False, **locon)
    case("dora-mid", LoConModule, weight_decompose=True, use_tucker=True, **locon)
    whole = dict(lora_dim=2, alpha=2)
    case("loha", LohaModule, **whole)
    case("loha-alpha", LohaModule, forward=True, **locon)
    case("loha-tucker", LohaModule, use_tucker=True, **whole)
    case("loha-dora", LohaModule, weight_decompose=True, wd_on_out=True, **whole)
    case("lokr", LokrModule, **whole)
    case("lokr-alpha", LokrModule, forward=True, **locon)
    case("lokr-tucker", LokrModule, use_tucker=True, **whole)
    case("lokr-both", LokrModule, decompose_both=True, lora_dim=1, alpha=1)
    case("lokr-full", LokrModule, full_matrix=True, lora_dim=100_000, alpha=1)
    case("lokr-dora-by-input", LokrModule, weight_decompose=True, wd_on_out=False, **whole)
    case("ia3-on-output", IA3Module, train_on_input=False)
    case("ia3-on-input", IA3Module, train_on_input=True)
    case("ia3-half", IA3Module, scale=0.5, train_on_input=False)
    case("full", FullModule)
    case("norms", NormModule, layers="norms")


@torch.no_grad()
def make(folder: Path) -> None:
    torch.set_num_threads(1)
    out = folder / "lora"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    goldens = Goldens(out)
    peft_cases(goldens)
    diffusers_cases(goldens)
    lycoris_cases(goldens)
    base = {f"unet/{key}": value for key, value in build(UNET).state_dict().items()}
    base |= {f"text_encoder/{key}": value for key, value in build(TEXT).state_dict().items()}
    versions = made_with("torch", "diffusers", "peft", "lycoris-lora")
    goldens.merged |= {f"base/{key}": value for key, value in base.items()}
    about = metadata(made_with=versions, libraries=goldens.libraries, scales=goldens.scales)
    save_file(goldens.merged, folder / "lora.safetensors", about)
    for path in out.glob("*.safetensors"):
        path.chmod(0o644)
