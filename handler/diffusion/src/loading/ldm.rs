//! The names of the original Stable Diffusion code (LDM) for the parts of UNet and VAE, and diffusers' names for the same parts.
//!
//! Checkpoint files have LDM's names, and so have some LoRAs. The names are those of modules, without `.weight` and `.bias`.

/// Parts of the UNet with names of their own: diffusers', LDM's.
const UNET: [(&str, &str); 5] = [
    ("conv_in", "input_blocks.0.0"),
    ("conv_norm_out", "out.0"),
    ("conv_out", "out.2"),
    ("time_embedding.linear_1", "time_embed.0"),
    ("time_embedding.linear_2", "time_embed.2"),
];
/// Parts of a ResNet of the UNet.
const RESNET: [(&str, &str); 6] = [
    ("norm1", "in_layers.0"),
    ("conv1", "in_layers.2"),
    ("time_emb_proj", "emb_layers.1"),
    ("norm2", "out_layers.0"),
    ("conv2", "out_layers.3"),
    ("conv_shortcut", "skip_connection"),
];
/// Parts of encoder and decoder of the VAE.
const VAE_SIDE: [(&str, &str); 8] = [
    ("conv_norm_out", "norm_out"),
    ("mid_block.resnets.0", "mid.block_1"),
    ("mid_block.resnets.1", "mid.block_2"),
    ("mid_block.attentions.0.group_norm", "mid.attn_1.norm"),
    ("mid_block.attentions.0.to_q", "mid.attn_1.q"),
    ("mid_block.attentions.0.to_k", "mid.attn_1.k"),
    ("mid_block.attentions.0.to_v", "mid.attn_1.v"),
    ("mid_block.attentions.0.to_out.0", "mid.attn_1.proj_out"),
];

fn ldm_of<'a>(names: &[(&'a str, &'a str)], diffusers: &str) -> Option<&'a str> {
    names.iter().find(|(ours, _)| *ours == diffusers).map(|(_, ldm)| *ldm)
}

fn diffusers_of<'a>(names: &[(&'a str, &'a str)], ldm: &str) -> Option<&'a str> {
    names.iter().find(|(_, theirs)| *theirs == ldm).map(|(diffusers, _)| *diffusers)
}

/// The LDM name of a module of diffusers' UNet with `per_block` ResNets per down block, 2 in SD1.5.
pub fn unet_to_ldm(path: &str, per_block: usize) -> Option<String> {
    if let Some(name) = ldm_of(&UNET, path) {
        return Some(name.to_string());
    }
    if let Some(rest) = path.strip_prefix("mid_block.") {
        let (kind, index, rest) = numbered(rest)?;
        return match (kind, index) {
            ("resnets", 0 | 1) => Some(format!("middle_block.{}.{}", 2 * index, ldm_of(&RESNET, rest)?)),
            ("attentions", 0) => Some(format!("middle_block.1.{rest}")),
            _ => None,
        };
    }
    let (side, block, rest) = numbered(path)?;
    let (kind, layer, rest) = numbered(rest)?;
    // Each block has one index more than ResNets: down blocks for the downsampler, up blocks for one more ResNet.
    let index = block * (per_block + 1) + layer;
    match (side, kind) {
        ("down_blocks", "resnets") => Some(format!("input_blocks.{}.0.{}", index + 1, ldm_of(&RESNET, rest)?)),
        ("down_blocks", "attentions") => Some(format!("input_blocks.{}.1.{rest}", index + 1)),
        ("down_blocks", "downsamplers") => Some(format!("input_blocks.{}.0.op", (block + 1) * (per_block + 1))),
        ("up_blocks", "resnets") => Some(format!("output_blocks.{index}.0.{}", ldm_of(&RESNET, rest)?)),
        ("up_blocks", "attentions") => Some(format!("output_blocks.{index}.1.{rest}")),
        // After the attention, which all up blocks but the first have.
        ("up_blocks", "upsamplers") => {
            let after = if block == 0 { 1 } else { 2 };
            Some(format!("output_blocks.{}.{after}.conv", block * (per_block + 1) + per_block))
        }
        _ => None,
    }
}

/// diffusers' name of a module of LDM's UNet with `per_block` ResNets per down block.
pub(super) fn unet_from_ldm(path: &str, per_block: usize) -> Option<String> {
    if let Some(name) = diffusers_of(&UNET, path) {
        return Some(name.to_string());
    }
    let (side, index, rest) = numbered(path)?;
    if side == "middle_block" {
        return match index {
            0 | 2 => Some(format!("mid_block.resnets.{}.{}", index / 2, diffusers_of(&RESNET, rest)?)),
            1 => Some(format!("mid_block.attentions.0.{rest}")),
            _ => None,
        };
    }
    let (place, rest) = rest.split_once('.')?;
    let (blocks, index) = match side {
        "input_blocks" => ("down_blocks", index.checked_sub(1)?),
        "output_blocks" => ("up_blocks", index),
        _ => return None,
    };
    let (block, layer) = (index / (per_block + 1), index % (per_block + 1));
    match (side, place, rest) {
        ("input_blocks", "0", "op") => Some(format!("down_blocks.{block}.downsamplers.0.conv")),
        ("output_blocks", "1" | "2", "conv") => Some(format!("up_blocks.{block}.upsamplers.0.conv")),
        (_, "0", _) => Some(format!("{blocks}.{block}.resnets.{layer}.{}", diffusers_of(&RESNET, rest)?)),
        (_, "1", _) => Some(format!("{blocks}.{block}.attentions.{layer}.{rest}")),
        _ => None,
    }
}

/// The LDM name of a module of diffusers' VAE with that many levels, 4 in SD1.5.
pub fn vae_to_ldm(path: &str, levels: usize) -> Option<String> {
    if matches!(path, "quant_conv" | "post_quant_conv") {
        return Some(path.to_string());
    }
    let (side, rest) = path.split_once('.').filter(|(side, _)| matches!(*side, "encoder" | "decoder"))?;
    if matches!(rest, "conv_in" | "conv_out") {
        return Some(path.to_string());
    }
    if let Some((ours, ldm)) = VAE_SIDE.iter().find(|(ours, _)| rest == *ours || within(rest, ours).is_some()) {
        let inner =
            within(rest, ours).map_or_else(String::new, |inner| format!(".{}", shortcut(inner, "nin_shortcut")));
        return Some(format!("{side}.{ldm}{inner}"));
    }
    let (kind, block, rest) = numbered(rest)?;
    let (part, layer, rest) = numbered(rest)?;
    match (kind, part) {
        ("down_blocks", "resnets") => {
            Some(format!("{side}.down.{block}.block.{layer}.{}", shortcut(rest, "nin_shortcut")))
        }
        ("down_blocks", "downsamplers") => Some(format!("{side}.down.{block}.downsample.{rest}")),
        ("up_blocks", "resnets") => {
            let block = levels.checked_sub(block + 1)?;
            Some(format!("{side}.up.{block}.block.{layer}.{}", shortcut(rest, "nin_shortcut")))
        }
        ("up_blocks", "upsamplers") => Some(format!("{side}.up.{}.upsample.{rest}", levels.checked_sub(block + 1)?)),
        _ => None,
    }
}

/// diffusers' name of a module of LDM's VAE with that many levels.
pub(super) fn vae_from_ldm(path: &str, levels: usize) -> Option<String> {
    if matches!(path, "quant_conv" | "post_quant_conv") {
        return Some(path.to_string());
    }
    let (side, rest) = path.split_once('.').filter(|(side, _)| matches!(*side, "encoder" | "decoder"))?;
    if matches!(rest, "conv_in" | "conv_out") {
        return Some(path.to_string());
    }
    if let Some((ours, ldm)) = VAE_SIDE.iter().find(|(_, ldm)| rest == *ldm || within(rest, ldm).is_some()) {
        let inner =
            within(rest, ldm).map_or_else(String::new, |inner| format!(".{}", shortcut(inner, "conv_shortcut")));
        return Some(format!("{side}.{ours}{inner}"));
    }
    let (kind, block, rest) = numbered(rest)?;
    let (part, rest) = rest.split_once('.')?;
    let (blocks, sampler, block) = match kind {
        "down" => ("down_blocks", "downsamplers", block),
        // LDM counts from the outermost level, diffusers from the innermost.
        "up" => ("up_blocks", "upsamplers", levels.checked_sub(block + 1)?),
        _ => return None,
    };
    match part {
        "block" => {
            let (layer, rest) = rest.split_once('.')?;
            Some(format!("{side}.{blocks}.{block}.resnets.{layer}.{}", shortcut(rest, "conv_shortcut")))
        }
        "downsample" | "upsample" => Some(format!("{side}.{blocks}.{block}.{sampler}.0.{rest}")),
        _ => None,
    }
}

/// What follows `outer.` in a path.
fn within<'a>(path: &'a str, outer: &str) -> Option<&'a str> {
    path.strip_prefix(outer)?.strip_prefix('.')
}

/// The part of a VAE's ResNet, where only the shortcut has two names.
fn shortcut<'a>(part: &'a str, name: &'a str) -> &'a str {
    if matches!(part, "nin_shortcut" | "conv_shortcut") { name } else { part }
}

/// `resnets.1.conv1` is `("resnets", 1, "conv1")`.
fn numbered(path: &str) -> Option<(&str, usize, &str)> {
    let (kind, rest) = path.split_once('.')?;
    let (index, rest) = rest.split_once('.')?;
    Some((kind, index.parse().ok()?, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_sd15_are_those_of_the_original_code() {
        let unet = [
            ("conv_in", "input_blocks.0.0"),
            ("down_blocks.0.attentions.1.proj_in", "input_blocks.2.1.proj_in"),
            ("down_blocks.0.downsamplers.0.conv", "input_blocks.3.0.op"),
            (
                "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q",
                "input_blocks.4.1.transformer_blocks.0.attn1.to_q",
            ),
            ("down_blocks.3.resnets.1.conv2", "input_blocks.11.0.out_layers.3"),
            ("mid_block.resnets.1.time_emb_proj", "middle_block.2.emb_layers.1"),
            ("mid_block.attentions.0.proj_out", "middle_block.1.proj_out"),
            ("up_blocks.0.upsamplers.0.conv", "output_blocks.2.1.conv"),
            ("up_blocks.1.upsamplers.0.conv", "output_blocks.5.2.conv"),
            ("up_blocks.3.resnets.2.conv_shortcut", "output_blocks.11.0.skip_connection"),
            ("up_blocks.3.attentions.2.proj_out", "output_blocks.11.1.proj_out"),
            ("time_embedding.linear_2", "time_embed.2"),
            ("conv_out", "out.2"),
        ];
        for (ours, theirs) in unet {
            assert_eq!(unet_to_ldm(ours, 2).as_deref(), Some(theirs), "{ours}");
            assert_eq!(unet_from_ldm(theirs, 2).as_deref(), Some(ours), "{theirs}");
        }
        let vae = [
            ("post_quant_conv", "post_quant_conv"),
            ("decoder.conv_in", "decoder.conv_in"),
            ("encoder.conv_norm_out", "encoder.norm_out"),
            ("encoder.down_blocks.1.resnets.0.conv_shortcut", "encoder.down.1.block.0.nin_shortcut"),
            ("encoder.down_blocks.2.downsamplers.0.conv", "encoder.down.2.downsample.conv"),
            ("encoder.mid_block.resnets.1.conv2", "encoder.mid.block_2.conv2"),
            ("decoder.mid_block.attentions.0.to_out.0", "decoder.mid.attn_1.proj_out"),
            ("decoder.mid_block.attentions.0.group_norm", "decoder.mid.attn_1.norm"),
            ("decoder.up_blocks.0.resnets.2.norm1", "decoder.up.3.block.2.norm1"),
            ("decoder.up_blocks.3.resnets.0.conv_shortcut", "decoder.up.0.block.0.nin_shortcut"),
            ("decoder.up_blocks.2.upsamplers.0.conv", "decoder.up.1.upsample.conv"),
        ];
        for (ours, theirs) in vae {
            assert_eq!(vae_to_ldm(ours, 4).as_deref(), Some(theirs), "{ours}");
            assert_eq!(vae_from_ldm(theirs, 4).as_deref(), Some(ours), "{theirs}");
        }
        for other in [
            "label_emb.0.0",
            "input_blocks",
            "input_blocks.x.0.op",
            "joint_blocks.0.x.y",
            "input_blocks.1.2.norm",
            "out.1",
        ] {
            assert_eq!(unet_from_ldm(other, 2), None, "{other}");
        }
        for other in
            ["loss.logvar", "decoder.up.4.block.0.conv1", "encoder", "decoder.up.x.block.0.conv1", "decoder.mid.x"]
        {
            assert_eq!(vae_from_ldm(other, 4), None, "{other}");
        }
    }
}
