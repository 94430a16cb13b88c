//! Names of the original Stable Diffusion code, in which some kohya files are written, for diffusers' modules.

/// ResNets per block of the UNet, from the names of its modules; 2 in SD1.5.
pub(super) fn resnets_per_block<'a>(paths: impl Iterator<Item = &'a str>) -> usize {
    let index = |path: &str| path.strip_prefix("down_blocks.0.resnets.")?.split('.').next()?.parse::<usize>().ok();
    paths.filter_map(index).max().map_or(2, |last| last + 1)
}

/// What the original code calls a module of diffusers' UNet with `per_block` ResNets per block.
pub(super) fn name(path: &str, per_block: usize) -> Option<String> {
    let whole = [
        ("conv_in", "input_blocks.0.0"),
        ("conv_norm_out", "out.0"),
        ("conv_out", "out.2"),
        ("time_embedding.linear_1", "time_embed.0"),
        ("time_embedding.linear_2", "time_embed.2"),
    ];
    if let Some((_, name)) = whole.iter().find(|(ours, _)| *ours == path) {
        return Some((*name).to_string());
    }
    if let Some(rest) = path.strip_prefix("mid_block.") {
        let (kind, index, rest) = numbered(rest)?;
        return match (kind, index) {
            ("resnets", 0 | 1) => Some(format!("middle_block.{}.{}", 2 * index, resnet(rest)?)),
            ("attentions", 0) => Some(format!("middle_block.1.{rest}")),
            _ => None,
        };
    }
    let (side, block, rest) = numbered(path)?;
    let (kind, layer, rest) = numbered(rest)?;
    // Each block has one place more than ResNets: for the downsampler on the way down, for the skip on the way up.
    let place = block * (per_block + 1) + layer;
    match (side, kind) {
        ("down_blocks", "resnets") => Some(format!("input_blocks.{}.0.{}", place + 1, resnet(rest)?)),
        ("down_blocks", "attentions") => Some(format!("input_blocks.{}.1.{rest}", place + 1)),
        ("down_blocks", "downsamplers") => Some(format!("input_blocks.{}.0.op", (block + 1) * (per_block + 1))),
        ("up_blocks", "resnets") => Some(format!("output_blocks.{place}.0.{}", resnet(rest)?)),
        ("up_blocks", "attentions") => Some(format!("output_blocks.{place}.1.{rest}")),
        // After the attention, where there is one: all blocks on the way up but the first have one.
        ("up_blocks", "upsamplers") => {
            let after = if block == 0 { 1 } else { 2 };
            Some(format!("output_blocks.{}.{after}.conv", block * (per_block + 1) + per_block))
        }
        _ => None,
    }
}

/// `resnets.1.conv1` is `("resnets", 1, "conv1")`.
fn numbered(path: &str) -> Option<(&str, usize, &str)> {
    let (kind, rest) = path.split_once('.')?;
    let (index, rest) = rest.split_once('.')?;
    Some((kind, index.parse().ok()?, rest))
}

fn resnet(part: &str) -> Option<&'static str> {
    Some(match part {
        "norm1" => "in_layers.0",
        "conv1" => "in_layers.2",
        "time_emb_proj" => "emb_layers.1",
        "norm2" => "out_layers.0",
        "conv2" => "out_layers.3",
        "conv_shortcut" => "skip_connection",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_sd15_are_those_of_the_original_code() {
        let cases = [
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
        for (ours, theirs) in cases {
            assert_eq!(name(ours, 2).as_deref(), Some(theirs), "{ours}");
        }
    }
}
