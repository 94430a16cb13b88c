"""LoRA files in more layouts: peft's folders, `save_lora_adapter`, OneTrainer, ComfyUI, ai-toolkit; GLoRA, OFT, BOFT, OLoRA, fp8.

The model is that of `lora.py`. Each library merges its own file; where the program that writes a layout is no library, peft or LyCORIS
merges the same numbers under their own names.
"""

import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import torch
from diffusers.loaders.peft import PeftAdapterMixin
from lycoris.modules.boft import ButterflyOFTModule
from lycoris.modules.diag_oft import DiagOFTModule
from lycoris.modules.glora import GLoRAModule, _glora_weight
from lycoris.modules.locon import LoConModule
from lycoris.utils import extract_diff
from peft import BOFTConfig, IA3Config, LoHaConfig, LoKrConfig, LoraConfig, OFTConfig, PeftModel, get_peft_model
from peft.tuners.boft import layer as boft
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from . import made_with, metadata, sort_metadata
from .lora import LDM, TARGETS, TEXT, UNET, Goldens, Weights, build, lycoris_case, peft_pair, plain, scramble

LINEAR = ["to_q", "to_out.0", "q_proj"]
Layers = dict[str, Callable[[], nn.Module]]


def changed(model: nn.Module, layers: Layers) -> Weights:
    """The tensors that differ from the base, once peft has merged what is in `model`."""
    base = build(layers).state_dict()
    for module in model.modules():
        if isinstance(module, BaseTunerLayer):
            module.merge()
    merged = {key.removeprefix("base_model.model.").replace(".base_layer.", "."): value for key, value in model.state_dict().items()}
    return {key: value for key, value in merged.items() if key in base and not torch.equal(value, base[key])}


def trained(model: nn.Module) -> nn.Module:
    """The adapter with random values, as if it had been trained."""
    torch.manual_seed(11)
    marks = ("lora_", "hada_", "lokr_", "ia3_", "oft_")
    scramble(p for name, p in sorted(model.named_parameters()) if any(mark in name for mark in marks))
    return model


def save_folder(goldens: Goldens, name: str, model: nn.Module, **options) -> Path:
    """A folder as `save_pretrained` writes it, without the model card."""
    folder = goldens.folder / name
    model.save_pretrained(folder, **options)
    (folder / "README.md").unlink(missing_ok=True)
    # Sets of names come in another order in every run.
    config = json.loads((folder / "adapter_config.json").read_text())
    config = {key: sorted(value) if isinstance(value, list) else value for key, value in config.items()}
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    for path in folder.iterdir():
        path.chmod(0o644)
    return folder


def loaded(folder: Path, layers: Layers, **options) -> Weights:
    """What peft merges after it has read the folder."""
    return changed(PeftModel.from_pretrained(build(layers), folder, **options), layers)


def folder_case(goldens: Goldens, name: str, config: Callable[[], object], text: bool = False) -> None:
    layers, component = (TEXT, "text_encoder") if text else (UNET, "unet")
    folder = save_folder(goldens, name, trained(get_peft_model(build(layers), config())))
    merged = loaded(folder, layers)
    goldens.add(name, "peft", None, {component: merged})


def folders(goldens: Goldens) -> None:
    lora = dict(r=3, lora_alpha=5, target_modules=TARGETS, init_lora_weights=False)
    patterns = dict(rank_pattern={"conv1": 2}, alpha_pattern={"conv1": 7, "attn1.to_[qk]": 4})
    other = dict(r=2, alpha=5, target_modules=TARGETS)
    oft, boft_options = dict(r=4, oft_block_size=0, target_modules=TARGETS), dict(boft_block_size=4, target_modules=TARGETS)
    cases = {
        "peft-folder": lambda: LoraConfig(**lora, **patterns),
        "peft-folder-rslora": lambda: LoraConfig(**lora, use_rslora=True),
        "peft-folder-dora": lambda: LoraConfig(**lora, use_dora=True),
        "peft-folder-loha": lambda: LoHaConfig(**other, alpha_pattern={"to_q": 3}),
        "peft-folder-lokr": lambda: LoKrConfig(**other, rank_pattern={"conv1": 1}),
        "peft-folder-lokr-whole": lambda: LoKrConfig(r=16, alpha=8, target_modules=TARGETS, rank_pattern={"to_q": 32}),
        "peft-folder-ia3": lambda: IA3Config(target_modules=TARGETS, feedforward_modules=["to_q", "conv1"]),
        "peft-folder-oft": lambda: OFTConfig(**oft),
        "peft-folder-oft-exact": lambda: OFTConfig(**oft, use_cayley_neumann=False),
        "peft-folder-oft-terms": lambda: OFTConfig(**oft, num_cayley_neumann_terms=3),
        "peft-folder-oft-coft": lambda: OFTConfig(**oft, coft=True, eps=0.5),
        "peft-folder-oft-shared": lambda: OFTConfig(**oft, block_share=True),
        "peft-folder-boft": lambda: BOFTConfig(**boft_options),
    }
    for name, config in cases.items():
        folder_case(goldens, name, config)
    folder_case(goldens, "peft-folder-text", lambda: LoraConfig(**lora), text=True)

    # More than one butterfly factor needs peft's CUDA kernel, which makes a block diagonal matrix. torch does so as well.
    class BlockDiagonal:
        @staticmethod
        def apply(blocks: Tensor) -> Tensor:
            return torch.stack([torch.block_diag(*factor) for factor in blocks])

    with patch.object(boft, "get_fbd_cuda", lambda: True), patch.object(boft, "FastBlockDiag", BlockDiagonal):
        folder_case(goldens, "peft-folder-boft-factors", lambda: BOFTConfig(**boft_options, boft_n_butterfly_factor=2))


def changed_bases(goldens: Goldens) -> None:
    """Adapters that begin with a part of the base. OLoRA and PiSSA take it out of the base, and peft does so again when it loads them."""
    def config(start: str) -> LoraConfig:
        return LoraConfig(r=4, lora_alpha=6, target_modules=LINEAR, init_lora_weights=start)

    for start in ["olora", "gaussian", "eva", "mica", "orthogonal"]:
        folder_case(goldens, f"peft-folder-{start}", lambda: config(start))
    for start in ["olora", "pissa"]:
        model = get_peft_model(build(UNET), config(start))
        with tempfile.TemporaryDirectory() as folder:
            first = Path(folder) / "first"
            model.peft_config["default"].init_lora_weights = True
            model.save_pretrained(first)
            model.peft_config["default"].init_lora_weights = start
            if start == "pissa":
                trained(model)
                save_folder(goldens, "refused-pissa", model)
            else:
                trained(model)
            name = f"peft-folder-{start}-converted"
            converted = save_folder(goldens, name, model, path_initial_model_for_weight_conversion=str(first))
        goldens.add(name, "peft", None, {"unet": loaded(converted, UNET)})


class Toy(nn.Module, PeftAdapterMixin):
    """The layers as a model of diffusers, which has `save_lora_adapter`."""

    def __init__(self, layers: Layers):
        super().__init__()
        for name, module in build(layers).named_children():
            self.add_module(name, module)


def adapters(goldens: Goldens) -> None:
    settings = dict(r=3, lora_alpha=5, target_modules=TARGETS, init_lora_weights=False)
    patterns = dict(rank_pattern={"conv1": 2}, alpha_pattern={"conv1": 7, "attn1.to_[qk]": 4})
    for name, more in {"diffusers-adapter": patterns, "diffusers-adapter-rslora": {"use_rslora": True}}.items():
        model = Toy(UNET)
        model.add_adapter(LoraConfig(**settings, **more))
        trained(model)
        model.peft_config["default"].target_modules = sorted(TARGETS)
        model.save_lora_adapter(goldens.folder, weight_name=f"{name}.safetensors")
        sort_metadata(goldens.folder / f"{name}.safetensors")
        goldens.add(name, "diffusers", None, {"unet": changed(model, UNET)})


def renamed(state: Weights, prefix: str, names: dict[str, str], down: str, up: str) -> Weights:
    """peft's keys as another program writes them."""
    found = {}
    for key, value in plain(state).items():
        path, ending = key.split(".lora_")
        ending = {"A.weight": down, "B.weight": up}.get(ending, f"lora_{ending}")
        found[f"{prefix}{names.get(path, path)}.{ending}"] = value
    return found


def names(goldens: Goldens) -> None:
    """Names of programs that are no libraries, for numbers that peft has merged."""
    lora = dict(r=2, lora_alpha=2, target_modules=[*LINEAR, "proj_in", "conv1"], init_lora_weights=False)
    states, merged = peft_pair(lambda: LoraConfig(**lora))
    ends = ("lora_down.weight", "lora_up.weight")
    for name, unet, text in [
        ("onetrainer", "unet.", "clip_l."),
        ("comfyui", "diffusion_model.", "text_encoders.clip_l.transformer."),
    ]:
        file = renamed(states["unet"], unet, LDM, *ends) | renamed(states["text_encoder"], text, {}, *ends)
        goldens.add(name, "peft (names)", file, merged)
    file = renamed(states["unet"], "unet.base_model.model.", {}, "lora_A.weight", "lora_B.weight")
    file |= renamed(states["text_encoder"], "text_encoder.base_model.model.", {}, "lora_A.weight", "lora_B.weight")
    goldens.add("peft-both-models", "peft (names)", file, merged)

    states, merged = peft_pair(lambda: LoraConfig(r=2, lora_alpha=2, target_modules=LINEAR, init_lora_weights=False, use_dora=True))
    file = {}
    for part, prefix in [("unet", "lora_unet_"), ("text_encoder", "lora_te_")]:
        for key, value in plain(states[part]).items():
            path, ending = key.split(".lora_")
            ending = {"A.weight": "lora_down.weight", "B.weight": "lora_up.weight"}.get(ending, "magnitude")
            file[f"{prefix}{path.replace('.', '_')}.{ending}"] = value
    goldens.add("ai-toolkit-dora", "peft (names)", file, merged)

    for name, dtype in {"fp8-e4m3": torch.float8_e4m3fn, "fp8-e5m2": torch.float8_e5m2}.items():
        def config() -> LoraConfig:
            return LoraConfig(**lora)
        file, merged = {}, {}
        for part, prefix, layers in [("unet", "unet.", UNET), ("text_encoder", "text_encoder.", TEXT)]:
            model = trained(get_peft_model(build(layers), config()))
            for key, parameter in model.named_parameters():
                if "lora_" in key:
                    parameter.data = parameter.data.to(dtype).float()
                    file[prefix + key.removeprefix("base_model.model.").replace(".default", "")] = parameter.data.to(dtype)
            merged[part] = changed(model, layers)
        goldens.add(name, "peft", file, merged)


def lycoris(goldens: Goldens) -> None:
    def case(name: str, kind, scale: float = 1.0, **options) -> None:
        make = lambda path, layer: kind(path.replace(".", "_"), layer, 1.0, **options)
        lycoris_case(goldens, f"lycoris-{name}", make, "", scale)

    case("glora", GLoRAModule, lora_dim=2, alpha=1)
    case("glora-half", GLoRAModule, scale=0.5, lora_dim=2, alpha=2)
    case("glora-scalar", GLoRAModule, lora_dim=2, alpha=1, use_scalar=True)
    case("oft", DiagOFTModule, lora_dim=4)
    case("oft-half", DiagOFTModule, scale=-0.5, lora_dim=4)
    case("oft-rescaled", DiagOFTModule, lora_dim=4, rescaled=True)
    case("oft-constraint", DiagOFTModule, lora_dim=4, constraint=0.03)
    case("boft", ButterflyOFTModule, lora_dim=6)
    case("boft-half", ButterflyOFTModule, scale=0.5, lora_dim=6)
    case("boft-rescaled", ButterflyOFTModule, lora_dim=12, rescaled=True)
    case("boft-constraint", ButterflyOFTModule, lora_dim=6, constraint=0.03)

    # LyCORIS has a name for GLoRA's middle tensor, and makes none.
    file, merged = {}, {"unet": {}}
    model = build(UNET)
    torch.manual_seed(17)
    path = "down_blocks.0.resnets.0.conv1"
    weight = model.get_submodule(path).weight
    shapes = {"a1": (8, 2, 1, 1), "a2": (2, 8, 1, 1), "b1": (24, 2, 1, 1), "b2": (2, 8, 1, 1), "bm": (2, 2, 3, 3)}
    tensors = {name: torch.randn(shape) * 0.3 for name, shape in shapes.items()}
    key = f"lora_unet_{path.replace('.', '_')}"
    file = {f"{key}.{name}.weight": value for name, value in tensors.items()} | {f"{key}.alpha": torch.tensor(1.0)}
    merged["unet"][f"{path}.weight"] = weight + _glora_weight(weight, *tensors.values(), 0.5)
    goldens.add("lycoris-glora-mid", "LyCORIS", file, merged)

    # One wrapper for each network, as `create_lycoris` names their modules.
    file, merged = {}, {}
    for part, layers in [("unet", UNET), ("text_encoder", TEXT)]:
        model, merged[part] = build(layers), {}
        torch.manual_seed(13)
        for path in layers:
            layer = model.get_submodule(path)
            if isinstance(layer, (nn.Linear, nn.Conv2d)):
                module = LoConModule(path.replace(".", "_"), layer, 1.0, lora_dim=2, alpha=1)
                scramble(p for _, p in sorted(module.named_parameters()))
                file |= {f"lycoris_{path.replace('.', '_')}.{key}": value for key, value in module.state_dict().items()}
                merged[part][f"{path}.weight"] = module.get_merged_weight(1.0, layer.weight.shape)[0]
    goldens.add("lycoris-wrapper", "LyCORIS", file, merged)
    sparse(goldens)


def sparse(goldens: Goldens) -> None:
    """What `extract_diff` writes with `use_bias`: the largest numbers of what its products leave over. LyCORIS itself reads them nowhere."""
    bases, tuned = [build(layers) for layers in (UNET, TEXT)], [build(layers) for layers in (UNET, TEXT)]
    torch.manual_seed(19)
    for model in tuned:
        for module in model.modules():
            if isinstance(module, (nn.Linear, nn.Conv2d)):
                module.weight.data += torch.randn_like(module.weight) * 0.2
    options = dict(linear_mode_param=2, conv_mode_param=2, use_bias=True, sparsity=0.9, small_conv=False)
    file = extract_diff([bases[1]], [tuned[1]], bases[0], tuned[0], **options)
    merged = {"unet": {}, "text_encoder": {}}
    for part, prefix, base in [("unet", "lora_unet_", bases[0]), ("text_encoder", "lora_te_", bases[1])]:
        for path, module in base.named_modules():
            key = prefix + path.replace(".", "_")
            if f"{key}.bias_size" in file:
                up, down = (file[f"{key}.lora_{half}.weight"].float().flatten(1) for half in ("up", "down"))
                numbers = [file[f"{key}.bias_{name}"] for name in ("indices", "values", "size")]
                rest = torch.sparse_coo_tensor(numbers[0].long(), numbers[1].float(), numbers[2].tolist()).to_dense()
                merged[part][f"{path}.weight"] = module.weight + (up @ down + rest).reshape(module.weight.shape)
    goldens.add("lycoris-sparse", "LyCORIS, torch", file, merged)


@torch.no_grad()
def make(folder: Path) -> None:
    torch.set_num_threads(1)
    out = folder / "lora-layouts"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    goldens = Goldens(out)
    folders(goldens)
    changed_bases(goldens)
    adapters(goldens)
    names(goldens)
    lycoris(goldens)
    codes = torch.arange(256, dtype=torch.uint8)
    goldens.merged["codes/e4m3"] = codes.view(torch.float8_e4m3fn).float()
    goldens.merged["codes/e5m2"] = codes.view(torch.float8_e5m2).float()
    versions = made_with("torch", "diffusers", "peft", "lycoris-lora")
    about = metadata(made_with=versions, libraries=goldens.libraries, scales=goldens.scales)
    save_file(goldens.merged, folder / "lora-layouts.safetensors", about)
    for path in out.glob("*.safetensors"):
        path.chmod(0o644)
