//! Checkpoints made of easel-tiny's tensors in the ways that programs write them, and files that are none.

use super::*;
use crate::{
    loading::{ModelWeights, settings, unet_to_ldm, vae_to_ldm, weights::Weights},
    lora::Target,
};
use candle_core::{DType, Device, Tensor};
use std::collections::HashMap;

type Tensors = HashMap<String, Tensor>;
/// A tensor's name and shape.
type Shape<'a> = (&'a str, &'a [usize]);

fn easel_tiny() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/model/easel-tiny"))
}

/// How a program writes checkpoints.
struct Writer {
    dtype: DType,
    /// Whether the text encoder has the level `text_model.`.
    text_level: bool,
    vae: &'static str,
    /// Dimensions of the weights of the VAE's attention.
    attention_dims: usize,
    ema: bool,
}

const PLAIN: Writer =
    Writer { dtype: DType::F16, text_level: true, vae: "first_stage_model.", attention_dims: 4, ema: false };

impl Writer {
    fn tensors(&self) -> Tensors {
        let weights = ModelWeights::open(&easel_tiny()).unwrap();
        let mut all = Tensors::new();
        let named = |weights: &Weights, rename: &dyn Fn(&str) -> String| {
            let one = |name: &str| (rename(name), weights.base(name).unwrap().to_dtype(self.dtype).unwrap());
            weights.names().into_iter().map(one).collect::<Vec<_>>()
        };
        let level = if self.text_level { "text_model." } else { "" };
        all.extend(named(&weights.text_encoder, &|name| {
            format!("cond_stage_model.transformer.{level}{}", name.strip_prefix("text_model.").unwrap())
        }));
        let ldm = |name: &str, rename: &dyn Fn(&str) -> Option<String>| {
            let (module, part) = name.rsplit_once('.').unwrap();
            format!("{}.{part}", rename(module).unwrap_or_else(|| panic!("{name}")))
        };
        all.extend(named(&weights.unet, &|name| format!("{UNET}{}", ldm(name, &|module| unet_to_ldm(module, 1)))));
        for (name, mut tensor) in
            named(&weights.vae, &|name| format!("{}{}", self.vae, ldm(name, &|module| vae_to_ldm(module, 4))))
        {
            if name.contains(".attn_1.") && tensor.dims().len() == 2 {
                while tensor.dims().len() < self.attention_dims {
                    tensor = tensor.unsqueeze(tensor.dims().len()).unwrap();
                }
            }
            all.insert(name, tensor);
        }
        if self.ema {
            let averages = all.iter().filter(|(name, _)| name.starts_with(UNET));
            let averages: Tensors = averages
                .map(|(name, tensor)| {
                    (format!("model_ema.{}", name["model.".len()..].replace('.', "")), (tensor * 0.5).unwrap())
                })
                .collect();
            all.extend(averages);
            all.insert("model_ema.decay".into(), Tensor::new(0.9999f32, &Device::Cpu).unwrap());
        }
        all
    }
}

fn saved(tensors: &Tensors) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("model.safetensors");
    candle_core::safetensors::save(tensors, &file).unwrap();
    (folder, file)
}

#[test]
fn every_writers_checkpoint_has_the_tensors_of_the_folder() {
    let theirs = ModelWeights::open(&easel_tiny()).unwrap();
    let writers = [
        PLAIN,
        Writer { dtype: DType::BF16, text_level: false, ..PLAIN },
        Writer { dtype: DType::F32, attention_dims: 3, ema: true, ..PLAIN },
        Writer { vae: "vae.", attention_dims: 2, ..PLAIN },
    ];
    for writer in writers {
        let mut tensors = writer.tensors();
        let ids = Tensor::arange(0i64, 77, &Device::Cpu).unwrap();
        let level = if writer.text_level { "text_model." } else { "" };
        tensors.insert(format!("{TEXT}{level}embeddings.position_ids"), ids);
        let (_folder, file) = saved(&tensors);
        let ours = ModelWeights::open(&file).unwrap();
        for (ours, theirs) in
            [(&ours.text_encoder, &theirs.text_encoder), (&ours.unet, &theirs.unet), (&ours.vae, &theirs.vae)]
        {
            let (mut names, mut expected) = (ours.names(), theirs.names());
            names.sort_unstable();
            expected.sort_unstable();
            assert_eq!(names, expected);
            for name in names {
                let (ours, theirs) = (ours.base(name).unwrap(), theirs.base(name).unwrap());
                assert_eq!((ours.dtype(), ours.dims()), (writer.dtype, theirs.dims()), "{name}");
                let numbers = |tensor: Tensor, through: DType| {
                    let tensor = tensor.to_dtype(through).unwrap().to_dtype(DType::F32).unwrap();
                    tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap()
                };
                assert_eq!(numbers(ours, writer.dtype), numbers(theirs, writer.dtype), "{name}");
            }
        }
        assert!(Checkpoint::open(&file).unwrap().unread().is_empty());
        assert!(Target::of_folder(&file).is_ok());
    }
}

#[test]
fn settings_follow_from_the_shapes_and_marks() {
    let mut tensors = PLAIN.tensors();
    let (_folder, file) = saved(&tensors);
    let value =
        |file: &Path, name: &str| serde_json::from_str::<serde_json::Value>(&settings(file, name).unwrap()).unwrap();
    let unet = value(&file, "unet/config.json");
    for field in [
        "block_out_channels",
        "layers_per_block",
        "cross_attention_dim",
        "down_block_types",
        "up_block_types",
        "in_channels",
        "out_channels",
    ] {
        assert_eq!(unet[field], value(&easel_tiny(), "unet/config.json")[field], "{field}");
    }
    let vae = value(&file, "vae/config.json");
    for field in [
        "block_out_channels",
        "layers_per_block",
        "latent_channels",
        "down_block_types",
        "up_block_types",
        "scaling_factor",
    ] {
        assert_eq!(vae[field], value(&easel_tiny(), "vae/config.json")[field], "{field}");
    }
    let text = value(&file, "text_encoder/config.json");
    for field in
        ["vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "max_position_embeddings", "hidden_act"]
    {
        assert_eq!(text[field], value(&easel_tiny(), "text_encoder/config.json")[field], "{field}");
    }
    assert_eq!(
        value(&file, "scheduler/scheduler_config.json"),
        value(&easel_tiny(), "scheduler/scheduler_config.json")
    );
    for mark in ["v_pred", "ztsnr", "something.else"] {
        tensors.insert(mark.into(), Tensor::zeros(1, DType::F32, &Device::Cpu).unwrap());
    }
    let (_folder, file) = saved(&tensors);
    let scheduler = value(&file, "scheduler/scheduler_config.json");
    assert_eq!(
        (scheduler["prediction_type"].as_str(), scheduler["rescale_betas_zero_snr"].as_bool()),
        (Some("v_prediction"), Some(true))
    );
    assert_eq!(Checkpoint::open(&file).unwrap().unread(), ["something.else"]);
}

/// What is said about a file with these tensors, zeros in f16.
fn refusal(shapes: &[Shape]) -> String {
    let one = |(name, dims): &Shape| ((*name).to_string(), Tensor::zeros(*dims, DType::F16, &Device::Cpu).unwrap());
    let (_folder, file) = saved(&shapes.iter().map(one).collect());
    let error = Checkpoint::open(&file).err().map(|error| error.to_string()).unwrap_or_default();
    assert!(error.starts_with(&format!("model file {}: it ", file.display())), "{error}");
    error
}

#[test]
fn what_is_no_checkpoint_of_sd1_is_refused_by_its_name() {
    let input = "model.diffusion_model.input_blocks.0.0.weight";
    let to_k = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight";
    let (text, vae) =
        ("cond_stage_model.transformer.text_model.final_layer_norm.weight", "first_stage_model.decoder.conv_in.weight");
    let (text, vae): (Shape, Shape) = ((text, &[4]), (vae, &[4, 4, 3, 3]));
    let cases: [(&[Shape], &str); 27] = [
        (&[(input, &[32, 9, 3, 3]), text, vae], "an inpainting model"),
        (&[(input, &[32, 8, 3, 3]), text, vae], "an InstructPix2Pix model"),
        (&[(input, &[32, 5, 3, 3]), text, vae], "a depth-to-image model"),
        (
            &[(input, &[32, 6, 3, 3]), text, vae],
            "another model (`model.diffusion_model.input_blocks.0.0.weight` is [32, 6, 3, 3])",
        ),
        (&[(input, &[32, 4, 3, 3]), (to_k, &[4, 1024]), text, vae], "a checkpoint of SD2"),
        (&[(input, &[32, 4, 3, 3]), (to_k, &[4, 2048]), text, vae], "a checkpoint of SDXL"),
        (
            &[(input, &[32, 4, 3, 3]), ("model.diffusion_model.input_blocks.1.1.proj_in.weight", &[4, 4]), text, vae],
            "a checkpoint of SD2 or SDXL",
        ),
        (&[(input, &[32, 4, 3, 3]), ("cond_stage_model.model.ln_final.weight", &[4]), vae], "a checkpoint of SD2"),
        (
            &[(input, &[32, 4, 3, 3]), ("conditioner.embedders.1.model.ln_final.weight", &[4]), vae],
            "a checkpoint of SDXL",
        ),
        (
            &[(input, &[32, 4, 3, 3]), ("model.diffusion_model.label_emb.0.0.weight", &[4]), text, vae],
            "a checkpoint of SDXL",
        ),
        (&[("model.diffusion_model.joint_blocks.0.x_block.mlp.fc1.weight", &[4])], "a checkpoint of SD3"),
        (&[("double_blocks.0.img_attn.norm.key_norm.scale", &[4])], "a checkpoint of Flux"),
        (&[("model.diffusion_model.double_blocks.0.img_attn.qkv.weight", &[4])], "a checkpoint of Flux"),
        (&[("lora_unet_mid_block_attentions_0_proj_in.lora_down.weight", &[4, 4])], "a LoRA (`lora_unet_mid_block"),
        (&[("unet.mid_block.attentions.0.proj_in.lora_A.weight", &[4, 4])], "a LoRA"),
        (&[("emb_params", &[1, 768])], "a textual inversion alone"),
        (&[("control_model.time_embed.0.weight", &[4]), (input, &[32, 4, 3, 3])], "a ControlNet"),
        (&[("controlnet_cond_embedding.conv_in.weight", &[4])], "a ControlNet"),
        (&[("down_blocks.0.resnets.0.norm1.weight", &[4])], "the UNet of a model folder alone"),
        (&[("decoder.conv_in.weight", &[4])], "a VAE alone"),
        (&[("text_model.embeddings.token_embedding.weight", &[4])], "a text encoder alone"),
        (&[("model_ema.diffusion_modelout2weight", &[4]), vae], "averages of training alone"),
        (
            &[("net.0.weight", &[4])],
            "no checkpoint of Stable Diffusion: it has no tensor `model.diffusion_model.…` (`net.0.weight`)",
        ),
        (
            &[(input, &[32, 4, 3, 3]), ("model.diffusion_model.out.2.scale_weight", &[1]), text, vae],
            "quantised (`model.diffusion_model.out.2.scale_weight`)",
        ),
        (&[(input, &[32, 4, 3, 3]), text], "no VAE (`first_stage_model.…`)"),
        (&[(input, &[32, 4, 3, 3]), vae], "no text encoder (`cond_stage_model.transformer.…`)"),
        (
            &[(input, &[32, 4, 3, 3]), text, vae],
            "lacks the tensor `first_stage_model.decoder.up.0.block.0.conv1.weight`",
        ),
    ];
    for (shapes, said) in cases {
        let error = refusal(shapes);
        assert!(error.contains(said), "{error} says not: {said}");
    }
}

#[test]
fn other_files_under_the_name_of_a_checkpoint_are_said_by_their_kind() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("model.ckpt");
    let cases: [(&[u8], &str); 2] = [
        (b"PK\x03\x04\0\0\x08\x08\0\0\0\0\0\0archive/data.pkl", "a pickled PyTorch file"),
        (b"version https://git-lfs.github.com/spec/v1\nsize 4265146304\n", "git lfs pull"),
    ];
    for (content, said) in cases {
        std::fs::write(&file, content).unwrap();
        let error = crate::pipeline::inspect(&file).unwrap_err().to_string();
        assert!(error.contains(said) && error.contains("model.ckpt: it is"), "{error}");
    }
}

#[test]
fn a_text_encoder_with_another_vocabulary_is_refused() {
    let mut tensors = PLAIN.tensors();
    let name = format!("{TEXT}text_model.embeddings.token_embedding.weight");
    let fewer = tensors[&name].narrow(0, 0, 514).unwrap();
    tensors.insert(name, fewer);
    let (_folder, file) = saved(&tensors);
    let error = ModelWeights::open(&file).err().unwrap().to_string();
    assert!(error.contains("embeddings of 514 tokens, CLIP has 49408"), "{error}");
}

#[test]
fn a_tensor_that_stands_twice_is_refused() {
    let mut tensors = PLAIN.tensors();
    let name = "encoder.layers.0.mlp.fc1.bias";
    let again = tensors[&format!("{TEXT}text_model.{name}")].clone();
    tensors.insert(format!("{TEXT}{name}"), again);
    let (_folder, file) = saved(&tensors);
    let error = ModelWeights::open(&file).err().unwrap().to_string();
    assert!(error.contains(&format!("two of its tensors are `text_model.{name}`")), "{error}");
}
